"""Ways in which a file comes to be other than it was written: by a disk, an editor, another program, an attacker."""

import contextlib
import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.values import ANY_OR_HUGE, HUGE


DEEP = 100_000  # levels of nesting, past any parser's stack
ESCAPES = (
    "../../kept.txt",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../../../x.safetensors",
    "../../x--evil.Evil",
    "x\x00y",
    "user/repo--m.C",
)
Damage = Callable[[Path], None]


def written(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """The file's bytes changed by ``change``, under a name that a report can show."""

    def apply(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()) if path.is_file() else b"")

    apply.__name__ = apply.__qualname__ = name
    return Shown(name, apply)


class Shown:
    """A function whose repr says what it does."""

    def __init__(self, name: str, function: Callable):
        self.name, self.function = name, function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __repr__(self) -> str:
        return self.name


def _removed(path):
    path.unlink(missing_ok=True)


def _folder_instead(path):
    path.unlink(missing_ok=True)
    path.mkdir(exist_ok=True)


def _linked_to_itself(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


BYTES = st.one_of(
    st.integers(0, 99).map(lambda share: written(f"cut to {share} %", lambda old: old[: len(old) * share // 100])),
    st.binary(max_size=40).map(lambda new: written(f"replaced by {new!r}", lambda old: new)),
    st.integers(0, 99).map(
        lambda share: written(f"not UTF-8 at {share} %", lambda old: _inserted(old, share, b"\xff\xfe\x80"))
    ),
    st.sampled_from(
        [
            Shown("removed", _removed),
            Shown("a folder", _folder_instead),
            Shown("a link to itself", _linked_to_itself),
            written("zeros", lambda old: bytes(len(old))),
            written("nested too deep", lambda old: b"[" * DEEP),
            written("nested too deep, whole", lambda old: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
            written("twice", lambda old: old + old),
            written("with a byte order mark", lambda old: b"\xef\xbb\xbf" + old),
            written("as UTF-16", lambda old: old.decode("utf-8", "replace").encode("utf-16")),
        ]
    ),
)
CONTENTS = st.one_of(
    ANY_OR_HUGE, st.sampled_from(ESCAPES), st.sampled_from(ESCAPES).map(lambda name: {"AutoConfig": name})
)


def _inserted(old, share, new):
    place = len(old) * share // 100
    return old[:place] + new + old[place:]


def json_damage(*favourites: str) -> st.SearchStrategy[Damage]:
    """Damage to a JSON file: its bytes, or one value in it; ``favourites`` are keys at its top that are chosen more often."""
    places = st.one_of(st.integers(0, 10_000), *([st.sampled_from(favourites)] * 2 if favourites else ()))
    changed = st.builds(_value_changed, places, CONTENTS)
    lost = st.builds(_value_lost, places)
    return st.one_of(BYTES, changed, changed, changed, lost, CONTENTS.map(lambda new: _whole(new)))


def _whole(new) -> Damage:
    return written(f"the value {new!r}", lambda old: json.dumps(new).encode("utf-8", "surrogatepass"))


def _value_changed(place, new) -> Damage:
    return _edited(f"{place!r} is {new!r}", place, lambda node, key: node.__setitem__(key, copy.deepcopy(new)))


def _value_lost(place) -> Damage:
    return _edited(f"{place!r} is missing", place, lambda node, key: node.__delitem__(key))


def _edited(name: str, place: int | str, edit: Callable[[Any, Any], None]) -> Damage:
    """``edit(node, key)`` at a key of the top, or at the value of that number in the order of the file."""

    def apply(path: Path) -> None:
        if not path.is_file():  # not every model has every file
            return
        read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
        lines = path.read_text(encoding="utf-8")
        lines = lines.splitlines() if path.suffix == ".jsonl" else [lines]
        number = place % len(lines) if isinstance(place, int) else 0
        content = read(lines[number])
        nodes = [*_nodes(content)]
        node, key = (content, place) if isinstance(place, str) else nodes[place % len(nodes)]
        with contextlib.suppress(KeyError):
            edit(node, key)
        lines[number] = write(content)
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))

    return Shown(name, apply)


def _nodes(content):
    """(container, key) of every value inside, depth first."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in [*pairs]:
        yield content, key
        yield from _nodes(value)


def _header(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def apply(old: bytes) -> bytes:
        (length,) = struct.unpack("<Q", old[:8])
        header = json.loads(old[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(new)) + new + old[8 + length :]

    return apply


def _entry_changed(number, field, new):
    def change(header):
        names = [name for name in header if name != "__metadata__"]
        header[names[number % len(names)]][field] = new

    return written(f"tensor {number}: {field} is {new!r}", _header(change))


def _tensor_renamed(number, new):
    def change(header):
        names = [name for name in header if name != "__metadata__"]
        header[new] = header.pop(names[number % len(names)])

    return written(f"tensor {number} is called {new!r}", _header(change))


def _of_length(number):
    return written(f"a header of {number} bytes", lambda old: struct.pack("<Q", number) + old[8:])


WEIGHTS = st.one_of(
    BYTES,
    st.sampled_from((0, 1, 2**20, 2**62, 2**64 - 1)).map(_of_length),
    st.builds(_entry_changed, st.integers(0, 50), st.sampled_from(("dtype", "shape", "data_offsets")), ANY_OR_HUGE),
    st.builds(
        _entry_changed, st.integers(0, 50), st.just("dtype"), st.sampled_from(("F64", "F16", "I32", "BOOL", "F4"))
    ),
    st.builds(
        _entry_changed,
        st.integers(0, 50),
        st.just("shape"),
        st.sampled_from(([], [1], [2**40, 2**40], [-1, 4], [HUGE[2]])),
    ),
    st.builds(_tensor_renamed, st.integers(0, 50), st.sampled_from(("banana", "", "../x", "lm.model"))),
)


def copied(source: Path, target: Path) -> Path:
    """A copy of a saved folder, for a case to damage."""
    shutil.copytree(source, target, symlinks=True)
    return target
