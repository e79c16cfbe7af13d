"""usage: hf-elm prepare output=FOLDER [key=value ...] [--key value ...]

Tokenise and pack a corpus once, in parallel, into memory-mapped shards to train from. An interrupted preparation goes on by the
same command: finished shards stay. manifest.json counts documents, bytes, tokens and rows.

  hf-elm prepare output=prepared/fineweb data.corpus=HuggingFaceFW/fineweb data.config_name=sample-10BT \\
      data.sequence_length=1024 data.strategy=greedy tokenizer.path=gpt2 num_proc=16
  hf-elm train monarc_163m_fineweb data.corpus=prepared/fineweb
"""

import sys
from typing import Any

from ..command_schemas import preparation_schema
from ..recipes import literal_defaults, merge, split_arguments


schema = preparation_schema


def run(arguments: list[str]) -> None:
    """Resolve the settings, write the shards, print the counts.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals or not given.get("output"):
        raise ValueError("prepare takes key=value pairs, first of all output=<folder>; see `hf-elm prepare --help`.")
    settings: dict[str, Any] = merge(literal_defaults(schema().keys.values()), given)
    own = {name: settings.pop(name) for name in ("output", "num_proc", "progress")}
    from ..prepared_shards import prepare_shards  # imports torch

    manifest = prepare_shards(settings, **own)
    for part, counts in manifest["parts"].items():
        numbers = ", ".join(f"{counts[key]:,} {key}" for key in ("documents", "bytes", "tokens", "rows"))
        sys.stdout.write(f"{part}: {numbers} in {len(counts['shards'])} shards\n")
