"""usage: hf-elm quickstart [key=value ...] [--key value ...]

The whole story in a few minutes on a CPU: a small language model is trained on real text and frozen, an energy is trained on
top of it, and the two are compared on held-out files by exact likelihoods, beside the same language model trained on for the
CPU time that the energy took. The result is exported, reloaded in a process that cannot import hf_elm, and sampled there.

  hf-elm quickstart
  hf-elm quickstart corpus=my_texts/ output_dir=runs/mine prompt="Once upon"
"""

from .. import run_folder
from ..command_schemas import quickstart_schema
from ..recipes import literal_defaults, merge, split_arguments


schema = quickstart_schema


def run(arguments: list[str]) -> None:
    """Check the settings, claim the folder, run.

    Raises:
        ValueError: unknown keys, wrong types, positional arguments.
        FileExistsError: the output folder is not empty.
    """
    keys = schema()
    positionals, given = split_arguments(arguments, keys)
    if positionals:
        raise ValueError(f"quickstart takes key=value pairs only, got {positionals[0]}; --help lists the keys.")
    settings = merge(literal_defaults(keys.keys.values()), given)
    run_folder.require_empty(settings["output_dir"], "output_dir")
    from ..quickstart import QuickstartRun  # imports torch

    QuickstartRun(**settings).run()
