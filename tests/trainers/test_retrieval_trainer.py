"""Retrieval training: one query at a time is enough, accumulation, pieces and resumption change nothing."""

import math

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.m2_bert.modeling_m2_bert import M2BertForSentenceEmbedding
from hf_elm.trainers.finite_guard import NonFiniteError
from hf_elm.trainers.retrieval_batches import RetrievalCollator
from hf_elm.trainers.retrieval_pairs import pairs_of_rows
from hf_elm.trainers.retrieval_trainer import RetrievalTrainer
from tests.trainers.tiny_retrieval import ROWS, quiet_retrieval_config, tiny_embedder, tokenizer


DROPOUT_OFF = {"hidden_dropout_prob": 0.0}


@pytest.fixture(autouse=True)
def _quiet(capsys):
    """The Trainer prints its logs; they are not this test's output."""


def trainer_of(tmp_path, model=None, rows=ROWS, eval_dataset=None, **fields):
    args = quiet_retrieval_config(tmp_path, **fields)
    model = tiny_embedder(**DROPOUT_OFF) if model is None else model
    return RetrievalTrainer(model, args, rows, eval_dataset, processing_class=tokenizer())


def train_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def expected_loss(model, rows, negatives=3, dims=None):
    """Pair by pair, no batch, no padding; ``rows`` as `RetrievalPairs` gives them."""
    encode = tokenizer()

    def embed(text):
        ids = torch.tensor([encode(text)["input_ids"][:48]])
        return model(ids, normalize=False, truncate_dim=32).sentence_embedding[0].double()

    positive, negative = [], []
    for row in rows:
        query = embed(row["query"])
        for side, texts in ((positive, row["positives"]), (negative, row["negatives"])):
            for text in texts:
                document = embed(text)
                cut = [torch.cosine_similarity(query[:d], document[:d], dim=0) for d in dims or [32]]
                side.append(torch.stack([(1 - c if side is positive else c) ** 2 for c in cut]).mean())
    return (torch.stack(positive).mean() + torch.stack(negative).mean()).item()


@pytest.mark.parametrize("dims", [None, [32, 16, 4]])
def test_logged_loss_is_the_mean_over_pairs(tmp_path, dims):
    model = tiny_embedder(**DROPOUT_OFF)
    trainer = trainer_of(tmp_path, model, max_steps=1, matryoshka_dims=dims)
    rows = [trainer.train_dataset[i] for i in range(4)]
    with torch.no_grad():
        expected = expected_loss(model, rows, dims=dims)
    trainer.train()
    log = train_logs(trainer)[0]
    assert math.isclose(log["loss"], expected, rel_tol=1e-4)
    assert math.isclose(log["positive_loss"] + log["negative_loss"], expected, rel_tol=1e-4)
    encode = tokenizer()
    texts = {text for row in rows for text in (*row["positives"], *row["negatives"])} | {row["query"] for row in rows}
    assert trainer.state.num_input_tokens_seen == sum(len(encode(text)["input_ids"][:48]) for text in texts)


def test_evaluation_is_the_mean_over_all_pairs_whatever_the_batch(tmp_path):
    model = tiny_embedder()
    for size in (1, 5, 12):
        trainer = trainer_of(tmp_path, model, eval_dataset=ROWS, per_device_eval_batch_size=size)
        metrics = trainer.evaluate()
        with torch.no_grad():
            expected = expected_loss(model.eval(), trainer.eval_dataset)
        assert math.isclose(metrics["eval_loss"], expected, rel_tol=1e-4)
        assert -1 <= metrics["eval_negative_cosine"] <= metrics["eval_positive_cosine"] + 1 <= 2


@pytest.mark.parametrize("loss", ["orthogonal_projection", "info_nce"])
def test_one_query_at_a_time_teaches_every_parameter(tmp_path, loss):
    """Every trainable parameter moves, the loss falls, and the queries find their documents."""
    model = tiny_embedder(hidden_dropout_prob=0.0, use_position_embeddings=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    options = {"max_steps": 72, "learning_rate": 3e-3, "retrieval_loss": loss, "per_device_train_batch_size": 1}
    trainer = trainer_of(tmp_path, model, **options)
    trainer.train()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    losses = [log["loss"] for log in train_logs(trainer)]
    assert sum(losses[-12:]) < 0.6 * sum(losses[:12])
    assert train_logs(trainer)[-1]["positive_cosine"] > train_logs(trainer)[-1]["negative_cosine"] + 0.3


@pytest.mark.parametrize(
    ("batch", "accumulation", "fields"),
    [
        (4, 2, {}),
        (1, 8, {"retrieval_loss": "info_nce"}),
        (1, 8, {"matryoshka_dims": [32, 8], "absolute_cosine": True}),
    ],
)
def test_accumulation_equals_one_batch(tmp_path, batch, accumulation, fields):
    """Queries with 1 to 3 positives; two optimizer steps of plain descent."""
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, **fields}
    models, logs = [], []
    for size, steps in ((8, 1), (batch, accumulation)):
        model = tiny_embedder(**DROPOUT_OFF)
        trainer = trainer_of(
            tmp_path,
            model,
            ragged_rows(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            **options,
        )
        trainer.train()
        models.append(model)
        logs.append(train_logs(trainer))
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    for one, other in zip(*logs, strict=True):
        for name in ("loss", "positive_cosine", "negative_cosine"):
            assert math.isclose(one[name], other[name], rel_tol=1e-4, abs_tol=1e-6), name


def ragged_rows():
    """1 to 3 positives per query: the mean over a batch is not the mean over the step."""
    return [
        {"query": row["query"], "positives": [f"{row['positive']} {n}" for n in range(index % 3 + 1)]}
        for index, row in enumerate(ROWS[:8])
    ]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_pieces_of_documents_give_the_same_gradients(tmp_path, size):
    """With dropout off, encoding a few documents at a time is the same loss and the same gradient."""
    gradients = []
    for pieces in (None, size):
        model = tiny_embedder(**DROPOUT_OFF)
        trainer = trainer_of(tmp_path, model, documents_per_forward=pieces)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
        loss = trainer.compute_loss(model.train(), batch)
        loss.backward()
        gradients.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=1e-6)
    for name, gradient in gradients[0][1].items():
        assert_close(gradients[1][1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_resume_equals_uninterrupted_run(tmp_path):
    """Shuffled queries, dropout, pieces, accumulation: the same weights bit for bit."""
    options = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "documents_per_forward": 3,
        "train_sampling_strategy": "random",
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = trainer_of(tmp_path, tiny_embedder(hidden_dropout_prob=0.1), **options)
    whole.train()
    resumed = trainer_of(tmp_path, tiny_embedder(seed=1, hidden_dropout_prob=0.1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    again = M2BertForSentenceEmbedding.from_pretrained(tmp_path / "checkpoint-4")
    assert again.num_parameters() == whole.model.num_parameters()


def test_batches_join_equal_documents_and_know_who_answers_whom():
    rows = [
        {"query": "a", "positives": ["yes"], "negatives": ["no", "never"]},
        {"query": "b", "positives": ["no", "yes"], "negatives": ["later"]},
    ]
    batch = RetrievalCollator(tokenizer(), 3, query_prompt="q: ")(rows)
    assert batch["documents"]["input_ids"].shape == (4, 3)  # yes, no, never, later, cut at 3 bytes
    assert batch["queries"]["input_ids"].tolist() == [list(b"q: "), list(b"q: ")]
    assert batch["labels"].tolist() == [[1, 0, 0, -100], [1, 1, -100, 0]]
    batch = RetrievalCollator(tokenizer(), 9, in_batch_negatives=True)(rows)
    assert batch["labels"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = tiny_embedder()
    with torch.no_grad():
        model.m2_bert.pooler.dense.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="loss = nan at step 1"):
        trainer_of(tmp_path, model).train()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retrieval_loss", "triplet"),
        ("negatives_per_query", -1),
        ("matryoshka_dims", []),
        ("documents_per_forward", 0),
        ("max_length", 0),
        ("similarity_scale", 0),
        ("remove_unused_columns", True),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got"):
        quiet_retrieval_config(tmp_path, **{field: value})


def test_what_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_length=65 exceeds the model's 64 positions"):
        trainer_of(tmp_path, max_length=65)
    with pytest.raises(ValueError, match=r"matryoshka_dims=.*hidden_size"):
        trainer_of(tmp_path, matryoshka_dims=[33])
    with pytest.raises(ValueError, match="processing_class"):
        RetrievalTrainer(tiny_embedder(), quiet_retrieval_config(tmp_path), ROWS)
    with pytest.raises(ValueError, match="negatives_per_query must be at least 1"):
        quiet_retrieval_config(tmp_path, retrieval_loss="info_nce", negatives_per_query=0)


def test_labelled_pairs_are_a_dataset_too(tmp_path):
    labelled = [
        {"query": row["query"], "document": text, "label": label}
        for row in ROWS
        for text, label in [(row["positive"], 1), *((text, 0) for text in row["negatives"])]
    ]
    joined, given = pairs_of_rows(labelled), pairs_of_rows(ROWS)
    assert joined == given
    trainer_of(tmp_path, rows=labelled, max_steps=1).train()
