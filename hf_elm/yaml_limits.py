"""YAML that a parser should not build: nested past its stack, or of aliases that multiply past the memory.

The parser in C recurses without a limit, and ends the process. Events come from it one by one, whatever the nesting.
"""

import yaml


DEEPEST = 100  # levels; a recipe has four
MOST = 100_000  # values, with every alias counted as what it repeats
_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def refuse_endless_yaml(text: str, origin: str) -> None:
    """Raise ValueError, naming ``origin``, for text that is nested deeper than `DEEPEST` or means more than `MOST` values.

    Raises:
        yaml.YAMLError: no YAML.
    """
    sizes: dict[str, int] = {}  # anchor -> values below it
    opened: list[list] = [[None, 0]]  # anchor and values so far, of each level
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, _OPENING):
            opened.append([event.anchor, 1])
        elif isinstance(event, _CLOSING):
            anchor, size = opened.pop()
            sizes[anchor] = size
            opened[-1][1] += size
        elif isinstance(event, yaml.AliasEvent):
            opened[-1][1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            opened[-1][1] += 1
        if len(opened) > DEEPEST:
            raise ValueError(f"{origin} is nested more than {DEEPEST} levels deep; settings are not.")
        if opened[-1][1] > MOST:
            raise ValueError(
                f"{origin} means more than {MOST:,} values, by aliases of aliases; write out what you need."
            )
