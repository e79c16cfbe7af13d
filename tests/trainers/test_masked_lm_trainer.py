"""Masked language modelling: every part learns, accumulation and resumption change nothing, masks are what they should be."""

import inspect
import json
import math
import textwrap

import datasets
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from hf_elm.modeling.m2_bert import M2BertForMaskedLM
from hf_elm.trainers.masked_lm_trainer import MaskedLMTrainer, unigram_entropy
from hf_elm.trainers.packing import pack_rows
from hf_elm.trainers.tokenization import build_tokenizer
from tests.trainers.tiny_masked_lm import byte_tokenizer, quiet_config, ragged_rows, tiny_model


@pytest.fixture(autouse=True)
def _quiet(capsys):
    """The Trainer prints its logs; they are not this test's output."""


class Recording(MaskedLMTrainer):
    """Remembers what the model saw in training: (step, visible tokens, labels) of each row."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            self.__dict__.setdefault("seen", []).extend(
                (self.state.global_step, tuple(ids[m].tolist()), tuple(labels[m].tolist()))
                for ids, labels, m in zip(inputs["input_ids"], inputs["labels"], mask, strict=True)
            )
            assert (inputs["labels"][~mask] == -100).all()
        return super().compute_loss(model, inputs, *args, **kwargs)


def trainer_of(tmp_path, model=None, train=None, cls=MaskedLMTrainer, evaluation=None, **fields):
    args = quiet_config(tmp_path, **fields)
    return cls(model or tiny_model(), args, train, evaluation, byte_tokenizer())


def train_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def labelled_rows(count):
    """Rows whose masks are given: every third token."""

    def with_labels(row):
        place = range(len(row["input_ids"]))
        labels = [token if i % 3 == 1 else -100 for i, token in zip(place, row["input_ids"], strict=True)]
        ids = [259 if i % 3 == 1 else token for i, token in zip(place, row["input_ids"], strict=True)]
        return {"input_ids": ids, "labels": labels}

    return ragged_rows(count).map(with_labels)


def test_every_parameter_moves_and_the_loss_falls(tmp_path):
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = trainer_of(tmp_path, model, labelled_rows(4), max_steps=20)
    trainer.train()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    logs = train_logs(trainer)
    assert logs[-1]["loss"] < 0.7 * logs[0]["loss"]
    assert math.isclose(logs[0]["loss"], math.log(260), rel_tol=0.1)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_accumulation_equals_one_batch(tmp_path, batch, accumulation):
    """Rows of different lengths, masked alike however they are batched; plain descent."""
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    trainers = []
    for size, steps in ((8, 1), (batch, accumulation)):
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, **options}
        trainers.append(trainer_of(tmp_path, tiny_model(), ragged_rows(16), cls=Recording, **fields))
        trainers[-1].train()
    one, other = trainers
    assert one.seen == other.seen
    assert len(one.seen) == 16
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    for ours, theirs in zip(train_logs(one), train_logs(other), strict=True):
        assert math.isclose(ours["loss"], theirs["loss"], rel_tol=1e-4)
        assert math.isclose(ours["grad_norm"], theirs["grad_norm"], rel_tol=1e-4)


def test_resume_equals_uninterrupted_run(tmp_path):
    """Shuffled rows, dropout, accumulation, three epochs: the same masks and weights, bit for bit."""
    options = {
        "max_steps": 9,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "random",
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 4,
    }
    model = tiny_model(hidden_dropout_prob=0.1)
    whole = trainer_of(tmp_path, model, ragged_rows(12), cls=Recording, **options)
    whole.train()
    resumed = trainer_of(
        tmp_path, tiny_model(seed=1, hidden_dropout_prob=0.1), ragged_rows(12), cls=Recording, **options
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.seen == [row for row in whole.seen if row[0] >= 4]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.state.num_input_tokens_seen == resumed.state.num_input_tokens_seen
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-4")
    assert type(loaded) is M2BertForMaskedLM


def test_masks_follow_the_seed_and_the_step(tmp_path):
    seen = {}
    for seed in (0, 0, 1):
        trainer = trainer_of(tmp_path, train=ragged_rows(4), cls=Recording, max_steps=2, seed=seed)
        trainer.train()
        seen.setdefault(seed, []).append(trainer.seen)
    assert seen[0][0] == seen[0][1], "the same seed"
    masks = lambda rows: [tuple(label != -100 for label in labels) for _, _, labels in rows]  # noqa: E731
    assert masks(seen[0][0]) != masks(seen[1][0]), "another seed"
    first, second = ([row for row in seen[0][0] if row[0] == step] for step in (0, 1))
    texts = lambda rows: [  # noqa: E731
        tuple(label if label != -100 else token for token, label in zip(ids, labels, strict=True))
        for _, ids, labels in rows
    ]
    assert texts(first) == texts(second), "the same four rows"
    assert all(one != other for one, other in zip(masks(first), masks(second), strict=True)), "masked anew"


def test_the_logged_loss_is_that_of_the_masked_tokens(tmp_path):
    """By hand, per masked token over the whole batch, position 0 counted where it is labelled."""
    model, rows = tiny_model(), labelled_rows(4)
    first = {**rows[0], "labels": [rows[0]["input_ids"][0], *rows[0]["labels"][1:]]}
    rows = datasets.Dataset.from_list([first, *rows.select([1, 2, 3])])
    losses = []
    for row in rows:
        logits = model.eval()(torch.tensor([row["input_ids"]])).logits[0]
        losses.append(F.cross_entropy(logits, torch.tensor(row["labels"]), reduction="none"))
    counted = torch.cat([torch.tensor(row["labels"]) for row in rows]) != -100
    expected = torch.cat(losses)[counted]
    trainer = trainer_of(tmp_path, model, rows, max_steps=1)
    trainer.train()
    log = train_logs(trainer)[0]
    assert math.isclose(log["loss"], expected.mean().item(), rel_tol=1e-5)
    assert trainer.state.num_input_tokens_seen == len(expected)
    ratio = log["input_tokens_per_second"] / log["tokens_per_second"]
    assert math.isclose(ratio, sum(len(row["input_ids"]) for row in rows) / len(expected), rel_tol=1e-5)


def test_evaluations_mask_alike_whatever_the_batch_and_the_seed(tmp_path):
    held_out, model = ragged_rows(7, seed=5), tiny_model()
    first = trainer_of(tmp_path, model, evaluation=held_out, per_device_eval_batch_size=2)
    metrics = first.evaluate()
    other = trainer_of(tmp_path, model, evaluation=held_out, per_device_eval_batch_size=7, seed=3)
    for name in ("eval_loss", "eval_masked_accuracy", "eval_unigram_entropy", "eval_masked_tokens"):
        assert math.isclose(metrics[name], first.evaluate()[name], rel_tol=1e-12)
        assert math.isclose(metrics[name], other.evaluate()[name], rel_tol=1e-5), name
    predictions = other.predict(held_out)
    hits = predictions.predictions.argmax(-1) == predictions.label_ids
    masked = predictions.label_ids != -100
    assert masked.sum() == metrics["eval_masked_tokens"]
    assert math.isclose(metrics["eval_masked_accuracy"], hits[masked].mean(), rel_tol=1e-6)
    entropy = unigram_entropy(torch.bincount(torch.tensor(predictions.label_ids[masked])))
    assert math.isclose(metrics["eval_unigram_entropy"], entropy, rel_tol=1e-9)


def test_unigram_entropy_of_known_frequencies():
    assert math.isclose(unigram_entropy(torch.tensor([5, 0, 5, 5, 5])), math.log(4))
    assert unigram_entropy(torch.tensor([0, 9])) == 0
    assert unigram_entropy(torch.zeros(4, dtype=torch.long)) == 0


def test_batches_without_anything_to_predict_are_finite_and_change_nothing(tmp_path):
    """Rows of special tokens alone, of padding alone, and of labels that are all -100."""
    special = {"input_ids": [257, 258], "attention_mask": [1, 1]}
    padding = {"input_ids": [256, 256], "attention_mask": [0, 0]}
    unlabelled = {"input_ids": [257, 97, 258], "labels": [-100] * 3}
    for rows in ([special, padding] * 2, [padding] * 4, [unlabelled] * 4):
        model = tiny_model()
        before = {name: p.clone() for name, p in model.named_parameters()}
        trainer = trainer_of(tmp_path, model, rows, max_steps=2, weight_decay=0.0, evaluation=rows)
        trainer.train()
        assert [log["loss"] for log in train_logs(trainer)] == [0, 0]
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == metrics["eval_masked_tokens"] == metrics["eval_unigram_entropy"] == 0


def test_text_is_tokenised_into_rows_of_one_document(tmp_path):
    texts = datasets.Dataset.from_dict({"text": [inspect.getsource(textwrap), "", "short"]})
    options = {"max_length": 48, "variable_length_share": 0.5, "max_steps": 2}
    trainer = trainer_of(tmp_path, train=texts, evaluation={"a": texts}, **options)
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    assert max(lengths) == 48
    assert len(set(lengths)) > 10
    assert len(trainer.eval_dataset["a"]) < len(lengths), "held-out rows are as long as they can be"
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_a_loss"])
    log = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "tokens_per_second", "input_tokens_per_second"} <= log.keys()


def test_a_stream_of_text_resumes_where_it_was(tmp_path):
    texts = datasets.Dataset.from_dict({"text": [f"document {i} " * (1 + i % 5) for i in range(60)]})
    options = {"max_steps": 5, "max_length": 32, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path, train=texts.to_iterable_dataset(), cls=Recording, **options)
    whole.train()
    resumed = trainer_of(tmp_path, tiny_model(seed=1), texts.to_iterable_dataset(), cls=Recording, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.seen == [row for row in whole.seen if row[0] >= 2]


def test_weights_that_decay_and_rates_of_the_filters(tmp_path):
    trainer = trainer_of(tmp_path, train=ragged_rows(4))
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    names = dict(trainer.model.named_parameters())
    assert all(p.dim() >= 2 for name, p in names.items() if name in decayed)
    assert {"lm_head.dense.weight", "m2_bert.encoder.layers.0.mlp.up.weight"} <= decayed
    assert not any(
        name.endswith(("positions", "bias", "bias_in", "bias_mid", "frequency", "skip")) for name in decayed
    )
    assert not any("embeddings" in name for name in decayed)
    everything = trainer_of(tmp_path, train=ragged_rows(4), decay_all_parameters=True)
    assert set(everything.get_decay_parameter_names(everything.model)) == set(names)

    rates = {"filter_learning_rate": 1e-3, "filter_weight_decay": 0.1, "position_learning_rate": 1e-5}
    trainer = trainer_of(tmp_path, train=ragged_rows(4), **rates)
    optimizer = trainer.create_optimizer()
    by_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(by_parameter) == len(names)
    for name, p in trainer.model.named_parameters():
        group, is_filter = by_parameter[id(p)], "_filter." in name
        is_position = name.endswith("positions")
        assert group["lr"] == (1e-5 if is_position else 1e-3 if is_filter else 1e-2), name
        decay = 0.1 if is_filter and not is_position else 0.0125 if name in decayed else 0.0
        assert group["weight_decay"] == decay, name
    assert len(trainer.create_optimizer().param_groups) == len(optimizer.param_groups), "once"
    with pytest.raises(ValueError, match="filter_learning_rate needs an optimizer made by the trainer"):
        MaskedLMTrainer(
            tiny_model(),
            quiet_config(tmp_path, **rates),
            ragged_rows(4),
            processing_class=byte_tokenizer(),
            optimizers=(optimizer, None),
        ).train()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mlm_probability", 0.0),
        ("mlm_probability", 1.5),
        ("eval_mlm_probability", 0.0),
        ("mask_share", 1.1),
        ("random_share", 0.3),
        ("variable_length_share", -0.1),
        ("filter_learning_rate", -1.0),
        ("position_learning_rate", -1.0),
        ("filter_weight_decay", -1.0),
        ("max_length", 2),
        ("label_smoothing_factor", 0.1),
        ("logging_nan_inf_filter", True),
        ("learning_rate", -1.0),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got"):
        quiet_config(tmp_path, **{field: value})


def test_wrong_models_datasets_and_tokenizers_are_refused(tmp_path):
    bert = BertForMaskedLM(
        BertConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    )
    with pytest.raises(TypeError, match=r"must be an M2BertForMaskedLM.*got BertForMaskedLM"):
        MaskedLMTrainer(bert, quiet_config(tmp_path))
    texts = datasets.Dataset.from_dict({"text": ["a text", "another"]})
    packed = pack_rows(texts, build_tokenizer("byte"), 8)
    with pytest.raises(ValueError, match=r'eval_dataset\["x"\] holds packed rows'):
        trainer_of(tmp_path, evaluation={"x": packed})
    with pytest.raises(ValueError, match="pass the tokenizer"):
        MaskedLMTrainer(tiny_model(), quiet_config(tmp_path), texts)
    with pytest.raises(ValueError, match="no cls_token, sep_token, mask_token"):
        MaskedLMTrainer(tiny_model(), quiet_config(tmp_path), texts, processing_class=build_tokenizer("byte"))
    with pytest.raises(ValueError, match="needs the tokenizer"):
        MaskedLMTrainer(tiny_model(), quiet_config(tmp_path), ragged_rows(4)).train()


def test_a_path_gives_model_and_tokenizer(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    trainer = MaskedLMTrainer(str(tmp_path / "model"), quiet_config(tmp_path / "run"), ragged_rows(4))
    trainer.train()
    assert math.isfinite(train_logs(trainer)[-1]["loss"])
