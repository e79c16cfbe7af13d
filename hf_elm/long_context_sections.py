"""The keys of ``hf-elm retrieve`` about longer rows, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass


@dataclass
class LongerRowsSection:
    """Documents beyond what the encoder was trained to read.

    Args:
        extend_to: give the encoder room for so many tokens first (`extend_context`); the saved model stays as it is. Missing: its
            own positions.
        extend_mode: how: prefix (filters keep their old taps and go on), stretch (they spread over the new length) or tile.
    """

    extend_to: int | None = None
    extend_mode: str = "prefix"
