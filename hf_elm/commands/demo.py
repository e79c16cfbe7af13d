"""usage: hf-elm demo checkpoint=PATH_OR_ID [key=value ...] [--key value ...]

A page in the browser, on this machine, to look at a model at work. What it shows follows from the model:

  MonArc    a continuation token by token with the candidates, energies and probabilities behind each; a text's scores as colours
  nanoEBM   a prediction before and after thinking, the descent of its free energy, the landscape; generation with thinking
  M2-BERT   documents ranked by their similarity to a query; masked words filled (models with a masked-LM head)

Nothing is sent anywhere; only share=true opens a public link. Ctrl-C ends it. Needs pip install "hf_elm[demo]".

  hf-elm demo checkpoint=runs/first
  hf-elm demo checkpoint=runs/thinker port=0
"""

import importlib.util

from ..command_schemas import demo_schema
from ..families import family_of_checkpoint, find_family
from ..recipes import literal_defaults, merge, split_arguments


schema = demo_schema


def run(arguments: list[str]) -> None:
    """Check everything that can be checked at once, load, serve until interrupted.

    Raises:
        ValueError, FileNotFoundError, ImportError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals or not given.get("checkpoint"):
        raise ValueError("demo takes key=value pairs, first of all checkpoint=<folder or Hub id>.")
    settings = merge(literal_defaults(schema().keys.values()), given)
    if not 0 <= settings["port"] <= 65535:
        raise ValueError(f"port must be from 0 to 65535 (0: any free one), got {settings['port']}.")
    if not settings["host"]:
        raise ValueError("host is empty; 127.0.0.1 serves this machine alone.")
    family = family_of_checkpoint(settings["checkpoint"])
    if find_family(family).demo is None:
        raise ValueError(f"checkpoint={settings['checkpoint']} is a {family} model, which has no demo.")
    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'the package {package} is missing; install it with pip install "hf_elm[demo]".')
    from ..demo.server import free_port, serve

    free_port(settings["host"], settings["port"])  # before the model is loaded
    serve(**settings)
