"""usage: hf-elm embed INPUT [INPUT ...] checkpoint=PATH_OR_ID output=FILE [key=value ...] [--key value ...]

One vector per text, by an M2-BERT encoder on this machine. INPUT is a .txt file (a text per line), a .jsonl, .csv, .tsv
or .parquet table, a folder of text files (a text per file), or - for lines of standard input. The output's suffix says
what is written: .npy (the array alone), .parquet or .jsonl (id, embedding and, if asked for, text). An interrupted run is
continued by the same command; the output appears when it is complete.

  hf-elm embed docs.jsonl checkpoint=encoder output=docs.parquet text_column=body
  echo "a question" | hf-elm embed - checkpoint=encoder output=query.npy prompt="search_query: "
"""

import sys

from ..command_schemas import embedding_schema
from ..embedding_inputs import read_inputs
from ..families import family_of_checkpoint
from ..recipes import literal_defaults, merge, split_arguments


schema = embedding_schema
_OF_INPUTS = ("text_column", "id_column")


def run(arguments: list[str]) -> None:
    """Read, load, embed, write.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    sources, given = split_arguments(arguments, schema())
    for key in ("checkpoint", "output"):
        if not given.get(key):
            raise ValueError(f"embed needs {key}=...; see `hf-elm embed --help`.")
    if not sources:
        raise ValueError("embed needs an INPUT: files, folders of text files, or - for standard input.")
    settings = merge(literal_defaults(schema().keys.values()), given)
    from ..embedding_outputs import check_output  # imports numpy

    output = check_output(settings.pop("output"))
    family = family_of_checkpoint(settings["checkpoint"])
    if family != "m2_bert":
        raise ValueError(f"checkpoint={settings['checkpoint']} is a {family} model; embed needs an m2_bert encoder.")
    inputs = read_inputs(sources, **{key: settings.pop(key) for key in _OF_INPUTS})
    from ..embedding_run import embed_inputs  # imports torch

    result = embed_inputs(inputs, output, **settings)
    cut = f", {result.num_truncated} of them cut," if result.num_truncated else ""
    sys.stdout.write(f"{result.shape[0]} texts{cut} as vectors of {result.shape[1]} dimensions in {output}\n")
