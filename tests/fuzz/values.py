"""Values that a user, a generator of configurations or a broken disk may write where another was meant."""

import math
import string

from hypothesis import strategies as st


HUGE = (2**31, 2**32, 2**63, 2**64, 10**30)
WHOLE = st.sampled_from((-(2**63), -1000, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64))
FLOATS = st.sampled_from(
    (math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e-300, 1e-9, 0.5, 0.999, 1.0, 1.5, 1e9, 1e308)
)
WORDS = st.sampled_from(
    (
        "",
        " ",
        "None",
        "null",
        "true",
        "no",
        "1",
        "1e5",
        "0.1",
        "auto",
        "sdpa",
        "float16",
        "banana",
        "größe",
        "日本",
        "\x00",
        "a\nb",
        "${oc.env:HOME}",
        "${missing}",
        "${",
        "{}",
        "[",
        "../../x",
        "a/b",
        "stdlib",
        "tiny",
        "\ud800",
        "١",
        "x" * 300,
    )
)
TEXT = WORDS | st.text(alphabet=string.printable.replace("/", "") + "éß語\u202e\U0001f600", max_size=12)
SCALARS = st.none() | st.booleans() | WHOLE | FLOATS | WORDS | TEXT


def deep(levels: int):
    """A list in a list in a list ..."""
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(WORDS, TEXT), inner, max_size=3),
    max_leaves=6,
)
ANY_OR_HUGE = ANY | st.sampled_from(HUGE)
