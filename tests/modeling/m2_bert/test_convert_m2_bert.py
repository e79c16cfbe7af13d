"""Conversion of original checkpoints: exact keys, every container, both heads, and clear refusals."""

import inspect
import json
import random
from datetime import timedelta

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_elm.command_line import main
from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.m2_bert import convert_m2_bert as converter
from hf_elm.modeling.m2_bert.convert_m2_bert import convert_reference_checkpoint
from hf_elm.modeling.m2_bert.implicit_filter import decay_rates, lag_times
from hf_elm.modeling.monarc import convert_monarc
from tests.modeling.m2_bert.tiny_m2_bert import FIXTURES, RECORDED, recorded


def synthetic_state(file, head="masked_lm", layers=2, seed=0):
    """Random weights under exactly the recorded keys and shapes (``layer.N`` stands for each of the layers)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = json.loads((FIXTURES / file).read_text())[head]
    state = {}
    for key, shape in shapes.items():
        for layer in range(layers) if "layer.N." in key else (0,):
            state[key.replace("layer.N.", f"layer.{layer}.")] = torch.randn(shape, generator=generator) * 0.05
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(tensor.numel())[None]
        elif key.endswith("pos_emb.t"):
            state[key] = lag_times(tensor.numel(), tensor.numel()).view(tensor.shape)
        elif key.endswith("modulation.deltas"):
            state[key] = -decay_rates(tensor.numel()).view(tensor.shape)
        elif key.endswith(".freq"):
            state[key] = state[key.split("implicit_filter")[0] + "implicit_filter.1.freq"]
        elif key == "cls.predictions.decoder.weight":
            state[key] = state["bert.embeddings.word_embeddings.weight"]
    return state


def composer_file(path, state):
    """As Composer writes it: the model inside the state of a training run, with random generators and times beside it."""
    rng = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    timestamp = {"batch": 70000, "total_wct": timedelta(hours=3)}
    torch.save(
        {"state": {"model": {f"model.{k}": v for k, v in state.items()}, "timestamp": timestamp}, "rng": [rng]}, path
    )


@pytest.mark.parametrize(
    ("file", "legacy", "heads"),
    [("keys_80m.json", False, ("masked_lm",)), ("keys_80m_additions.json", True, ("masked_lm", "seq_cls"))],
)
@pytest.mark.parametrize("layers", [2, pytest.param(12, marks=pytest.mark.slow)])  # 12 = the published size
def test_a_composer_checkpoint_with_the_published_keys(tmp_path, file, legacy, heads, layers):
    state = {}
    for head in heads:
        state |= synthetic_state(file, head, layers)
    composer_file(tmp_path / "m2-bert.pt", state)
    report = convert_reference_checkpoint(tmp_path / "m2-bert.pt", tmp_path / "out")
    assert report.leftovers == []
    config = report.config
    assert (config.hidden_size, config.intermediate_size, config.mlp_num_blocks) == (768, 3072, 4)
    assert (config.num_hidden_layers, config.max_position_embeddings, config.vocab_size) == (layers, 128, 30528)
    assert (config.mixer_pre_norm, config.bidirectional, config.residual_long_conv) == (legacy, True, True)
    assert (config.padding_mode, config.filter_decay, config.reference_length) == ("reference", "computed", 128)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if layers == 12:
        assert model.num_parameters() == (80_285_760 if legacy else 80_267_328)
    filter = model.m2_bert.encoder.layers[1].mixer.residual_filter
    prefix = "bert.encoder.layer.1.attention.filter_fn2."
    assert torch.equal(filter.weight_mid[1, 1], state[f"{prefix}implicit_filter_rev.4.weight"])
    assert torch.equal(filter.positions, state[f"{prefix}pos_emb.z"][0])
    assert model.lm_head.decoder.weight is model.m2_bert.embeddings.word_embeddings.weight
    if "seq_cls" in heads:
        assert report.heads == ["M2BertForMaskedLM", "M2BertForSequenceClassification", "M2BertModel"]
        classifier, info = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert torch.equal(classifier.classifier.weight, state["classifier.weight"])
        _, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]


def folder(path, name="tiny_resid_128", weights="model.safetensors", change=None, config=True):
    """A source folder of the recorded model, as an old Hub repository has it."""
    fields, state, _ = recorded(name)
    if change:
        change(state)
    path.mkdir()
    if config:
        (path / "config.json").write_text(json.dumps({"model_type": "bert", **fields}))
    if weights.endswith(".safetensors"):
        save_file({key: tensor.clone() for key, tensor in state.items()}, path / weights)
    else:
        torch.save(state, path / weights)
    return path


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "other.pt"])
@torch.no_grad()
def test_old_hub_folders_give_the_recorded_outputs(tmp_path, name, weights):
    _, _, io = recorded(name)
    source = folder(tmp_path / "source", name, weights)
    (source / "tokenizer.json").write_text("{}")
    report = convert_reference_checkpoint(source, tmp_path / "out")
    assert report.heads == ["M2BertForMaskedLM", "M2BertForSequenceClassification", "M2BertModel"]
    assert report.copied == ["tokenizer.json"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == report.num_parameters
    inputs = {key: io[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    raw = {"pad_to_length": 0}  # the fixtures have token type 1 on their pads, which the model itself would set to 0
    out = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", **raw).eval()(**inputs)
    assert_close(out.logits.mean(-1), io["mlm_logits_mean"], atol=2e-3, rtol=0)
    out = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", **raw).eval()(**inputs)
    assert_close(out.logits, io["cls_logits"], atol=2e-3, rtol=0)
    out = AutoModel.from_pretrained(tmp_path / "out", **raw).eval()(**inputs)
    assert_close(out.pooler_output, io["pooled_output"], atol=2e-3, rtol=0)


def test_sizes_and_flags_are_inferred_without_a_config(tmp_path):
    source = folder(tmp_path / "source", "tiny_additions_odd", config=False)
    found = convert_reference_checkpoint(source, tmp_path / "out").config
    expected = {
        "hidden_size": 60, "intermediate_size": 100, "mlp_num_blocks": 8, "filter_emb_dim": 7, "filter_order": 32,
        "max_position_embeddings": 96, "mixer_pre_norm": True, "num_labels": 3, "vocab_size": 512,
    }  # fmt: skip
    assert {name: getattr(found, name) for name in expected} == expected


def test_dense_ungated_and_causal_models(tmp_path):
    def change(state):
        for key in list(state):
            if "implicit_filter_rev" in key or "filter_fn2" in key:
                del state[key]
            elif key.endswith("gated_layers.weight"):
                state[key] = torch.randn(128, 64)
            elif key.endswith("wo.weight"):
                state[key] = torch.randn(64, 128)

    config = convert_reference_checkpoint(folder(tmp_path / "source", change=change), tmp_path / "out").config
    assert (config.bidirectional, config.residual_long_conv, config.mlp_gated) == (False, False, False)
    assert (config.mlp_num_blocks, config.intermediate_size) == (1, 128)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out")


@torch.no_grad()
def test_unusual_decay_buffers_are_kept(tmp_path):
    def change(state):
        for key in state:
            if key.endswith("pos_emb.t"):
                state[key] = state[key] * 0.5

    report = convert_reference_checkpoint(folder(tmp_path / "source", change=change), tmp_path / "out")
    assert report.config.filter_decay == "stored"
    filter = AutoModel.from_pretrained(tmp_path / "out").encoder.layers[0].mixer.gated_filter
    assert_close(filter.time, lag_times(128, 128) * 0.5)


def test_leftovers_are_reported(tmp_path):
    def change(state):
        state["bert.extra.weight"] = torch.zeros(2)

    source = folder(tmp_path / "source", change=change)
    assert convert_reference_checkpoint(source, tmp_path / "out").leftovers == ["bert.extra.weight"]


def drop(key):
    return lambda state: state.pop(key)


def untie(state):
    state["bert.encoder.layer.0.attention.filter_fn.implicit_filter_rev.3.freq"] += 1


def untie_decoder(state):
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1


def reshape(state):
    state["bert.encoder.layer.1.attention.in_linear.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("bert.encoder.layer.0.attention.filter_fn.pos_emb.z"), "not the weights of a Monarch Mixer BERT"),
        (drop("bert.encoder.layer.1.attention.in_linear.bias"), r"missing: .*layers.1.mixer.in_proj.bias"),
        (drop("bert.encoder.layer.1.attention.filter_fn.implicit_filter.4.bias"), r"implicit_filter\.4\.bias is missing"),
        (untie, r"implicit_filter_rev\.3\.freq differs"),
        (untie_decoder, r"decoder\.weight differs from the word embeddings"),
        (reshape, r"of another shape: .*in_proj.weight \(3, 3\) instead of \(192, 64\)"),
    ],
)  # fmt: skip
def test_wrong_weights_are_refused_and_nothing_is_written(tmp_path, change, message):
    source = folder(tmp_path / "source", change=change)
    with pytest.raises(ValueError, match=message):
        convert_reference_checkpoint(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


def test_pickles_of_more_than_numbers_are_refused(tmp_path, capsys):
    torch.save({"model": {"weight": torch.zeros(1)}, "callback": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="is refused"):
        convert_reference_checkpoint(tmp_path / "bad.pt", tmp_path / "out")
    assert "must not run" not in capsys.readouterr().out
    (tmp_path / "torn.pt").write_bytes((tmp_path / "bad.pt").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"torn\.pt"):
        convert_reference_checkpoint(tmp_path / "torn.pt", tmp_path / "out")


def test_unsupported_options_and_converted_folders_are_named(tmp_path):
    source = folder(tmp_path / "source")
    fields = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**fields, "sequence_token_planting": True}))
    with pytest.raises(ValueError, match="sequence_token_planting=true"):
        convert_reference_checkpoint(source, tmp_path / "out")
    (source / "config.json").write_text(json.dumps({"model_type": "m2_bert"}))
    with pytest.raises(ValueError, match="converted already"):
        convert_reference_checkpoint(source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold one weight file"):
        convert_reference_checkpoint(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert_reference_checkpoint(tmp_path / "nowhere.pt", tmp_path / "out")


def test_an_existing_folder_is_left_alone(tmp_path):
    source = folder(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert_reference_checkpoint(source, tmp_path / "out")
    convert_reference_checkpoint(source, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_the_command_converts_and_what_needs_a_tokenizer_is_refused_in_one_line(tmp_path, capsys):
    source = folder(tmp_path / "source")
    assert main(["convert", "m2-bert", str(source), str(tmp_path / "out")]) == 0
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out").config, M2BertConfig)
    capsys.readouterr()
    run = f"output_dir={tmp_path / 'run'}"
    refusals = [
        ("no tokenizer", ["train", "family=m2_bert", f"model.checkpoint={tmp_path / 'out'}", run]),
        ("generates no text", ["generate", f"checkpoint={tmp_path / 'out'}", "prompt=a"]),
        ("no tokenizer", ["evaluate", f"checkpoint={tmp_path / 'out'}"]),
        ("existing", ["convert", "m2-bert", str(source), str(tmp_path / "out")]),
    ]
    for message, arguments in refusals:
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]  # after transformers' progress bars
        assert error.startswith("hf-elm ")
        assert message in error or "OUT" in error


@pytest.mark.parametrize("name", ["_written_whole", "_set_aside"])
def test_the_copied_writers_are_alike(name):
    """Families share no module on the Hub, so these few lines are repeated."""
    assert inspect.getsource(getattr(converter, name)) == inspect.getsource(getattr(convert_monarc, name))
