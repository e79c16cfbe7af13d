"""Likelihood of a corpus under a saved model, with the corpus packed as in training."""

import datasets
from transformers import AutoModelForCausalLM

from .elm_likelihood import ElmLikelihood
from .evaluation import evaluate_elm
from .saved_models import load_checkpoint, pick_device
from .trainers.corpora import Corpus, load_corpus
from .trainers.packing import iter_packed_rows, pack_rows
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
    corpus = load_corpus(**corpus_options(data), seed=seed)
    texts = corpus_part(corpus, part)
    packing = {"strategy": data["strategy"], "reset_position_ids": data["reset_position_ids"], "seed": seed}
    pack = pack_rows if isinstance(texts, datasets.Dataset) else iter_packed_rows
    rows = pack(texts, tokenizer, data["sequence_length"], **packing)
    if equal_compute_lm is not None:
        equal_compute_lm = _load_lm(equal_compute_lm).to(pick_device(device)).eval()
    return evaluate_elm(model, rows, tokenizer=tokenizer, equal_compute_lm=equal_compute_lm, seed=seed, **options)


def corpus_part(corpus: Corpus, part: str):
    """The documents of ``part``: ``"held_out"``, ``"train"`` or ``"all"``."""
    if part == "all":
        return datasets.concatenate_datasets([corpus.train, corpus.held_out])
    return corpus.held_out if part == "held_out" else corpus.train


def _load_lm(path):
    try:
        return AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"equal_compute_lm={path} cannot be loaded as a causal LM: {error}") from error
