"""usage: hf-elm export CHECKPOINT OUT

Write a self-contained folder, ready for the Hub: safetensors, config with the full auto_map, the model's code, tokenizer and
generation config. A fresh interpreter that cannot import hf_elm then loads it, compares its outputs and generates; OUT appears
only when that went well. OUT must not exist.

  hf-elm export runs/first exported/
"""

import sys

from ..families import family_of_checkpoint
from ..run_folder import require_empty


def run(arguments: list[str]) -> None:
    """Check the two arguments, export.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the messages.
    """
    if len(arguments) != 2:
        raise ValueError(f"export takes CHECKPOINT OUT, got {len(arguments)} arguments; see `hf-elm export --help`.")
    checkpoint, out = arguments
    require_empty(out, "OUT")
    family_of_checkpoint(checkpoint)
    from ..hub_folder import export_checkpoint  # imports torch

    export_checkpoint(checkpoint, out)
    sys.stdout.write(f"exported {checkpoint} to {out}: loads and generates in a process without hf_elm\n")
