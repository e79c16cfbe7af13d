"""usage: hf-elm export CHECKPOINT OUT [--sentence-transformers] [key=value ...]

Write a self-contained folder, ready for the Hub: safetensors, config with the full auto_map, the model's code, tokenizer,
generation config, evaluation results and a model card (your own README.md is kept). A fresh interpreter that cannot import
hf_elm then loads it, compares its outputs and generates; OUT appears only when that went well. OUT must not exist. All heads
of an M2-BERT encoder are kept, and an adapter is merged into its base; with --sentence-transformers the folder is for
SentenceTransformer(OUT, trust_remote_code=True) as well, and its vectors are compared too. `hf-elm publish` sends it to the Hub.

  hf-elm export runs/first exported/
  hf-elm export m2-bert-2k-retrieval embedder/ --sentence-transformers
"""

import sys

from ..command_schemas import export_schema
from ..families import family_of_checkpoint
from ..recipes import literal_defaults, merge, split_arguments
from ..run_folder import require_empty


schema = export_schema


def run(arguments: list[str]) -> None:
    """Check the arguments, export.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    places, given = split_arguments(arguments, schema())
    if len(places) != 2:
        raise ValueError(f"export takes CHECKPOINT OUT, got {len(places)} arguments; see `hf-elm export --help`.")
    checkpoint, out = places
    require_empty(out, "OUT")
    family = family_of_checkpoint(checkpoint)
    settings = merge(literal_defaults(schema().keys.values()), given)
    if settings["sentence_transformers"] and family != "m2_bert":
        raise ValueError(f"sentence_transformers=true needs an m2_bert encoder, and {checkpoint} is a {family} model.")
    unused = [key for key in given if key != "sentence_transformers"]
    if unused and not settings["sentence_transformers"]:
        raise ValueError(f"{unused[0]} says how to embed; it needs sentence_transformers=true.")
    from ..hub_folder import export_checkpoint  # imports torch

    export_checkpoint(checkpoint, out, **settings)
    proof = f"loads and {'runs' if family == 'm2_bert' else 'generates'} in a process without hf_elm"
    if settings["sentence_transformers"]:
        proof += ", and gives the same vectors by SentenceTransformer"
    sys.stdout.write(f"exported {checkpoint} to {out}: {proof}\n")
