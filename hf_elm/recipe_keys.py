"""Which keys a recipe may have, with types, defaults and meanings, read from source files without importing them.

The ``train`` keys are the fields of ``TrainingArguments``; importing it takes seconds, parsing its file a few milliseconds.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "None": type(None), "dict": dict, "list": list}


@dataclass(frozen=True)
class Key:
    """One valid key: dotted ``name``, ``annotation`` and ``default`` as written in the source, ``help``, ``group``."""

    name: str
    annotation: str = "Any"
    default: str = "None"
    help: str = ""
    group: str = ""

    @property
    def kinds(self) -> set[str]:
        """The parts of the annotation: ``"dict[str, Any] | str | None"`` gives {dict, str, None}."""
        return set(re.sub(r"\[[^|]*\]", "", self.annotation.replace(" ", "")).split("|"))

    @property
    def is_free(self) -> bool:
        """Whether any nested key may follow, as in ``model.text_config.hidden_size``."""
        return "dict" in self.kinds

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of the annotated type; names that only their module knows (enums) pass."""
        if self.kinds - set(_TYPES) and "str" not in self.kinds:
            return True
        if isinstance(value, bool):
            return "bool" in self.kinds
        return any(isinstance(value, _TYPES[kind]) for kind in self.kinds & set(_TYPES))

    @property
    def takes_plain_text(self) -> bool:
        """Whether what stands on the command line is the value itself, as for a prompt, and not YAML."""
        return "str" in self.kinds and not self.kinds & {"int", "float", "bool", "dict", "list"}


class Schema:
    """The valid keys of one command.

    Args:
        keys: the keys.
        aliases: other spellings -> key names.
    """

    def __init__(self, keys: Iterable[Key], aliases: dict[str, str] | None = None):
        self.keys = {key.name: key for key in keys}
        self.aliases = aliases or {}

    def find(self, name: str, origin: str) -> tuple[str, Key]:
        """The canonical dotted name that ``name`` spells (alias, dashes), and its key.

        Raises:
            ValueError: no such key; the message names the nearest one and ``origin``, where it was written.
        """
        name = name.replace("-", "_")
        name = self.aliases.get(name, name)
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            key = self.keys.get(".".join(parts[:length]))
            if key is not None and (length == len(parts) or key.is_free):
                return name, key
        raise ValueError(f'unknown key "{name}" ({origin}); {self._advice(name)}')

    def _advice(self, name):
        leaf = name.rsplit(".", 1)[-1]
        known = [*self.keys, *self.aliases]
        same_leaf = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
        by_leaf = difflib.get_close_matches(leaf, [key.rsplit(".", 1)[-1] for key in known], n=1, cutoff=0.75)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7) or [
            key for key in known if by_leaf and key.rsplit(".", 1)[-1] == by_leaf[0]
        ]
        nearest = (same_leaf or close or difflib.get_close_matches(name, known, n=1, cutoff=0.0) or [""])[0]
        return f'the nearest valid key is "{nearest}". `--help` lists them all.'

    def groups(self) -> dict[str, list[Key]]:
        """Keys by the heading they stand under in the help."""
        groups: dict[str, list[Key]] = {}
        for key in self.keys.values():
            groups.setdefault(key.group, []).append(key)
        return groups


def section(path: str, prefix: str = "", group: str = "", exclude: Iterable[str] = ()) -> list[Key]:
    """The fields of the class or function ``"package.module:name"`` as keys that start with ``prefix``."""
    keys = [replace(key, name=prefix + key.name, group=group) for key in read_fields(path)]
    return [key for key in keys if key.name.removeprefix(prefix) not in set(exclude)]


def read_fields(path: str) -> list[Key]:
    """The fields of a dataclass, of a class's ``__init__`` or of a function, in order, by parsing its source file."""
    module, name = path.split(":")
    tree = ast.parse(_source_file(module).read_text(encoding="utf-8"))
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    docs = _argument_docs(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        if fields:
            return [_from_assignment(item, docs) for item in fields if not item.target.id.startswith("_")]
        node = next(item for item in node.body if getattr(item, "name", None) == "__init__")
    return _from_function(node, docs)


def _source_file(module):
    if module.split(".")[0] == "hf_elm":  # our packages are light, and mapped from several folders
        return Path(importlib.util.find_spec(module).origin)
    package, *rest = module.split(".")
    return Path(importlib.util.find_spec(package).origin).parent.joinpath(*rest).with_suffix(".py")


def _from_assignment(item, docs):
    name, default, text = item.target.id, item.value, docs.get(item.target.id, "")
    if isinstance(default, ast.Call) and getattr(default.func, "id", "") == "field":
        options = {keyword.arg: keyword.value for keyword in default.keywords}
        default = options.get("default", options.get("default_factory"))
        if not text and isinstance(options.get("metadata"), ast.Dict):
            text = _metadata_help(options["metadata"])
    return Key(name, ast.unparse(item.annotation), ast.unparse(default) if default else "required", text)


def _metadata_help(metadata):
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if getattr(key, "value", None) == "help":
            return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
    return ""


def _from_function(node, docs):
    arguments = node.args.posonlyargs + node.args.args
    defaults = [None] * (len(arguments) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(arguments, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return [
        Key(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "Any",
            ast.unparse(default) if default else "required",
            docs.get(argument.arg, ""),
        )
        for argument, default in pairs
        if argument.arg not in ("self", "cls")
    ]


def _argument_docs(docstring):
    """Name -> text of the entries under "Args:" or "Parameters:"; both ``name: text`` and ``name (type): text``."""
    match = re.search(r"^(?:Args|Arguments|Parameters):\s*\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in (match.group(1) if match else "").splitlines():
        entry = re.match(r"    (\w+(?:\s*,\s*\w+)*)\s*(?:\(.*\))?:(?:\s+(.*))?$", line)
        if entry:
            names = re.split(r"\s*,\s*", entry.group(1))
            docs |= dict.fromkeys(names, (entry.group(2) or "").strip())
        elif line.startswith("     ") or not line.strip():
            docs |= {name: f"{docs[name]} {line.strip()}".strip() for name in names}
        else:  # a heading among the entries
            names = []
    return docs
