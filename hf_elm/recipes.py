"""Recipes: a YAML file plus ``key=value`` or ``--key value`` overrides, checked against the valid keys and merged.

The command line wins over the file, the file over the defaults. Every value knows where it was written, so that an error
can say so.
"""

import ast
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .recipe_keys import Key, Schema
from .yaml_limits import refuse_endless_yaml


_HERE = Path(__file__).resolve().parent
_OVERRIDE = re.compile(r"^(?:--)?([A-Za-z_][\w.\-]*)=(.*)$", re.DOTALL)
_COMMAND_LINE = "command line"
_FLAG_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    checkout = _HERE.parent / "recipes"
    folder = checkout if (_HERE.parent / "setup.py").is_file() and checkout.is_dir() else _HERE / "recipe_files"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The recipe file at path ``name``, or the bundled recipe of that name.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name)
    if os.path.isfile(name):  # False for what can be no name of a file, such as a long value
        return path
    bundled = bundled_recipes()
    if path.stem in bundled and (name in (path.stem, path.name) or path.parts[0] == "recipes"):
        return bundled[path.stem]
    raise FileNotFoundError(f'recipe "{name}" is neither a file nor one of the bundled recipes: {", ".join(bundled)}.')


def split_arguments(arguments: Sequence[str], schema: Schema) -> tuple[list[str], dict[str, Any]]:
    """The positional arguments, and dotted key -> value of the overrides in both spellings.

    ``--flag`` alone is true when the key is a bool. A value is YAML, unless the key is plain text.

    Raises:
        ValueError: unknown key, missing value, wrong type.
    """
    positionals: list[str] = []
    values: dict[str, Any] = {}
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if match := _OVERRIDE.match(argument):
            name, key = schema.find(match.group(1), _COMMAND_LINE)
            text = match.group(2)
        elif argument.startswith("--"):
            name, key = schema.find(argument[2:], _COMMAND_LINE)
            text = _next_value(name, key, queue)
        else:
            positionals.append(argument)
            continue
        values[name] = _checked(name, key, _parse(text, name, key), _COMMAND_LINE)
    return positionals, values


def _next_value(name, key, queue):
    if "bool" in key.kinds and not (queue and queue[0].lower() in _FLAG_WORDS):
        return "true"
    if not queue or queue[0].startswith("--"):
        raise ValueError(f"--{name} needs a value, for example --{name} {key.default.strip(chr(39))}.")
    return queue.pop(0)


def _parse(text, name, key):
    """The value that ``text`` on the command line means for ``key``."""
    nested = name != key.name
    if key.kinds <= {"bool", "None"} and text.lower() in _FLAG_WORDS:
        return _FLAG_WORDS[text.lower()]
    if repr(text) == key.default:  # "none" is a word where it is the default, as in train.report_to
        return text
    if text.lower() in ("null", "none") and "None" in key.kinds:
        return None
    if key.takes_plain_text and not nested:
        return text
    try:
        refuse_endless_yaml(text, name)
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (OmegaConfBaseException, YAMLError, UnicodeError):  # the last: bytes that are no UTF-8
        value = text
    if not nested and "str" in key.kinds and not key.accepts(value):
        return text
    return value


def _checked(name, key, value, origin):
    if name != key.name or key.accepts(value):
        return value
    quote = " (YAML reads yes/no/on/off as a bool: put it in quotes)" if isinstance(value, bool) else ""
    raise ValueError(f"{name}={value!r} ({origin}) must be of type {key.annotation}{quote}.")


def read_recipe(path: str | Path, schema: Schema) -> dict[str, Any]:
    """Dotted key -> value of a YAML recipe.

    Raises:
        FileNotFoundError, ValueError: no such recipe, not YAML, not a mapping, unknown key, wrong type.
    """
    path = find_recipe(str(path))
    try:
        refuse_endless_yaml(path.read_text(encoding="utf-8"), str(path))
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold "section: {{key: value}}" pairs, got a {type(content).__name__}.')
    values = {}
    for name, value in _flatten(content, schema):
        canonical, key = schema.find(name, str(path))
        values[canonical] = _checked(canonical, key, value, str(path))
    return values


def _flatten(content, schema, prefix=""):
    """Dotted name, value pairs; a mapping is taken apart unless a key of that very name takes a whole mapping."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, schema, f"{name}.")
        elif value is not None or name in schema.keys:  # `train:` with nothing below it says nothing
            yield name, value


def literal_defaults(keys: Iterable[Key]) -> dict[str, Any]:
    """Dotted key -> default, for keys whose default is written as a literal."""
    return {key.name: ast.literal_eval(key.default) for key in keys}


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested settings from layers of dotted key -> value; later layers win."""
    settings: dict[str, Any] = {}
    for name, value in (item for layer in layers for item in layer.items()):
        *parents, leaf = name.split(".")
        node = settings
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = value
    return settings
