"""Likelihood of a corpus under a saved model, with the corpus packed as in training."""

import datasets
from transformers import AutoModelForCausalLM

from .elm_likelihood import ElmLikelihood
from .evaluation import evaluate_elm
from .prepared_settings import prepared_part
from .refinement_evaluation import evaluate_refinement
from .refinement_likelihood import RefinementLikelihood
from .saved_models import load_checkpoint, pick_device
from .trainers.corpora import Corpus, load_corpus
from .trainers.packing import iter_packed_rows, pack_rows
from .trainers.prepared_rows import PreparedCorpus
from .training_run import corpus_options


def evaluate_checkpoint(
    checkpoint: str, data: dict, part: str, seed: int, device=None, dtype=None, equal_compute_lm=None, **options
) -> ElmLikelihood:
    """`evaluate_elm` of the saved model on ``part`` ("held_out", "train", "all") of the corpus that ``data`` describes.

    Args:
        data: the data section of a recipe.
        equal_compute_lm: path or Hub id of a causal LM over the same vocabulary.
        options: of `evaluate_elm`.
    """
    model, tokenizer = load_checkpoint(checkpoint, device, dtype)
    rows = packed_part(data, part, tokenizer, seed)
    other = _load_lm(equal_compute_lm, device)
    return evaluate_elm(model, rows, tokenizer=tokenizer, equal_compute_lm=other, seed=seed, **options)


def evaluate_refinement_checkpoint(
    checkpoint: str,
    data: dict,
    part: str,
    seed: int,
    device: str | None = None,
    dtype: str | None = None,
    equal_compute_lm: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 8,
) -> RefinementLikelihood:
    """`evaluate_refinement` of the saved nanoEBM on a part of a corpus; arguments as in `evaluate_checkpoint`."""
    model, tokenizer = load_checkpoint(checkpoint, device, dtype)
    rows = packed_part(data, part, tokenizer, seed)
    options = {"max_tokens": max_tokens, "batch_size": batch_size, "seed": seed, "tokenizer": tokenizer}
    return evaluate_refinement(model, rows, equal_compute_gpt=_load_lm(equal_compute_lm, device), **options)


def packed_part(data: dict, part: str, tokenizer, seed: int):
    """Rows of ``part`` of the corpus that ``data`` describes, packed as in training; a stream gives a stream."""
    corpus = load_corpus(**corpus_options(data), seed=seed)
    if isinstance(corpus, PreparedCorpus):
        return prepared_part(corpus, part, tokenizer)
    texts = corpus_part(corpus, part)
    packing = {"strategy": data["strategy"], "reset_position_ids": data["reset_position_ids"], "seed": seed}
    pack = pack_rows if isinstance(texts, datasets.Dataset) else iter_packed_rows
    return pack(texts, tokenizer, data["sequence_length"], **packing)


def corpus_part(corpus: Corpus, part: str):
    """The documents of ``part``: ``"held_out"``, ``"train"`` or ``"all"``."""
    if part == "all":
        return datasets.concatenate_datasets([corpus.train, corpus.held_out])
    return corpus.held_out if part == "held_out" else corpus.train


def _load_lm(path, device):
    if path is None:
        return None
    try:
        return AutoModelForCausalLM.from_pretrained(path).to(pick_device(device)).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"equal_compute_lm={path} cannot be loaded as a causal LM: {error}") from error
