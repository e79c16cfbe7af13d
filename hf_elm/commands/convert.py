"""usage: hf-elm convert FAMILY SOURCE OUT

Convert a checkpoint of the original code (a folder with config.json and state_dict.pt or model.safetensors) to a folder that
from_pretrained reads. OUT must not exist. Pickles are read with weights_only, and refused where that is not possible.

  hf-elm convert monarc original_checkpoint/ converted/
  hf-elm convert m2-bert m2-bert-2048.pt converted/
"""

import sys
from pathlib import Path

from ..families import find_family, resolve
from ..run_folder import require_empty


def run(arguments: list[str]) -> None:
    """Check the three arguments, convert.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the messages.
    """
    if len(arguments) != 3:
        raise ValueError(
            f"convert takes FAMILY SOURCE OUT, got {len(arguments)} arguments; see `hf-elm convert --help`."
        )
    family, source, out = arguments
    converter = find_family(family).converter
    if not Path(source).exists():
        raise FileNotFoundError(f"SOURCE={source} does not exist.")
    require_empty(out, "OUT")
    resolve(converter)(source, out)
    sys.stdout.write(f"converted {source} to {out}\n")
