"""N-best lists: for one context the candidate texts of a first pass, such as a recogniser, a translator or a sampler.

One JSON object per line:

    {"id": "utt7", "context": "", "candidates": [{"text": "their house", "score": -3.1}, {"text": "there house", "score": -2.9}],
     "reference": "their house"}

``candidates`` may be plain strings. ``context`` and ``id`` may be missing, further fields are ignored. ``score`` is the first pass's (higher is better, all
candidates of a list or none of them). What is known to be right is either ``reference``, a text, or ``label``, the place of the
right candidate counted from 0.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


FIELDS = ("id", "context", "candidates", "reference", "label")


@dataclass
class NBestList:
    """One list.

    Attributes:
        origin: where it was written, for messages: ``lists.jsonl:3``.
        id: of the user, else the number of the line from 1.
        context: what stands before every candidate; may be empty.
        texts: the candidates, in the order in which they were given.
        first_pass: their scores, or None.
        reference: the right text, or None.
        label: place of the right candidate in ``texts``, or None.
    """

    origin: str
    id: int | str
    context: str
    texts: list[str]
    first_pass: list[float] | None = None
    reference: str | None = None
    label: int | None = None

    @property
    def is_judged(self) -> bool:
        """Whether it is known what is right."""
        return self.reference is not None or self.label is not None


def read_lists(path: str | Path) -> list[NBestList]:
    """The lists of a JSONL file; empty lines do not count.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no list as described above, two lists of one id, no list; file and line are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a JSONL file of n-best lists.")
    with open(path, encoding="utf-8-sig") as file:
        try:
            lines = file.read().split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it first.") from None
    lists = [list_of(_row(line, f"{path}:{n}"), f"{path}:{n}", n) for n, line in enumerate(lines, 1) if line.strip()]
    if not lists:
        raise ValueError(f"{path} holds no list; give one JSON object per line.")
    _refuse_same_ids(lists)
    return lists


def list_of(row: dict[str, Any], origin: str, number: int) -> NBestList:
    """The list that a JSON object describes.

    Raises:
        ValueError: a field of the wrong type, naming ``origin``, the field, its value and the rule.
    """
    for name in sorted(row.keys() - set(FIELDS)):
        if near := difflib.get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.75):
            raise ValueError(f'{origin}: unknown field "{name}"; is "{near[0]}" meant? Rename it otherwise.')
    context, own_id = row.get("context", ""), row.get("id", number)
    candidates, reference, label = row.get("candidates"), row.get("reference"), row.get("label")
    if not isinstance(context, str):
        raise ValueError(f"{origin}: context must be a text, got {context!r}.")
    if not isinstance(own_id, str | int) or isinstance(own_id, bool):
        raise ValueError(f"{origin}: id must be a text or a whole number, got {own_id!r}.")
    if not isinstance(candidates, list) or not candidates:
        raise ValueError(f"{origin}: candidates must be a list of at least one text, got {_shown(candidates)}.")
    texts, scores = zip(*(_candidate(each, origin, i) for i, each in enumerate(candidates)), strict=True)
    if reference is not None and not isinstance(reference, str):
        raise ValueError(f"{origin}: reference must be a text, got {_shown(reference)}.")
    if label is not None and not (type(label) is int and 0 <= label < len(texts)):
        raise ValueError(f"{origin}: label must be a place in candidates, 0 to {len(texts) - 1}, got {_shown(label)}.")
    if reference is not None and label is not None:
        raise ValueError(f"{origin}: reference and label both say what is right; give one of them.")
    given = [score is not None for score in scores]
    if any(given) and not all(given):
        raise ValueError(f"{origin}: candidate {given.index(False)} has no score, but others have; give all or none.")
    return NBestList(origin, own_id, context, list(texts), list(scores) if all(given) else None, reference, label)


def _candidate(value, origin, place) -> tuple[str, float | None]:
    text = value.get("text") if isinstance(value, dict) else value
    score = value.get("score") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text:
        raise ValueError(f"{origin}: candidate {place} must be a text, or have one in text; got {_shown(value)}.")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or score != score):
        raise ValueError(f"{origin}: the score of candidate {place} must be a number, got {_shown(score)}.")
    return text, None if score is None else float(score)


def _row(line, origin) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{origin} is not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise ValueError(f"{origin} must be a JSON object, got {_shown(row)}.")
    return row


def _refuse_same_ids(lists: Iterable[NBestList]) -> None:
    seen: dict[int | str, str] = {}
    for each in lists:
        if each.id in seen:
            raise ValueError(f"{each.origin}: id {each.id!r} is that of {seen[each.id]} too; ids must differ.")
        seen[each.id] = each.origin


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
