"""Every example is short, says what it needs, and does with --smoke what it says."""

import math
import re
import tomllib

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from tests.examples.example_files import EXAMPLES, ROOT, load_example


HEADER = re.compile(r"^# /// script\n((?:# .*\n)+)# ///\n", re.MULTILINE)


@pytest.fixture
def smoke(tmp_path, monkeypatch, capsys):
    """A function that runs an example in a temporary folder: its result, its folder and what it printed."""

    def run(name, *more):
        torch.manual_seed(0)
        monkeypatch.chdir(tmp_path)
        arguments = ["--smoke", "--output_dir", "out", *more]
        found = load_example(name).main(arguments)
        return found, tmp_path / "out", capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_names_its_packages(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    header = tomllib.loads(HEADER.search(text).group(1).replace("# ", ""))
    assert header["requires-python"] == ">=3.11"
    package = header["dependencies"][0]
    extras = re.findall(r"\w+", package.removeprefix("hf_elm"))
    declared = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert package.startswith("hf_elm")
    assert set(extras) <= set(declared)
    assert (path.parent / header["tool"]["uv"]["sources"]["hf_elm"]["path"] / "setup.py").is_file()
    assert f"examples/{path.name}" in text
    assert "--smoke" in text


def test_train_monarc(smoke):
    result, folder, printed = smoke("train_monarc")
    assert result.method == "exact"
    assert result.elm_nll < math.log(258)  # better than guessing bytes
    assert "import os" in printed
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert any(parameter.any() for parameter in model.energy_parameters())


def test_adapt_causal_lm_leaves_the_lm_alone(smoke):
    result, folder, printed = smoke("adapt_causal_lm")
    assert "LM unchanged: True" in printed
    assert result.elm_nll < result.lm_nll  # the LM is new: an energy cannot but help
    assert AutoModelForCausalLM.from_pretrained(folder).config.energy_adapter_rank == 8


def test_adapt_causal_lm_wants_a_model_or_a_trial(smoke, capsys):
    with pytest.raises(SystemExit):
        load_example("adapt_causal_lm").main([])
    assert "give --model, or --smoke alone" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's use of it
def test_peft_energy_head_comes_back(smoke):
    pytest.importorskip("peft")
    (ours, theirs), folder, printed = smoke("peft_energy_head")
    torch.testing.assert_close(ours, theirs)
    assert ours.any()
    assert "trainable params" in printed
    assert (folder / "adapter_config.json").is_file()


def test_think_nano_ebm(smoke):
    result, folder, _ = smoke("think_nano_ebm")
    assert result.estimates["thinking_gain"].value > 0  # a step of thinking has terms that system 1 lacks
    assert (folder / "landscape.png").stat().st_size > 10_000


def test_pretrain_m2_bert(smoke):
    metrics, folder, printed = smoke("pretrain_m2_bert")
    assert metrics["eval_loss"] < math.log(512)
    assert len(re.findall(r"^0\.\d+  import", printed, re.MULTILINE)) == 3
    assert AutoModel.from_pretrained(folder).config.model_type == "m2_bert"


def test_retrieve_m2_bert(smoke):
    pytest.importorskip("bm25s")
    result, folder, printed = smoke("retrieve_m2_bert")
    assert "BM25" in str(result)
    assert -1 <= float(re.search(r"cosine (-?[\d.]+)", printed).group(1)) <= 1
    assert (folder / "model.safetensors").is_file()


def test_an_output_folder_is_never_written_over(smoke, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for name in ("train_monarc", "think_nano_ebm", "pretrain_m2_bert", "retrieve_m2_bert"):
        with pytest.raises(FileExistsError, match="output_dir"):
            smoke(name)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
