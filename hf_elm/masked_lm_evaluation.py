"""Loss of a saved masked language model on text, with masks that are the same for every model and run."""

import dataclasses
import math
import os
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from datasets import Dataset

from . import run_folder
from .checkpoint_likelihood import corpus_part
from .prepared_settings import prepared_part
from .saved_models import load_checkpoint
from .trainers.corpora import load_corpus
from .trainers.encoder_rows import encoder_rows
from .trainers.masked_lm_trainer import UnmaskedCollator, unigram_entropy
from .trainers.prepared_rows import PreparedCorpus
from .trainers.token_masks import IGNORED, MaskRule, mask_seed
from .training_run import corpus_options


@dataclass(frozen=True)
class MaskedLMLikelihood:
    """What `evaluate_masked_lm` found.

    Attributes:
        loss: cross-entropy at the masked tokens, nats per masked token.
        unigram_entropy: entropy of the frequencies of the masked tokens themselves, nats: the least loss that a prediction
            without context could have on them.
        masked_accuracy: share of the masked tokens whose likeliest prediction is right.
        mlm_probability: share of the tokens that were to be masked.
        masked_tokens, tokens, rows: what was counted, special tokens included in ``tokens``.
    """

    loss: float
    unigram_entropy: float
    masked_accuracy: float
    mlm_probability: float
    masked_tokens: int
    tokens: int
    rows: int

    def __str__(self):
        side = "below" if self.loss < self.unigram_entropy else "not below"
        return (
            f"loss               {self.loss:.4f} nats per masked token, {side} the unigram entropy\n"
            f"unigram entropy    {self.unigram_entropy:.4f} nats, of the masked tokens themselves\n"
            f"masked accuracy    {self.masked_accuracy:.4f}\n"
            f"{self.masked_tokens} masked tokens ({self.mlm_probability:.0%} drawn) of {self.tokens} in {self.rows} rows"
        )

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes the numbers to the new file ``path``, atomically."""
        run_folder.write_json(path, dataclasses.asdict(self))


def evaluate_masked_lm(
    checkpoint: str,
    data: dict,
    part: str,
    seed: int,
    device: str | None = None,
    dtype: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 8,
) -> MaskedLMLikelihood:
    """Loss of the saved model at masked tokens of ``part`` ("held_out", "train", "all") of the corpus that ``data`` describes.

    15 % of the tokens are masked, as `MaskedLMTrainer` masks them in evaluation: the same tokens for every model with this
    tokenizer, whatever the seed and the batches.

    Args:
        data: the data section of a recipe.
        seed: of the split of the corpus.
        max_tokens: stop after so many masked tokens; None = all.
        batch_size: rows per forward pass.

    Raises:
        ValueError: rows longer than the model's, a tokenizer without a mask token, a number out of range.
    """
    for name, value in {"batch_size": batch_size, "max_tokens": max_tokens}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    model, tokenizer = load_checkpoint(checkpoint, device, dtype)
    length, positions = data["sequence_length"], model.config.max_position_embeddings
    if length > positions:
        raise ValueError(f"data.sequence_length={length} exceeds the model's {positions} positions; lower it.")
    corpus = load_corpus(**corpus_options(data), seed=seed)
    if isinstance(corpus, PreparedCorpus):
        rows = prepared_part(corpus, part, tokenizer)
    else:
        args = SimpleNamespace(max_length=length, seed=seed, text_column="text")
        rows = encoder_rows(corpus_part(corpus, part), tokenizer, args)
    return masked_lm_likelihood(model, rows, tokenizer, max_tokens=max_tokens, batch_size=batch_size)


@torch.no_grad()
def masked_lm_likelihood(
    model, rows, tokenizer, *, mlm_probability: float = 0.15, max_tokens: int | None = None, batch_size: int = 8
) -> MaskedLMLikelihood:
    """Loss of an `M2BertForMaskedLM` at masked tokens of ``rows``, which hold ``input_ids``; see `evaluate_masked_lm`."""
    device, was_training = model.device, model.training
    model.eval()
    rule = MaskRule.of(tokenizer, device, probability=mlm_probability)
    collate = UnmaskedCollator(tokenizer.pad_token_id)
    loss, hits, tokens, num_rows = 0.0, 0, 0, 0
    counts = torch.zeros(model.config.vocab_size, dtype=torch.long)
    for some in _batches(rows, batch_size):
        batch = {name: values.to(device) for name, values in collate(some).items()}
        mask = batch.get("attention_mask")
        input_ids, labels = rule(batch["input_ids"], mask, mask_seed("evaluation"))
        states = model.m2_bert(input_ids, mask).last_hidden_state
        targets = labels[labels != IGNORED]
        logits = model.lm_head(states[labels != IGNORED]).float()  # at the masked places alone
        loss += F.cross_entropy(logits, targets, reduction="none").double().sum().item()
        hits += (logits.argmax(-1) == targets).sum().item()
        counts += torch.bincount(targets, minlength=len(counts)).cpu()
        tokens += labels.numel() if mask is None else int(mask.sum())
        num_rows += len(labels)
        if max_tokens is not None and counts.sum() >= max_tokens:
            break
    model.train(was_training)
    masked = int(counts.sum())
    per_target = 1 / masked if masked else math.nan
    return MaskedLMLikelihood(
        loss * per_target, unigram_entropy(counts), hits * per_target, mlm_probability, masked, tokens, num_rows
    )


def _batches(rows, batch_size):
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset()
    some = []
    for row in rows:
        some.append(row)
        if len(some) == batch_size:
            yield some
            some = []
    if some:
        yield some
