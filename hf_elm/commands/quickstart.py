"""usage: hf-elm quickstart [model=monarc|nano-ebm] [key=value ...] [--key value ...]

The whole story in a few minutes on a CPU: small models are trained on real text and compared on held-out files by exact
likelihoods. The result is exported, reloaded in a process that cannot import hf_elm, and sampled there.

model=monarc (default): a language model is trained and frozen, an energy is trained on top of it, and the two are compared,
beside the same language model trained on for the CPU time that the energy took.
model=nano-ebm: predictions before and after thinking (system 1 and 2), beside a GPT of as many parameters and that GPT trained
for the nanoEBM's CPU time; a picture of the energy landscape.

  hf-elm quickstart
  hf-elm quickstart corpus=my_texts/ output_dir=runs/mine prompt="Once upon"
  hf-elm quickstart --model nano-ebm
"""

from .. import run_folder
from ..command_schemas import quickstart_schema
from ..families import find_family, resolve
from ..recipes import literal_defaults, merge, split_arguments


schema = quickstart_schema


def run(arguments: list[str]) -> None:
    """Check the settings, claim the folder, run.

    Raises:
        ValueError: unknown keys, those of another model's story, wrong types, positional arguments.
        FileExistsError: the output folder is not empty.
    """
    every = schema()
    positionals, given = split_arguments(arguments, every)
    if positionals:
        raise ValueError(f"quickstart takes key=value pairs only, got {positionals[0]}; --help lists the keys.")
    model = given.get("model", every.keys["model"].default.strip("'"))
    own = schema(model)
    for name in given:
        if name not in own.keys:
            raise ValueError(
                f"{name} is a key of {every.keys[name].group}, not of model={model}; --help lists the keys of both."
            )
    settings = merge(literal_defaults(own.keys.values()), given)
    del settings["model"]
    run_folder.require_empty(settings["output_dir"], "output_dir")
    resolve(find_family(model).quickstart)(**settings).run()  # imports torch
