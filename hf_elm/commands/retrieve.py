"""usage: hf-elm retrieve checkpoint=PATH_OR_ID [task=...] [key=value ...] [--key value ...]

How well an M2-BERT encoder finds documents: nDCG@10, recall and reciprocal rank with standard errors over queries, BM25 beside it.
In the folder of a run the held-out pairs of its own corpus are searched unless task says otherwise.

  hf-elm retrieve checkpoint=runs/m2_bert_retrieval
  hf-elm retrieve checkpoint=my-encoder task=beir/scifact output=scifact.json
  hf-elm retrieve checkpoint=my-encoder task=passkey lengths=[2048,8192,32768] depths=[0,0.5,1] documents=20
  hf-elm retrieve checkpoint=my-encoder task=needle extend_to=8192 extend_mode=prefix lengths=[512,2048,8192]
"""

import sys
from pathlib import Path
from typing import Any

from ..command_schemas import retrieval_schema, training_schema
from ..families import family_of_checkpoint
from ..recipes import literal_defaults, merge, read_recipe, split_arguments
from ..run_folder import RECIPE, require_writable
from .train import named


schema = retrieval_schema
_OF_THE_RUN = {
    "data.corpus": "task",
    "data.held_out_fraction": "held_out_fraction",
    "data.sequence_length": "max_length",
    "train.query_prompt": "query_prompt",
    "train.document_prompt": "document_prompt",
    "seed": "seed",
}


def run(arguments: list[str]) -> None:
    """Load, embed, rank, print, write.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals or not given.get("checkpoint"):
        raise ValueError("retrieve takes key=value pairs, first of all checkpoint=<folder or Hub id>.")
    output = given.get("output")
    if output and Path(output).exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    if output:
        require_writable(output, "output")
    family = family_of_checkpoint(given["checkpoint"])
    if family != "m2_bert":
        raise ValueError(f"checkpoint={given['checkpoint']} is a {family} model; retrieval needs an m2_bert encoder.")
    own = _run_settings(given["checkpoint"])
    other_task = given.get("task") not in (None, own.get("task"))
    if other_task or given.get("extend_to") is not None:  # the run's own length is of its own task and positions
        own.pop("max_length", None)
    settings = merge(literal_defaults(schema().keys.values()), own, given)
    from ..checkpoint_retrieval import evaluate_checkpoint  # imports torch

    settings.pop("output")
    result = evaluate_checkpoint(**settings)
    sys.stdout.write(f"{result}\n")
    if output:
        result.to_json(output)


def _run_settings(checkpoint: str) -> dict[str, Any]:
    """What the run that wrote ``checkpoint`` trained on, if it trained for retrieval; nothing for other folders and Hub ids."""
    folder = Path(checkpoint)
    for path in (folder / RECIPE, folder.resolve().parent / RECIPE):
        if folder.is_dir() and path.is_file() and named([str(path)], "objective") == "retrieval":
            recipe = read_recipe(path, training_schema("m2_bert", "retrieval"))
            return {key: recipe[name] for name, key in _OF_THE_RUN.items() if name in recipe}
    return {}
