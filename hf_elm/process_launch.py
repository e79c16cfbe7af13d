"""``launch=torchrun|accelerate``: the same command again, as several processes on existing engines."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

from .recipe_keys import Key, Schema


PACKAGE = Path(__file__).resolve().parent
LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}  # name -> module
COUNTS = {  # options that count processes or machines -> words that are accepted in the place of a number
    "nproc_per_node": ("gpu", "cpu", "auto", "xpu"),
    "nnodes": (),
    "num_processes": (),
    "num_machines": (),
}
RENDEZVOUS = ("nnodes", "rdzv_endpoint", "rdzv_backend", "rdzv_id", "master_addr", "master_port", "standalone")
STARTED_BY = (
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_MIXED_PRECISION",
    "LOCAL_RANK",
)  # in the environment of launched processes
FSDP_LAYERS = {"nano_ebm": "Block", "m2_bert": "M2BertLayer"}  # family -> class that is sharded on its own
KEYS = (
    Key("launch", "str | None", "None", "start this command as several processes: torchrun or accelerate.", "launch"),
    Key(
        "launch.config",
        "str | None",
        "ddp",
        "accelerate only: a config file, or the name of a bundled one (ddp, fsdp2, deepspeed_zero2, zero3, tpu, multi_node).",
        "launch",
    ),
    Key(
        "launch.<option>",
        "str | int",
        "none",
        "any option of the launcher itself, e.g. launch.nproc_per_node=8 (torchrun), launch.num_processes=8 (accelerate); what "
        "follows a lone -- is passed on as it is.",
        "launch",
    ),
)
_GIVEN = re.compile(r"^(?:--)?launch(?:\.([\w.\-]+))?(?:=(.*))?$", re.DOTALL)


@dataclass
class LaunchRequest:
    """What the command line says about launching.

    Attributes:
        launcher: key of `LAUNCHERS`.
        options: names and values of the launcher's options.
        config: accelerate's config file.
        passed_on: further arguments of the launcher.
    """

    launcher: str
    options: dict[str, str] = field(default_factory=dict)
    config: Path | None = None
    passed_on: list[str] = field(default_factory=list)


def with_launch_keys(schema: Schema) -> Schema:
    """``schema`` with the launch keys, for the help; in recipes they are unknown, because they say nothing about a run."""
    return Schema([*schema.keys.values(), *KEYS], schema.aliases)


def split_launch(arguments: Sequence[str]) -> tuple[LaunchRequest | None, list[str]]:
    """The launch keys among ``arguments`` (None: there are none), and the other arguments.

    Raises:
        ValueError: unknown launcher, options without a launcher or with a value out of range, a launch within a launch.
        FileNotFoundError: no such accelerate config.
    """
    given, rest, queue = {}, [], list(arguments)
    passed_on = None
    if "--" in queue:
        cut = queue.index("--")
        queue, passed_on = queue[:cut], queue[cut + 1 :]
    while queue:
        argument = queue.pop(0)
        match = _GIVEN.match(argument)
        if match is None or not ("=" in argument or argument.startswith("--")):
            rest.append(argument)
            continue
        name, value = (match.group(1) or "launcher").replace("-", "_"), match.group(2)
        if value is None:
            if not queue or queue[0].startswith("--"):
                raise ValueError(f"{argument} needs a value, for example --launch torchrun.")
            value = queue.pop(0)
        given[name] = value
    launcher = given.pop("launcher", None)
    if launcher is None or launcher.lower() in ("none", "null"):
        if given or passed_on is not None:
            what = f"launch.{next(iter(given))}" if given else "--"
            raise ValueError(f"{what} is for a launcher: add launch=torchrun or launch=accelerate, or leave it out.")
        return None, rest
    return _request(launcher, given, passed_on or []), rest


def _request(launcher, options, passed_on):
    if launcher not in LAUNCHERS:
        raise ValueError(f'launch must be one of {", ".join(LAUNCHERS)}, got "{launcher}".')
    if started := next((name for name in STARTED_BY if name in os.environ), None):
        raise ValueError(
            f"launch={launcher} inside a process that a launcher has started ({started} is set); leave launch out there."
        )
    for name, words in COUNTS.items():
        value = options.get(name)
        if value is None or value in words or (name == "nnodes" and re.fullmatch(r"[1-9]\d*:[1-9]\d*", value)):
            continue
        if not re.fullmatch(r"[1-9]\d*", value):
            also = f" or one of {', '.join(words)}" if words else ""
            raise ValueError(f"launch.{name} must be an integer of at least 1{also}, got {value}.")
    config = options.pop("config", None)
    if launcher == "accelerate":
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError('launch=accelerate needs the package accelerate: pip install "hf_elm[train]".')
        config = find_launch_config("ddp" if config is None else config)
    elif config is not None:
        raise ValueError("launch.config is accelerate's; with launch=torchrun leave it out, or use launch=accelerate.")
    return LaunchRequest(launcher, options, config, passed_on)


def bundled_launch_configs() -> dict[str, Path]:
    """Name -> file of accelerate's configs that come with the package."""
    checkout = PACKAGE.parent / "recipes"
    folder = checkout if (PACKAGE.parent / "setup.py").is_file() and checkout.is_dir() else PACKAGE / "recipe_files"
    return {path.stem: path for path in sorted((folder / "accelerate").glob("*.yaml"))}


def find_launch_config(name: str) -> Path:
    """The config file at path ``name``, or the bundled one of that name.

    Raises:
        FileNotFoundError: neither exists.
    """
    bundled = bundled_launch_configs()
    if Path(name).is_file():
        return Path(name)
    if name in bundled:
        return bundled[name]
    raise FileNotFoundError(
        f'launch.config "{name}" is neither a file nor one of the bundled configs: {", ".join(bundled)}.'
    )


def launch_command(
    request: LaunchRequest, command: str, arguments: Sequence[str], layer: str | None = None
) -> list[str]:
    """The words of the process that starts ``hf-elm command arguments`` on every rank.

    Args:
        layer: class that FSDP shards on its own, where neither the options nor the config name one.

    Raises:
        ValueError: torchrun without a number of processes on a machine without GPUs.
    """
    options = dict(request.options)
    module = "hf_elm"
    if request.launcher == "torchrun":
        _complete_torchrun(options, request.passed_on)
    else:
        config = yaml.safe_load(request.config.read_text(encoding="utf-8")) or {}
        named = (config.get("fsdp_config") or {}).get("fsdp_transformer_layer_cls_to_wrap")
        if config.get("distributed_type") == "FSDP" and layer and not named:
            options.setdefault("fsdp_transformer_layer_cls_to_wrap", layer)
        options = {"config_file": str(request.config)} | options
        if config.get("distributed_type") in ("XLA", "TPU"):
            module = "hf_elm.__main__"  # there accelerate imports the module and calls its function main
    words = [sys.executable, "-m", LAUNCHERS[request.launcher]]
    for name, value in options.items():
        words += [f"--{name}"] if value in ("", "true") else [f"--{name}", value]
    return [*words, *request.passed_on, "-m", module, command, *arguments]


def _complete_torchrun(options, passed_on):
    """One machine and all its GPUs, unless said otherwise."""
    spelled = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in passed_on if word.startswith("-")}
    if not spelled & set(RENDEZVOUS) and not options.keys() & set(RENDEZVOUS):
        options["standalone"] = ""
    if "nproc_per_node" in options or "nproc_per_node" in spelled:
        return
    import torch

    if not torch.cuda.device_count():
        raise ValueError("launch=torchrun needs launch.nproc_per_node=<processes> on a machine without GPUs.")
    options["nproc_per_node"] = str(torch.cuda.device_count())


def launch(request: LaunchRequest, command: str, arguments: Sequence[str], layer: str | None = None) -> NoReturn:
    """Become the launcher: signals and the exit status are its own."""
    words = launch_command(request, command, arguments, layer)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(words[0], words)
