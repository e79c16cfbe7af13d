"""The ranking of a saved encoder, from a checkpoint to scores; what ``hf-elm retrieve`` does."""

from typing import Any

from .embedding_models import load_embedder
from .modeling.m2_bert.context_extension import MODES, extend_context
from .retrieval_evaluation import RetrievalResult, evaluate_retrieval
from .retrieval_tasks import HIDDEN_FACTS, hidden_fact_task, load_task


DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def evaluate_checkpoint(
    checkpoint: str,
    device: str | None,
    dtype: str | None,
    seed: int,
    task: str | None,
    split: str | None,
    held_out_fraction: float,
    lengths: list[int] | None,
    depths: list[float] | None,
    documents: int,
    pool_with_dense: bool | None,
    extend_to: int | None = None,
    extend_mode: str = "prefix",
    **options: Any,
) -> RetrievalResult:
    """Scores of the encoder at ``checkpoint``; ``options`` are those of `evaluate_retrieval`.

    Args:
        extend_to, extend_mode: give the encoder room for so many tokens first, see `extend_context`.

    Raises:
        FileNotFoundError, ValueError: a checkpoint, task or length that cannot be used.
    """
    task = task or "stdlib"
    hidden = task in HIDDEN_FACTS
    for name, value in (
        ("split", split if hidden else None),
        *(() if hidden else (("lengths", lengths), ("depths", depths))),
    ):
        if value is not None:
            raise ValueError(f"{name}={value} does not concern task={task}; leave it out.")
    tasks = (
        None if hidden else load_task(task, split, held_out_fraction, seed)
    )  # before the model: it is quicker to refuse
    model, tokenizer = load_embedder(checkpoint, device, dtype, pool_with_dense)
    if extend_to is not None:
        _extend(model, extend_to, extend_mode)
    if hidden:
        limit = options.get("max_length") or model.config.max_position_embeddings
        lengths = lengths or [limit // 4, limit // 2, limit]
        if max(lengths) > limit:
            raise ValueError(f"lengths={lengths} go beyond the {limit} tokens that the encoder reads; lower them.")
        cells = [(length, depth) for length in lengths for depth in depths or DEPTHS]
        tasks = [hidden_fact_task(task, tokenizer, *cell, documents, seed) for cell in cells]
    return evaluate_retrieval(model, tokenizer, tasks, pool_with_dense=pool_with_dense, **options)


def _extend(model, new_length, mode):
    limit = model.config.max_position_embeddings
    if mode not in MODES:
        raise ValueError(f'extend_mode must be one of {", ".join(MODES)}, got "{mode}".')
    if new_length <= limit:
        raise ValueError(
            f"extend_to={new_length} must be more than the {limit} positions that the encoder has; leave it out."
        )
    extend_context(model, new_length, mode)
