"""The keys by which ``hf-elm generate`` chooses among samples, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass

from .recipe_keys import Key, section


@dataclass
class ChoiceSection:
    """How one of several continuations is chosen.

    Args:
        choose: likelihood (the likeliest sample), energy (the one of the lowest mean energy; MonArc), vote (the answer that most samples
            give) or consistency (the answer whose samples are together the most probable); missing: nothing is chosen.
        num_samples: samples to choose from; missing: 16.
        by: whose probabilities count: elm or lm (MonArc), s2 or s1 (nanoEBM); missing: elm, s2, or lm for other models.
        answer_pattern: regular expression of an answer: its last match, or the first group of it; missing: the whole continuation.
        stop: text at which a continuation ends; \\n is a newline.
        prune: with consistency: leave out samples that are unlikely among the others.
        normalize: with likelihood and consistency: tokens takes probabilities per token, none those of whole samples.
        samples_at_once: samples that are drawn side by side.
    """

    choose: str | None = None
    num_samples: int | None = None
    by: str | None = None
    answer_pattern: str | None = None
    stop: str | None = None
    prune: bool = True
    normalize: str = "none"
    samples_at_once: int = 32


def choice_keys() -> list[Key]:
    """The keys of `ChoiceSection`."""
    return section("hf_elm.choice_sections:ChoiceSection", "", "choice among samples")
