"""Masked language modelling from the command line: a run, its continuation, its evaluation, and what is refused."""

import inspect
import json
import math
import textwrap

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from hf_elm.command_line import main
from hf_elm.commands.train import resolve_settings
from hf_elm.masked_lm_evaluation import masked_lm_likelihood
from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.trainers.masked_lm_config import MaskedLMConfig
from hf_elm.trainers.masked_lm_trainer import MaskedLMTrainer
from tests.trainers.tiny_masked_lm import byte_tokenizer, quiet_config, ragged_rows, tiny_model


TINY = ["model.hidden_size=32", "model.intermediate_size=64", "model.filter_order=16", "tokenizer.vocab_size=300"]
QUICK = [
    "train.use_cpu=true",
    "train.disable_tqdm=true",
    "train.logging_steps=1",
    "train.per_device_train_batch_size=4",
]
RECIPES = ("m2_bert_tiny", "m2_bert_80m", "m2_bert_80m_2k")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(inspect.getsource(textwrap), encoding="utf-8")
    return path


def arguments(corpus, out, *more):
    return ["train", "m2_bert_tiny", f"data.corpus={corpus}", f"output_dir={out}", *TINY, *QUICK, *more]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(corpus, out, "train.max_steps=3", "train.save_steps=2")) == 0
    return out


def test_a_run_reports_its_loss_beside_the_unigram_entropy(run):
    metrics = json.loads((run / "likelihood.json").read_text())
    assert 0 < metrics["eval_unigram_entropy"] < math.log(300)
    assert math.isfinite(metrics["eval_loss"])
    assert 0 <= metrics["eval_masked_accuracy"] <= 1
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "tokens_per_second", "input_tokens_per_second"} <= logs[0].keys()


def test_what_it_wrote_loads_and_fills_masks(run):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert type(model).__name__ == "M2BertForMaskedLM"
    assert tokenizer.convert_ids_to_tokens(tokenizer("a[MASK]")["input_ids"])[-2:] == ["[MASK]", "[SEP]"]
    guesses = pipeline("fill-mask", model=model, tokenizer=tokenizer)("def [MASK](self):", top_k=2)
    assert len(guesses) == 2
    assert all(0 < guess["score"] < 1 for guess in guesses)


def test_a_resumed_run_ends_as_the_uninterrupted_one(run, corpus, tmp_path, monkeypatch):
    """Interrupted after the save at step 2."""

    def interrupted(self, *args, **kwargs):
        result = save(self, *args, **kwargs)
        raise KeyboardInterrupt
        return result

    save = MaskedLMTrainer._save_checkpoint
    out = tmp_path / "run"
    command = arguments(corpus, out, "train.max_steps=3", "train.save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(MaskedLMTrainer, "_save_checkpoint", interrupted)
        assert main(command) == 130
    assert not (out / "model.safetensors").exists()
    assert main([*command, "resume=true"]) == 0
    whole, resumed = (AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (run, out))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    ours, theirs = (json.loads((folder / "likelihood.json").read_text()) for folder in (run, out))
    assert ours["eval_loss"] == theirs["eval_loss"]


def test_evaluate_gives_the_trainers_numbers(run, tmp_path, capsys):
    assert main(["evaluate", f"checkpoint={run}", f"output={tmp_path / 'result.json'}", "batch_size=3"]) == 0
    printed = capsys.readouterr().out
    assert "nats per masked token" in printed
    assert "unigram entropy" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    metrics = json.loads((run / "likelihood.json").read_text())
    for name in ("loss", "unigram_entropy", "masked_accuracy", "masked_tokens"):
        assert math.isclose(result[name], metrics[f"eval_{name}"], rel_tol=1e-5), name
    assert abs(result["masked_tokens"] / result["tokens"] - 0.15) < 0.05


def test_evaluation_stops_at_max_tokens_and_leaves_the_model_as_it_was(tmp_path):
    model, rows = tiny_model().train(), ragged_rows(9)
    everything = masked_lm_likelihood(model, rows, byte_tokenizer(), batch_size=4)
    first = masked_lm_likelihood(model, rows, byte_tokenizer(), batch_size=4, max_tokens=1)
    assert model.training
    assert (everything.rows, first.rows) == (9, 4)
    trainer = MaskedLMTrainer(model, quiet_config(tmp_path), None, rows, byte_tokenizer())
    assert math.isclose(trainer.evaluate()["eval_loss"], everything.loss, rel_tol=1e-5)
    nothing = masked_lm_likelihood(model, [{"input_ids": [257, 258]}], byte_tokenizer())
    assert nothing.masked_tokens == 0
    assert math.isnan(nothing.loss)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "num_samples=4"], "num_samples does not concern the evaluation of a m2_bert model"),
        (["evaluate", "data.sequence_length=4096"], "data.sequence_length=4096 exceeds the model's 128 positions"),
        (["evaluate", "batch_size=0"], "batch_size must be at least 1"),
        (["generate", "prompt=x"], "an encoder that generates no text"),
    ],
)
def test_errors_are_one_line(run, capsys, command, message):
    assert main([*command, f"checkpoint={run}"]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.strategy=greedy"], "data.strategy=greedy says how documents share a row"),
        (["train.mlm_probability=0"], "mlm_probability must be in (0, 1]"),
        (["data.sequence_length=200", "model.max_position_embeddings=100"], "exceeds the model's 100 positions"),
    ],
)
def test_settings_that_make_no_run_are_refused(corpus, tmp_path, capsys, more, message):
    assert main(arguments(corpus, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_the_published_runs(recipe):
    settings = resolve_settings([recipe], "train")
    model = {name: value for name, value in settings["model"].items() if name != "preset"}
    config = M2BertConfig.preset(settings["model"]["preset"], **model)
    assert settings["data"]["sequence_length"] <= config.max_position_embeddings
    train = {name: value for name, value in settings["train"].items() if name not in ("output_dir", "bf16")}
    args = MaskedLMConfig("unused", use_cpu=True, **train)
    assert (args.mlm_probability, args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.3, 0.9, 0.98, 1e-6)
    if recipe == "m2_bert_tiny":
        return
    assert config.vocab_size == 30528
    assert math.isclose(args.weight_decay * args.learning_rate, 1e-5)
    assert args.warmup_steps == 0.06 * args.max_steps
    assert args.warmup_steps + args.lr_scheduler_kwargs["num_decay_steps"] == args.max_steps
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * 8
    assert (rows, rows * args.max_steps) == {
        "m2_bert_80m": (4096, 286_720_000),
        "m2_bert_80m_2k": (256, 286_720_000),
    }[recipe]


def test_the_schedule_of_the_published_run(tmp_path):
    """Linear warm-up, then linearly to 2 % of the peak at the last step."""
    schedule = {"num_decay_steps": 94, "decay_type": "linear", "min_lr_ratio": 0.02}
    fields = {"warmup_steps": 6, "lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": schedule}
    trainer = MaskedLMTrainer(
        tiny_model(), quiet_config(tmp_path, max_steps=100, learning_rate=8e-4, **fields), ragged_rows(4)
    )
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(100, optimizer)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert math.isclose(max(rates), 8e-4)
    assert rates.index(max(rates)) == 6
    assert math.isclose(rates[-1], 0.02 * 8e-4, rel_tol=1e-6)
    assert math.isclose(rates[53], 8e-4 * (1 - 0.98 * 0.5), rel_tol=1e-6)


def test_the_originals_spellings_are_understood():
    words = [
        "family=m2-bert",
        "max_seq_len=256",
        "model.hyena_filter_order=64",
        "model.use_glu_mlp=false",
        "mlm_probability=0.2",
    ]
    settings = resolve_settings([*words, "model.hyena_wd=0.1", "tokenizer_name=bert-base-uncased"], "train")
    assert settings["data"]["sequence_length"] == 256
    assert settings["model"] == {"filter_order": 64, "mlp_gated": False}
    assert settings["train"]["mlm_probability"] == 0.2
    assert settings["train"]["filter_weight_decay"] == 0.1
    assert settings["tokenizer"]["path"] == "bert-base-uncased"
