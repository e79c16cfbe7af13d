"""The keys of ``hf-elm plot`` for MonArc models, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass


@dataclass
class PlotLikelihoodSection:
    """How log Z is found.

    Args:
        method: exact (every token of the vocabulary at every place), sampled (an interval), or auto: exact up to 512 tokens.
        num_samples: sampled: samples per position.
        exact_top: sampled: likeliest tokens summed exactly; missing: 64.
        max_rows: candidate streams that run at once; memory against speed.
    """

    method: str = "auto"
    num_samples: int = 64
    exact_top: int | None = None
    max_rows: int = 64


@dataclass
class PlotHeldOutSection:
    """The text that is measured.

    Args:
        part: held_out, train or all; missing: held_out where the text is that of the run that wrote the checkpoint, else all.
        max_tokens: stop after so many tokens; missing: 5000 (gain: 20000, heatmap: 2000).
    """

    part: str | None = None
    max_tokens: int | None = None


@dataclass
class PlotTextSection:
    """The text of a heat map: one of text and file.

    Args:
        text: the text itself.
        file: a UTF-8 file that holds it.
        colour: gain (log p_ELM - log p_LM) or energy.
        max_tokens: stop after so many tokens; missing: 2000 (gain: 20000, energies and calibration: 5000).
    """

    text: str | None = None
    file: str | None = None
    colour: str = "gain"
    max_tokens: int | None = None
