"""Recall of what comes later: the masked token's answer stands a fixed lag ahead, out of a causal mixer's sight."""

import datasets
import pytest
import torch

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.trainers.masked_lm_trainer import MaskedLMTrainer
from tests.trainers.tiny_masked_lm import quiet_config


SYMBOLS, SEQ, LAG, MASK = 8, 32, 5, 1


def recall_rows(count, seed):
    """Random symbols; masked are some places t whose symbol at t + LAG, the label, is visible."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(2, 2 + SYMBOLS, (count, SEQ), generator=generator)
    masked = torch.rand(count, SEQ, generator=generator) < 0.3
    masked[:, SEQ - LAG :] = False
    for place in reversed(range(SEQ - LAG)):
        masked[:, place] &= ~masked[:, place + LAG]
    labels = torch.where(masked, symbols.roll(-LAG, 1), -100)
    seen = symbols.masked_fill(masked, MASK)
    return datasets.Dataset.from_dict({"input_ids": seen.tolist(), "labels": labels.tolist()})


def accuracy(tmp_path, bidirectional, steps=120):
    torch.manual_seed(0)
    sizes = {"vocab_size": 2 + SYMBOLS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = M2BertConfig(
        **sizes, filter_order=32, max_position_embeddings=SEQ, hidden_dropout_prob=0.0, bidirectional=bidirectional
    )
    args = quiet_config(
        tmp_path,
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        logging_steps=steps,
    )
    rows = recall_rows(32 * steps, seed=0), recall_rows(256, seed=1)
    trainer = MaskedLMTrainer(M2BertForMaskedLM(config), args, *rows)
    trainer.train()
    return trainer.evaluate()["eval_masked_accuracy"]


@pytest.mark.usefixtures("capsys")
def test_both_directions_recall_what_one_cannot(tmp_path):
    """The labels are independent of all that a causal mixer sees: 1/8 is its best, up to 4.5 deviations of 1,785 answers."""
    assert accuracy(tmp_path, bidirectional=True) > 0.95
    assert abs(accuracy(tmp_path, bidirectional=False) - 1 / SYMBOLS) < 4.5 * (0.125 * 0.875 / 1700) ** 0.5
