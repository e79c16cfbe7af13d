"""Fitting the machine-text detector's head, with early stopping on texts of other documents."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .detection_features import TextFeatures
from .detection_head import AttentionWeightedHead, FeatureBatch, HeadConfig


TEXTS_PER_PASS = 256


@dataclass
class FitResult:
    """Attributes: train_loss and validation_loss of each epoch, nats/text, and the epoch whose weights were kept."""

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0


def fit_head(
    train: list[TextFeatures],
    train_labels: Tensor,
    validation: list[TextFeatures],
    validation_labels: Tensor,
    config: HeadConfig,
    *,
    epochs: int = 100,
    patience: int = 15,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> tuple[AttentionWeightedHead, FitResult]:
    """The head with the lowest cross-entropy on the validation texts, in evaluation mode, and how it was found.

    AdamW on random batches; training ends when the validation loss has not fallen for ``patience`` epochs.

    Args:
        train_labels, validation_labels: 1 = machine, 0 = human, ``(texts,)``.

    Raises:
        ValueError: a side without texts, or training texts of one kind only.
    """
    if not train or not validation or len(train_labels.unique()) < 2:
        raise ValueError(
            f"the head needs human and machine texts to learn from and texts to validate on, got {len(train)} and "
            f"{len(validation)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentionWeightedHead(config)
        head.standardise(torch.cat([text.values for text in train]))
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        batch, labels = FeatureBatch.of(train), train_labels.float()
        result, best, lowest = FitResult(), copy.deepcopy(head.state_dict()), float("inf")
        bar = tqdm(range(epochs), desc="head", unit="epoch", disable=not progress, delay=1.0)
        for epoch in bar:
            result.train_loss.append(_epoch(head, optimizer, batch, labels, batch_size))
            loss = F.binary_cross_entropy_with_logits(text_logits(head, validation), validation_labels.float()).item()
            result.validation_loss.append(loss)
            bar.set_postfix(validation=f"{loss:.4f}")
            if loss < lowest:
                lowest, best, result.best_epoch = loss, copy.deepcopy(head.state_dict()), epoch
            elif epoch - result.best_epoch >= patience:
                break
    head.load_state_dict(best)
    return head.eval(), result


def _epoch(head, optimizer, batch: FeatureBatch, labels: Tensor, batch_size: int) -> float:
    head.train()
    total = 0.0
    for chosen in torch.randperm(len(labels)).split(batch_size):
        states = None if batch.states is None else batch.states[chosen]
        logits = head(batch.values[chosen], batch.mask[chosen], states)
        loss = F.binary_cross_entropy_with_logits(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(labels)


@torch.no_grad()
def text_logits(head: AttentionWeightedHead, texts: list[TextFeatures]) -> Tensor:
    """Logit of "machine-made" of each text, ``(texts,)``; what stands beside a text does not change it."""
    head.eval()
    parts = (FeatureBatch.of(texts[i : i + TEXTS_PER_PASS]) for i in range(0, len(texts), TEXTS_PER_PASS))
    return torch.cat([head(part.values, part.mask, part.states) for part in parts])
