"""usage: hf-elm publish DIR user/name [--private] [--revision BRANCH] [--dry-run] [--message TEXT] [key=value ...]

Send the model in DIR to the Hub in one commit: weights, full code, tokenizer, generation config, model card and evaluation
results. A run's folder or checkpoint is exported first, so that nothing else of it leaves; any other folder is published as it
is. Either way a fresh interpreter that cannot import hf_elm loads it first. Pickled weights, links, paths that lead out of
the folder and code that imports more than torch, transformers and the standard library are refused. Your own README.md is
published as it is, one that was edited on the Hub is kept; DIR itself is not changed. An adapter (PEFT) is published as one,
beside the base that it names, or merged into it.

  hf-elm publish runs/first user/name --dry-run
  hf-elm publish runs/first user/name --private license=apache-2.0
  hf-elm publish runs/lora user/name-lora base=user/name
"""

import sys

from ..command_schemas import publish_schema
from ..hub_contents import HubFile
from ..recipes import literal_defaults, merge, split_arguments


schema = publish_schema


def run(arguments: list[str]) -> None:
    """Check the arguments, publish, say what happened.

    Raises:
        ValueError, FileNotFoundError, OSError: see the messages.
    """
    places, given = split_arguments(arguments, schema())
    if len(places) != 2:
        raise ValueError(f"publish takes DIR user/name, got {len(places)} arguments; see `hf-elm publish --help`.")
    settings = merge(literal_defaults(schema().keys.values()), given)
    from ..publishing import publish  # imports huggingface_hub

    publish(*places, report=sys.stdout.write, list_files=_list_files, **settings)


def _list_files(files: list[HubFile]) -> str:
    """One line per file with its size, and the total."""
    width = max(len(file.name) for file in files)
    lines = [f"  {file.name:<{width}}  {_size(file.size):>10}" for file in files]
    return "\n".join([*lines, f"  {len(files)} files, {_size(sum(file.size for file in files))}", ""])


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
