"""What a page accepts: texts of bounded length and numbers in their ranges, refused with one clear sentence."""

import math
from dataclasses import dataclass


MAX_PROMPT = 20_000  # characters
MAX_NEW_TOKENS = 256
MAX_CANDIDATES = 64
MAX_THINK_STEPS = 16
MAX_SCORED_TOKENS = 1024
MAX_DOCUMENTS = 500
MAX_DOCUMENT = 20_000  # characters
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class NumberRule:
    """A number from ``low`` to ``high``, both included.

    Args:
        whole: it must be an integer.
    """

    low: float
    high: float
    whole: bool = True


RULES = {
    "number of candidates": NumberRule(1, MAX_CANDIDATES),
    "temperature": NumberRule(0.05, 5.0, whole=False),
    "new tokens": NumberRule(1, MAX_NEW_TOKENS),
    "seed": NumberRule(0, MAX_SEED),
    "thinking steps": NumberRule(1, MAX_THINK_STEPS),
    "top k": NumberRule(0, 1_000_000),
    "results": NumberRule(1, 50),
}


def checked_number(name: str, value) -> int | float:
    """``value`` as the number that ``name`` calls for.

    Raises:
        ValueError: missing, not a number, not whole where it must be, or out of range.
    """
    rule = RULES[name]
    kind = "a whole number" if rule.whole else "a number"
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not rule.low <= value <= rule.high or (rule.whole and value != int(value)):
        raise ValueError(f"{name} must be {kind} from {rule.low:g} to {rule.high:g}, got {value!r}.")
    return int(value) if rule.whole else float(value)


def checked_text(name: str, value, limit: int, empty: bool = False) -> str:
    """``value`` as text of at most ``limit`` characters.

    Raises:
        ValueError: no text, too long, or blank where ``empty`` is False.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {type(value).__name__}.")
    if len(value) > limit:
        raise ValueError(f"{name} has {len(value):,} characters; at most {limit:,} are taken here. Shorten it.")
    if not empty and not value.strip():
        raise ValueError(f"{name} is empty; type some text.")
    return value


def room_for(prompt_tokens: int, new_tokens: int, positions: int | None) -> int:
    """How many tokens can follow a prompt, at most ``new_tokens``: those that the model has positions for."""
    return new_tokens if positions is None else min(new_tokens, positions - prompt_tokens)
