"""Training of refined models: every part learns, accumulation and resumption change nothing, logs are the model's own."""

import math
import os

import datasets
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.trainers import refinement_config
from hf_elm.trainers.packing import PackingCollator
from hf_elm.trainers.refinement_config import RefinementConfig
from hf_elm.trainers.refinement_trainer import RefinementTrainer
from hf_elm.trainers.tokenization import build_tokenizer
from tests.trainers.tiny_training import TINY_LM, VOCAB, ragged_rows


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CONTRASTIVE = {"use_contrastive": True, "contrastive_type": "fast_pcd", "n_persistent": 32, "contrastive_k": 2}


@pytest.fixture(autouse=True)
def _quiet(capsys):
    """The Trainer prints its logs; they are not this test's output."""


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    return NanoEBMForRefinement(NanoEBMConfig(**(SIZES | fields)))


def quiet_config(output_dir, **fields):
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "curves": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "optim": "adamw_torch",
    }
    return RefinementConfig(output_dir=str(output_dir), **{**defaults, **fields})


def rows(count):
    return ragged_rows(count).remove_columns("negatives")


def train_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("fields", [{}, CONTRASTIVE | {"info_nce_weight": 0.1, "langevin_noise": 0.01}])
def test_every_parameter_moves_and_the_loss_falls(tmp_path, fields):
    model = tiny_model(**fields)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = RefinementTrainer(model, quiet_config(tmp_path, max_steps=20), train_dataset=rows(4))
    trainer.train()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    logs = train_logs(trainer)
    for name in ("loss", "nll_s1", "nll_s2"):
        assert logs[-1][name] < 0.8 * logs[0][name]
    assert ("contrastive_loss" in logs[0]) == ("info_nce_loss" in logs[0]) == bool(fields)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_accumulation_equals_one_batch(tmp_path, batch, accumulation):
    """Rows of different target counts, one optimizer step of plain descent."""
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    models, logs = [], []
    for size, steps in ((8, 1), (batch, accumulation)):
        model = tiny_model(use_contrastive=True, langevin_noise_scale=0.0)
        args = quiet_config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **options)
        trainer = RefinementTrainer(model, args, train_dataset=rows(8))
        trainer.train()
        models.append(model)
        logs.append(train_logs(trainer))
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    for one, other in zip(*logs, strict=True):
        for name in ("loss", "nll_s1", "nll_s2", "contrastive_loss", "alpha_1", "alpha_2"):
            assert math.isclose(one[name], other[name], rel_tol=1e-4), name


def test_resume_equals_uninterrupted_run(tmp_path):
    """Shuffled rows, dropout, noise, persistent chains, accumulation: the same weights and chains, bit for bit."""
    fields = CONTRASTIVE | {"langevin_noise": 0.01, "dropout": 0.1}
    options = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "random",
        "lr_scheduler_type": "cosine_with_min_lr",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = RefinementTrainer(tiny_model(**fields), quiet_config(tmp_path, **options), train_dataset=rows(12))
    whole.train()
    resumed = RefinementTrainer(
        tiny_model(seed=1, **fields), quiet_config(tmp_path, **options), train_dataset=rows(12)
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.count_nonzero(state["chains.displacement"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert type(loaded) is NanoEBMForRefinement


def test_logged_terms_are_the_models_own(tmp_path):
    model, data = tiny_model(think_steps=3), rows(4)
    out = model.train()(**PackingCollator()(list(data)))
    trainer = RefinementTrainer(model, quiet_config(tmp_path, max_steps=1), train_dataset=data)
    trainer.train()
    log = train_logs(trainer)[0]
    for name in ("loss", "nll_s1", "nll_s2"):
        assert math.isclose(log[name], out[name].item(), rel_tol=1e-5), name
    assert math.isclose(log["delta_nll"], (out.nll_s2 - out.nll_s1).item(), abs_tol=1e-5)
    assert [log[f"alpha_{k}"] for k in (1, 2, 3)] == pytest.approx([0.97] * 3, abs=1e-5)
    assert trainer.state.num_input_tokens_seen == int(out.target_mask.sum())


def test_evaluation_is_token_weighted_and_knows_the_fall_of_the_energy(tmp_path):
    data, model = rows(7), tiny_model()
    trainer = RefinementTrainer(model, quiet_config(tmp_path, per_device_eval_batch_size=2), eval_dataset=data)
    metrics = trainer.evaluate()
    with torch.no_grad():
        out = model.eval()(**PackingCollator()(list(data)), output_energies=True)
    for name in ("loss", "nll_s1", "nll_s2"):
        assert math.isclose(metrics[f"eval_{name}"], out[name].item(), rel_tol=1e-5), name
    gap = (out.energies[0] - out.energies[-1])[out.target_mask].mean().item()
    assert gap > 0
    assert math.isclose(metrics["eval_energy_gap"], gap, rel_tol=1e-3)
    assert trainer.evaluate()["eval_nll_s2"] == metrics["eval_nll_s2"]
    assert trainer.predict(data).predictions.shape == (7, 12, VOCAB)


def test_system_one_can_go_first(tmp_path):
    trainer = RefinementTrainer(tiny_model(), quiet_config(tmp_path, system_one_steps=2), train_dataset=rows(12))
    trainer.train()
    assert [log["delta_nll"] == 0 for log in train_logs(trainer)] == [True, True, False]


@pytest.mark.parametrize("layout", ["packed", "left", "right", "ragged labels"])
def test_counted_labels_are_the_models_targets(tmp_path, layout):
    model = tiny_model()
    trainer = RefinementTrainer(model, quiet_config(tmp_path))
    batch = PackingCollator()(list(rows(4)))
    if layout in ("left", "right"):
        batch = {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}
        mask = torch.ones_like(batch["labels"])
        mask[1:, : 4 if layout == "left" else 0] = 0
        mask[1:, 9 if layout == "right" else 12 :] = 0
        batch["attention_mask"] = mask
    elif layout != "ragged labels":
        batch["labels"] = batch["input_ids"]
    counted = trainer.counted_labels(batch)[:, 1:] != -100
    assert torch.equal(counted, model(**batch).target_mask[:, :-1])


def test_only_matrices_decay(tmp_path):
    trainer = RefinementTrainer(tiny_model(), quiet_config(tmp_path))
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    assert "energy_head.weight" in decayed
    assert "energy.unit_out.weight" in decayed
    assert not {"trunk.token_embedding.weight", "step_sizes.raw", "trunk.norm.weight"} & decayed


def test_text_is_tokenised_and_packed(tmp_path):
    texts = datasets.Dataset.from_dict({"text": ["to be or not to be " * 5, "that is the question " * 5]})
    tokenizer = build_tokenizer("byte")
    model = tiny_model(vocab_size=len(tokenizer))
    args = quiet_config(tmp_path, max_length=32)
    trainer = RefinementTrainer(model, args, train_dataset=texts, eval_dataset=texts, processing_class=tokenizer)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_nll_s2"])


def test_a_language_model_gets_its_refinement(tmp_path):
    lm = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in TINY_LM.items() if key != "model_type"}))
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    lm.save_pretrained(tmp_path / "lm")
    for source in (lm, str(tmp_path / "lm")):
        trainer = RefinementTrainer(source, quiet_config(tmp_path / "run", max_steps=8), train_dataset=rows(4))
        trainer.train()
        state = trainer.model.lm.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in before.items())
        assert train_logs(trainer)[-1]["delta_nll"] < -0.01
    trainer.save_model(str(tmp_path / "saved"))
    again = RefinementTrainer(str(tmp_path / "saved"), quiet_config(tmp_path / "run"), train_dataset=rows(4))
    assert torch.equal(again.model.energy.unit_in.weight, trainer.model.energy.unit_in.weight)
    with pytest.raises(TypeError, match="must be a NanoEBMForRefinement"):
        RefinementTrainer(torch.nn.Linear(2, 2), quiet_config(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("system_one_steps", -1), ("max_length", 1), ("packing_strategy", "tight"), ("label_smoothing_factor", 0.1)],
)
def test_arguments_out_of_range_are_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got"):
        quiet_config(tmp_path, **{field: value})


@pytest.mark.parametrize("installed", [True, False])
def test_wandb_is_used_where_it_is_installed(tmp_path, monkeypatch, installed):
    monkeypatch.setenv("WANDB_PROJECT", "")
    monkeypatch.setattr(refinement_config.importlib.util, "find_spec", lambda name: object() if installed else None)
    warnings = []
    monkeypatch.setattr(refinement_config.logger, "warning", warnings.append)
    args = quiet_config(tmp_path, wandb_project="nanoebm")
    assert args.report_to == (["wandb"] if installed else [])
    assert os.environ["WANDB_PROJECT"] == ("nanoebm" if installed else "")
    assert [("not installed" in text) for text in warnings] == ([] if installed else [True])
