import json
import math

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.trainers.packing import PackingCollator
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer, negatives_seed
from tests.trainers.tiny_training import TINY_LM, VOCAB, quiet_config, ragged_rows, tiny_model


TERMS = ("lm_loss", "energy_loss", "z_hat", "elm_nll_bound", "energy_data", "energy_negatives")


@pytest.fixture(autouse=True)
def _quiet(capsys):
    """The Trainer prints its logs; they are not this test's output."""


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def train_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def test_every_parameter_moves_and_loss_falls(tmp_path):
    model = tiny_model(spread=0.0, energy_adapter_rank=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = ragged_rows(4)
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path, max_steps=20), train_dataset=rows)
    trainer.train()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    losses = [log["loss"] for log in train_logs(trainer)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_trained_model_still_generates_with_a_cache_by_default(tmp_path):
    """transformers' Trainer writes use_cache=False to the config; a folder without generation config would keep it."""
    trainer = ResidualEnergyTrainer(tiny_model(), quiet_config(tmp_path, max_steps=1), train_dataset=ragged_rows(4))
    trainer.save_model()
    (tmp_path / "generation_config.json").unlink()
    model = MonArcForCausalLM.from_pretrained(tmp_path)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, eos_token_id=None).shape == (1, 5)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_accumulation_equals_one_batch(tmp_path, batch, accumulation):
    """Ragged labels, given negatives, float64: loss, every metric and every gradient of two steps."""
    runs = []
    for size, steps in ((8, 1), (batch, accumulation)):
        gradients = Gradients()
        trainer = ResidualEnergyTrainer(
            tiny_model(dtype=torch.float64),
            quiet_config(
                tmp_path,
                max_steps=2,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                max_grad_norm=1e9,
            ),
            train_dataset=ragged_rows(16),
            callbacks=[gradients],
        )
        trainer.train()
        runs.append((train_logs(trainer), gradients.steps))
    (logs, grads), (other_logs, other_grads) = runs
    for log, other in zip(logs, other_logs, strict=True):
        for name in ("loss", "grad_norm", *TERMS):
            assert math.isclose(log[name], other[name], rel_tol=1e-5), name  # summed in float32
    assert_close(grads, other_grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", ["bilinear", "linear"])
def test_activation_checkpointing_changes_nothing(tmp_path, head):
    steps = []
    for checkpointing in (False, True):
        gradients = Gradients()
        ResidualEnergyTrainer(
            tiny_model(energy_head=head, energy_adapter_rank=2),
            quiet_config(tmp_path, max_steps=1, activation_checkpointing=checkpointing),
            train_dataset=ragged_rows(4),
            callbacks=[gradients],
        ).train()
        steps.append(gradients.steps)
    assert_close(steps[0], steps[1], rtol=0, atol=0)


def test_bf16_follows_fp32(tmp_path):
    losses = []
    for bf16 in (False, True):
        args = quiet_config(tmp_path, max_steps=8, learning_rate=1e-3, bf16=bf16)
        trainer = ResidualEnergyTrainer(tiny_model(spread=0.1), args, train_dataset=ragged_rows(4))
        trainer.train()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        losses.append([log["loss"] for log in train_logs(trainer)])
    assert_close(*(torch.tensor(run) for run in losses), rtol=0.03, atol=0.03)  # bf16 keeps 8 bits


def test_stream_of_text_is_packed_while_it_is_read(tmp_path):
    """A stream and its resumption: the rows come in the same order, the weights are the same."""
    texts = datasets.Dataset.from_dict({"text": [" ".join("abcdefgh"[: 2 + i % 6]) for i in range(40)]})
    options = {
        "max_length": 16,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }

    def trainer():
        rows = texts.to_iterable_dataset()
        args = quiet_config(tmp_path, **options)
        return ResidualEnergyTrainer(tiny_model(), args, train_dataset=rows, processing_class=word_tokenizer())

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_logged_terms_are_the_models_own(tmp_path):
    """One step on one batch of rows without ragged targets: each log equals the model's output; loss is their sum."""
    model, rows = tiny_model(energy_loss_weight=0.5), ragged_rows(4)
    batch = PackingCollator()(list(rows))
    out = model.train()(**batch)
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path, max_steps=1), train_dataset=rows)
    trainer.train()
    log = train_logs(trainer)[0]
    for name in TERMS[:4]:
        assert_close(torch.tensor(log[name]), out[name].detach(), rtol=1e-5, atol=1e-6)
    mask = out.target_mask
    assert_close(torch.tensor(log["energy_data"]), out.energies[mask].mean().detach(), rtol=1e-5, atol=1e-6)
    assert_close(
        torch.tensor(log["energy_negatives"]), out.negative_energies[:, 0][mask].mean().detach(), rtol=1e-5, atol=1e-6
    )
    assert math.isclose(log["loss"], log["lm_loss"] + 0.5 * log["energy_loss"], rel_tol=1e-5)
    assert math.isclose(log["elm_nll_bound"], log["lm_loss"] + log["energy_data"] + log["z_hat"] - 1, rel_tol=1e-5)
    assert log["tokens_per_second"] > 0
    assert log["peak_memory_mib"] > 1
    assert trainer.state.num_input_tokens_seen == int(mask.sum())


@pytest.mark.parametrize("layout", ["packed", "left", "right", "ragged labels", "all documents counted"])
def test_counted_labels_are_the_models_targets(tmp_path, layout):
    model = tiny_model(mask_segment_starts=layout != "all documents counted")
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path))
    batch = PackingCollator()(list(ragged_rows(4)))
    if layout in ("left", "right"):
        batch = {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}
        mask = torch.ones_like(batch["labels"])
        mask[1:, : 4 if layout == "left" else 0] = 0
        mask[1:, 9 if layout == "right" else 12 :] = 0
        batch["attention_mask"] = mask
    elif layout != "ragged labels":
        batch["labels"] = batch["input_ids"]
    targets = trainer.counted_labels(batch)[:, 1:] != -100
    assert torch.equal(targets, model(**batch).target_mask[:, 1:])


@pytest.mark.parametrize("save_at", [2, 3])
def test_resume_equals_uninterrupted_run(tmp_path, save_at):
    """Shuffled rows, sampled negatives, accumulation: the same weights bit for bit, the same logs from there on."""
    options = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "random",
        "lr_scheduler_type": "cosine_with_min_lr",
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": save_at,
    }
    rows = ragged_rows(12).remove_columns("negatives")
    whole = ResidualEnergyTrainer(tiny_model(), quiet_config(tmp_path, **options), train_dataset=rows)
    whole.train()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # killed while writing
    resumed = ResidualEnergyTrainer(tiny_model(seed=1), quiet_config(tmp_path, **options), train_dataset=rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save_at}"))
    for (name, p), (_, q) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert whole.state.num_input_tokens_seen == resumed.state.num_input_tokens_seen
    records = [[json.loads(line) for line in text] for text in (lines, _lines(tmp_path / "metrics.jsonl"))]
    steps = [[record["step"] for record in run if "loss" in record] for run in records]
    assert steps[0] == steps[1] == [2, 4]
    if save_at == 2:  # a log's window starts at the resumed step
        for name in ("loss", *TERMS, "tokens_seen"):
            assert [r[name] for r in records[0] if "loss" in r] == [r[name] for r in records[1] if "loss" in r]


def _lines(path):
    return path.read_text().splitlines()


def test_negatives_differ_by_rank_step_and_batch_and_repeat_by_seed():
    arguments = [(s, r, t, m) for s in (0, 1) for r in (0, 1) for t in (-1, 0, 1) for m in (0, 1)]
    assert len({negatives_seed(*a) for a in arguments}) == len(arguments)
    assert negatives_seed(3, 1, 4, 1) == negatives_seed(3, 1, 4, 1) < 2**63


def test_evaluation_is_token_weighted_repeatable_and_keeps_no_logits(tmp_path):
    rows, model = ragged_rows(7), tiny_model(negative_fraction=0.5)
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path, per_device_eval_batch_size=2), eval_dataset=rows)
    metrics = trainer.evaluate()
    with torch.no_grad():
        out = model.eval()(**PackingCollator()(list(rows)), negative_fraction=1.0)
    for name in ("loss", *TERMS[:4]):
        assert math.isclose(metrics[f"eval_{name}"], out[name].item(), rel_tol=1e-5), name
    sampled = rows.remove_columns("negatives")
    first = trainer.evaluate(sampled)["eval_energy_loss"]
    trainer.state.global_step = 7
    assert trainer.evaluate(sampled)["eval_energy_loss"] == first
    prediction = trainer.predict(rows)
    assert prediction.predictions.shape == (7, 12, VOCAB)
    assert trainer.prediction_step(model, PackingCollator()(list(rows)), prediction_loss_only=True)[1:] == (None, None)


def test_frozen_lm_stays_bit_identical(tmp_path):
    model = tiny_model(spread=0.0, energy_adapter_rank=2)
    lm = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path, freeze_lm=True), train_dataset=ragged_rows(12))
    trainer.train()
    assert all(torch.equal(lm[name], tensor) for name, tensor in model.lm.state_dict().items())
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.energy_parameters()}
    assert model.config.freeze_lm


def test_optimizer_groups(tmp_path):
    model = tiny_model(energy_adapter_rank=2)
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path, energy_learning_rate=0.5))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    for group in groups:
        for p in group["params"]:
            name = names[id(p)]
            assert group["lr"] == (1e-2 if name.startswith("lm.") else 0.5), name
            assert group["weight_decay"] == (0.1 if p.dim() == 2 and "embed" not in name else 0.0), name
    everything = ResidualEnergyTrainer(model, quiet_config(tmp_path, decay_all_parameters=True)).create_optimizer()
    assert {group["weight_decay"] for group in everything.param_groups if group["params"]} == {0.1}
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = ResidualEnergyTrainer(
        model, quiet_config(tmp_path, energy_learning_rate=0.5), optimizers=(given, None), train_dataset=ragged_rows(4)
    )
    with pytest.raises(ValueError, match=r"energy_learning_rate=0.5 needs an optimizer made by the trainer"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine_with_min_lr", None),
        ("cosine_warmup_with_min_lr", None),
        ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 0.1}),
    ],
)
def test_schedules_warm_up_and_end_at_their_floor(tmp_path, name, options):
    args = quiet_config(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=options, warmup_steps=2)
    trainer = ResidualEnergyTrainer(tiny_model(), args)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    rates = []
    for _ in range(10):
        rates.append(trainer._get_learning_rate())
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[0] < max(rates) == pytest.approx(1e-2)
    assert min(rates[-1], trainer._get_learning_rate()) == pytest.approx(
        1e-3
    )  # reached at the last step, or just after


def test_plain_lm_and_path_are_wrapped(tmp_path):
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in TINY_LM.items() if k != "model_type"}))
    lm.save_pretrained(tmp_path / "lm")
    trainer = ResidualEnergyTrainer(
        str(tmp_path / "lm"),
        quiet_config(tmp_path, num_negatives=2, energy_loss="nce"),
        train_dataset=ragged_rows(4, 12, 2),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "elm"))
    saved = MonArcForCausalLM.from_pretrained(tmp_path / "elm")
    assert (saved.config.num_negatives, saved.config.energy_loss) == (2, "nce")
    again = ResidualEnergyTrainer(str(tmp_path / "elm"), quiet_config(tmp_path)).model
    assert isinstance(again, MonArcForCausalLM)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), trainer.model.parameters(), strict=True))
    assert ResidualEnergyTrainer(lm, quiet_config(tmp_path)).model.lm is lm
    with pytest.raises(TypeError, match="model must be a MonArcForCausalLM"):
        ResidualEnergyTrainer(torch.nn.Linear(2, 2), quiet_config(tmp_path))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for the old name
def test_peft_trains_adapters_and_the_whole_head(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path), train_dataset=ragged_rows(12), peft_config=lora)
    trainer.train()
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "energy_head.modules_to_save" in name for name in trained)
    assert lora.modules_to_save is None  # the caller's object is left alone
    trainer.save_model(str(tmp_path / "adapter"))
    base = tiny_model()
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor(ragged_rows(2)["input_ids"])
    ours, theirs = trainer.model.eval()(input_ids=ids), loaded(input_ids=ids)
    assert torch.equal(ours.energies, theirs.energies)
    assert torch.equal(ours.logits, theirs.logits)
    with pytest.raises(ValueError, match="energy_adapter_rank=2"):
        ResidualEnergyTrainer(tiny_model(energy_adapter_rank=2), quiet_config(tmp_path), peft_config=lora)
    with pytest.raises(ValueError, match="freeze_lm=True"):
        ResidualEnergyTrainer(tiny_model(), quiet_config(tmp_path, freeze_lm=True), peft_config=lora)


def word_tokenizer():
    words = {"[END]": 0, "[PAD]": 1} | {chr(97 + i): i + 2 for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[END]", pad_token="[PAD]", unk_token="a")


@pytest.mark.parametrize("packing", [True, False])
def test_text_is_tokenised(tmp_path, packing):
    texts = datasets.Dataset.from_dict(
        {"body": [" ".join("abcdefgh"[: 2 + i % 6]) for i in range(16)], "n": range(16)}
    )
    trainer = ResidualEnergyTrainer(
        tiny_model(),
        quiet_config(tmp_path, text_column="body", max_length=16, packing=packing, max_steps=2),
        train_dataset=texts,
        eval_dataset={"held_out": texts},
        processing_class=word_tokenizer(),
    )
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in train_logs(trainer))
    assert "eval_held_out_elm_nll_bound" in trainer.evaluate()
    tokens = sum(len(text.split()) for text in texts["body"])  # all but the first token of a document, plus its end
    counted = sum(
        int((trainer.counted_labels(batch)[:, 1:] != -100).sum()) for batch in trainer.get_train_dataloader()
    )
    assert counted == tokens if not packing else counted <= tokens
    rows = trainer.train_dataset
    assert max(len(ids) for ids in rows["input_ids"]) <= 16


@pytest.mark.parametrize(
    ("rows", "tokenizer", "message"),
    [
        (datasets.Dataset.from_dict({"text": []}), True, "train_dataset is empty"),
        (datasets.Dataset.from_dict({"body": ["a b"]}), True, "Set text_column"),
        (datasets.Dataset.from_dict({"text": ["a b"]}), False, "processing_class"),
    ],
)
def test_unusable_datasets_are_refused(tmp_path, rows, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        ResidualEnergyTrainer(
            tiny_model(),
            quiet_config(tmp_path),
            train_dataset=rows,
            processing_class=word_tokenizer() if tokenizer else None,
        )


def test_checkpoint_loads_by_auto_class(tmp_path):
    trainer = ResidualEnergyTrainer(
        tiny_model(), quiet_config(tmp_path, save_strategy="steps", save_steps=3), train_dataset=ragged_rows(12)
    )
    trainer.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3", trust_remote_code=True)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), trainer.model.parameters(), strict=True))


def test_metrics_file_has_one_json_line_per_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 99, "loss": 1.0}\n')  # of an earlier run
    trainer = ResidualEnergyTrainer(
        tiny_model(),
        quiet_config(tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4),
        train_dataset=ragged_rows(16),
        eval_dataset=ragged_rows(4),
    )
    trainer.train()
    records = [json.loads(line) for line in _lines(tmp_path / "metrics.jsonl")]
    assert [(record["step"], "loss" in record, "eval_loss" in record) for record in records] == [
        (2, True, False),
        (4, True, False),
        (4, False, True),
        (4, False, False),
    ]
    assert records[0]["tokens_seen"] < records[1]["tokens_seen"] == trainer.state.num_input_tokens_seen
    assert {"epoch", "learning_rate", "grad_norm", "tokens_per_second", "peak_memory_mib", *TERMS} <= set(records[0])
    assert {f"eval_{name}" for name in TERMS} <= set(records[2])
