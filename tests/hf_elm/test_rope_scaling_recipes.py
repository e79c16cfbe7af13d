"""``model.rope_scaling`` of `hf-elm train` and `hf-elm adapt`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_elm.command_line import main
from hf_elm.commands.train import resolve_settings
from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.trainers.tokenization import build_tokenizer
from hf_elm.training_run import make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = build_tokenizer("byte")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, num_key_value_heads=2, **sizes, **special
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_both_spellings_of_the_command_line_reach_a_new_model():
    tokenizer = build_tokenizer("byte")
    for written in (["model.rope_scaling={rope_type: linear, factor: 4}"],
                    ["--model.rope_scaling.rope_type", "linear", "model.rope_scaling.factor=4"]):  # fmt: skip
        settings = resolve_settings(["monarc_tiny", *written], "train")
        model = make_model(_family(), settings, tokenizer)
        assert model.config.text_config.rope_parameters["factor"] == 4.0
        assert model.config.text_config.max_position_embeddings == 4096


def test_adapting_trains_on_rows_beyond_the_range_of_the_base(base, tmp_path, capsys):
    run = tmp_path / "run"
    quiet = [
        "train.max_steps=1",
        "train.use_cpu=true",
        "train.save_strategy=no",
        "train.disable_tqdm=true",
        "evaluate.skip=true",
    ]
    data = ["data.max_bytes=300000", "data.sequence_length=100", "train.per_device_train_batch_size=2"]
    command = ["adapt", f"model.base={base}", f"output_dir={run}", *quiet, *data]
    assert main(command) == 2
    assert "sequence_length=100 exceeds the model's 32 positions" in capsys.readouterr().err
    assert main([*command, "model.rope_scaling.rope_type=linear", "model.rope_scaling.factor=4"]) == 0
    model = MonArcForCausalLM.from_pretrained(run).eval()
    assert model.config.text_config.max_position_embeddings == 128
    ids = torch.arange(90)[None]
    twin = AutoModelForCausalLM.from_pretrained(
        base, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ).eval()
    with torch.no_grad():  # the LM was frozen
        torch.testing.assert_close(model(ids).logits, twin(input_ids=ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [("{rope_type: linear}", 'rope_scaling["factor"]'), ("{rope_type: linear, fctor: 2}", 'the nearest is "factor"')],
)
def test_malformed_settings_name_the_key(base, tmp_path, capsys, scaling, named):
    command = ["adapt", f"model.base={base}", f"output_dir={tmp_path / 'run'}", f"model.rope_scaling={scaling}"]
    assert main([*command, "data.max_bytes=300000", "data.sequence_length=32"]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _family():
    from hf_elm.families import find_family

    return find_family("monarc")
