"""The keys of ``hf-elm rerank``, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass

from .recipe_keys import Schema, section


@dataclass
class RerankSection:
    """What decides the order.

    Args:
        output: JSONL file to write; must be new.
        by: score of a candidate: elm (log-likelihood of the energy-based model), energy (its mean energy, without Z), lm; nanoEBM: s2
            or s1; missing: elm, s2, or lm for other models.
        weight: of the model's score, 0 to 1; the rest is the weight of the first pass's score.
        normalize: divide log-likelihoods by their length: none, tokens or bytes.
        suffix: text that is scored at the end of every candidate, such as a newline, so that where it ends counts; \\n is a newline.
        window: tokens that the model sees at once; missing: the rows that it was trained on, else all of its positions.
        limit: so many lists from the start; missing: all.
        report: write the measures to this JSON file.
        batch_size: candidates per forward pass; results do not depend on it.
        think_steps: nanoEBM: refinement steps of s2; missing: as configured.
        method: MonArc: how log Z is found: auto, exact, sampled or certified, as in ``hf-elm evaluate``.
        num_samples: MonArc: samples per position.
        exact_top: MonArc: likeliest tokens summed exactly; missing: 64.
        max_rows: MonArc: candidate streams that run at once; memory against speed.
        progress: show a progress bar.
    """

    output: str | None = None
    by: str | None = None
    weight: float = 1.0
    normalize: str = "none"
    suffix: str = ""
    window: int | None = None
    limit: int | None = None
    report: str | None = None
    batch_size: int = 8
    think_steps: int | None = None
    method: str = "auto"
    num_samples: int = 64
    exact_top: int | None = None
    max_rows: int = 64
    progress: bool = True


def rerank_schema() -> Schema:
    """Keys of ``rerank``."""
    model = section("hf_elm.recipe_sections:CheckpointSection", "", "model")
    return Schema(
        [*model, *section("hf_elm.rerank_sections:RerankSection", "", "reranking")],
        {"model": "checkpoint", "length_normalization": "normalize"},
    )
