"""Every command end to end on a tiny model, and its errors: one line, the right exit status, nothing overwritten."""

import errno
import inspect
import json
import shutil
import textwrap

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_elm.command_line import COMMANDS, main


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def sizes(prefix="model.text_config."):
    return [f"{prefix}{name}={value}" for name, value in SHAPE.items()]


def train_arguments(corpus, out, *more):
    """Two optimizer steps of the bundled tiny recipe on a tiny model, a checkpoint after each."""
    small = [
        "data.sequence_length=32",
        "train.per_device_train_batch_size=4",
        "train.max_steps=2",
        "train.save_steps=1",
    ]
    quiet = ["train.disable_tqdm=true", "train.logging_steps=1", "evaluate.max_tokens=200", "evaluate.progress=false"]
    return ["train", "monarc_tiny", f"data.corpus={corpus}", f"output_dir={out}", *sizes(), *small, *quiet, *more]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(inspect.getsource(textwrap), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(train_arguments(corpus, out)) == 0
    return out


@pytest.fixture(scope="module")
def base_lm(tmp_path_factory, run):
    """The language model inside the run's model, saved as an ordinary one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path_factory.mktemp("base") / "lm"
    AutoModelForCausalLM.from_pretrained(run).lm.save_pretrained(out)
    AutoTokenizer.from_pretrained(run).save_pretrained(out)
    return out


def fails(capsys, arguments, *parts, status=2):
    """The command ends with ``status`` and one line on stderr that holds ``parts``."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(lines) == 1
    assert lines[0].startswith(f"hf-elm {arguments[0]}: error: ")
    for part in parts:
        assert part in lines[0]


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------- train


def test_train_writes_everything_about_the_run(run, corpus):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["train"]["max_steps"] == 2
    assert recipe["data"]["corpus"] == str(corpus)
    assert recipe["data"]["held_out_fraction"] == 0.05  # a default, written out
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"device", "python", "platform", "command", "commit"} <= environment.keys()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics if "lm_loss" in record] == [1, 2]
    likelihood = json.loads((run / "likelihood.json").read_text())
    assert likelihood["unit"] == "nats/token"
    assert likelihood["elm_nll"] > 0
    config = json.loads((run / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert {"model.safetensors", "tokenizer.json", "modeling_monarc.py"} <= {path.name for path in run.iterdir()}
    assert (run / "checkpoint-1").is_dir()


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(run, corpus, capsys):
    before = listing(run)
    fails(capsys, train_arguments(corpus, run), "already holds this run", "resume=true")
    fails(capsys, train_arguments(corpus, run, "seed=1"), "seed is 0 there and 1 here", "choose another output_dir")
    fails(capsys, train_arguments(corpus, run, "seed=1", "resume=true"), "another recipe: seed is 0 there")
    assert listing(run) == before


def test_resume_repeats_the_uninterrupted_run(run, corpus, tmp_path):
    interrupted = tmp_path / "first"
    shutil.copytree(run, interrupted)
    shutil.rmtree(interrupted / "checkpoint-2")
    for name in ("model.safetensors", "likelihood.json"):
        (interrupted / name).unlink()
    recipe = (interrupted / "recipe.yaml").read_text().replace(str(run), str(interrupted))
    (interrupted / "recipe.yaml").write_text(recipe)
    assert main(train_arguments(corpus, interrupted, "resume=true")) == 0
    expected, got = load_file(run / "model.safetensors"), load_file(interrupted / "model.safetensors")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert json.loads((interrupted / "likelihood.json").read_text()) == json.loads(
        (run / "likelihood.json").read_text()
    )


def test_a_checkpoint_can_be_trained_further(run, corpus, tmp_path):
    arguments = [
        "train",
        "monarc_continue_rewarmed",
        f"model.checkpoint={run}",
        f"data.corpus={corpus}",
        "evaluate.skip=true",
    ]
    arguments += [
        f"output_dir={tmp_path / 'more'}",
        "data.sequence_length=32",
        "--train.max_steps",
        "1",
        "train.disable_tqdm=true",
    ]
    assert main(arguments) == 0
    before, after = load_file(run / "model.safetensors"), load_file(tmp_path / "more" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm.lm_head.weight"], after["lm.lm_head.weight"])
    assert not (tmp_path / "more" / "likelihood.json").exists()


@pytest.mark.parametrize("recipe", ["monarc_adapt_frozen", "monarc_adapt_joint"])
def test_adapt_wraps_an_existing_lm(base_lm, corpus, tmp_path, recipe):
    arguments = ["adapt", *([recipe] if "joint" in recipe else []), f"model.base={base_lm}", f"data.corpus={corpus}"]
    arguments += [
        f"output_dir={tmp_path / 'out'}",
        "data.sequence_length=32",
        "train.max_steps=2",
        "train.warmup_steps=0",
    ]
    arguments += ["train.disable_tqdm=true", "evaluate.max_tokens=50", "evaluate.progress=false"]
    assert main(arguments) == 0
    base, adapted = load_file(base_lm / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    unchanged = all(torch.equal(adapted[f"lm.{name}"], value) for name, value in base.items())
    assert unchanged == (recipe == "monarc_adapt_frozen")
    assert any(name.startswith("energy_adapter") for name in adapted) == (recipe == "monarc_adapt_frozen")


def test_wrong_training_input_is_one_clear_line(run, base_lm, corpus, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    cases = [
        (train_arguments(tmp_path / "empty.txt", out), "empty.txt"),
        (train_arguments(tmp_path / "nowhere.txt", out), "nowhere.txt"),
        (train_arguments(corpus, out, f"model.base={base_lm}"), "model.preset and model.base exclude each other"),
        (train_arguments(corpus, out, "model.energy_head=cubic"), "energy_head", "bilinear"),
        (train_arguments(corpus, out, "model.preset=huge"), "preset", "tiny"),
        (train_arguments(corpus, out, "tokenizer.kind=words"), "tokenizer.kind", "bpe"),
        (train_arguments(corpus, out, "tokenizer.path=x"), "tokenizer.kind=char", "drop one"),
        (train_arguments(corpus, out, "model.text_config.vocab_size=5"), "vocab_size"),
        (train_arguments(corpus, out, "train.num_negatives=0"), "num_negatives"),
        (train_arguments(corpus, out, "family=nope"), "family", "monarc"),
        (
            ["train", f"model.checkpoint={tmp_path / 'bad'}", f"data.corpus={corpus}", f"output_dir={out}"],
            "config.json",
        ),
        (["adapt", f"data.corpus={corpus}"], "model.base="),
        (["adapt", f"model.base={tmp_path / 'bad'}", f"data.corpus={corpus}", f"output_dir={out}"], "model.base="),
        (["train", f"model.checkpoint={base_lm}", f"data.corpus={corpus}", f"output_dir={out}"], "stablelm", "adapt"),
        (["train", f"model.checkpoint={run}", "data.sequence_length=4096", f"output_dir={out}"], "4096", "positions"),
    ]
    for arguments, *parts in cases:
        fails(capsys, arguments, *parts)
    assert not out.exists()


def test_a_diverged_run_names_the_step_and_is_no_traceback(corpus, tmp_path, capsys):
    wild = ["train.learning_rate=1e30", "train.warmup_steps=0", "train.max_grad_norm=0"]
    fails(capsys, train_arguments(corpus, tmp_path / "out", *wild), "step", status=1)


# ------------------------------------------------------------------------------------- evaluate, generate, publish


def test_evaluate_repeats_the_runs_own_likelihood(run, tmp_path, capsys):
    output = tmp_path / "likelihood.json"
    arguments = ["evaluate", f"checkpoint={run}", f"output={output}", "max_tokens=200", "progress=false"]
    assert main(arguments) == 0
    assert "ELM" in capsys.readouterr().out
    expected, got = json.loads((run / "likelihood.json").read_text()), json.loads(output.read_text())
    assert got["elm_nll"] == pytest.approx(expected["elm_nll"], abs=1e-6)
    assert got["num_tokens"] == expected["num_tokens"]
    fails(capsys, arguments, "output=", "exists")


def test_evaluate_takes_another_text_whole_and_another_method(run, base_lm, corpus, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text()[:1500], encoding="utf-8")
    output = tmp_path / "out.json"
    arguments = [
        "evaluate",
        f"checkpoint={run}",
        f"data.corpus={other}",
        "method=sampled",
        "num_samples=4",
        "exact_top=8",
    ]
    assert main([*arguments, f"equal_compute_lm={base_lm}", f"output={output}", "progress=false"]) == 0
    result = json.loads(output.read_text())
    assert 1300 < result["num_tokens"] <= 1501  # all of the text, not its held-out part
    assert result["elm_nll_lower"] <= result["elm_nll_upper"]
    assert result["equal_compute_lm_nll"] == pytest.approx(result["lm_nll"], abs=1e-5)  # the same LM
    fails(capsys, [*arguments, "part=half"], "part", "held_out")


def test_generate_continues_and_streams(run, capsys):
    arguments = ["generate", f"checkpoint={run}", "prompt=def wrap(", "max_new_tokens=5", "seed=3"]
    capsys.readouterr()
    assert main(arguments) == 0
    streamed = capsys.readouterr().out
    assert streamed.startswith("def wrap(")
    assert len(streamed.rstrip("\n")) > len("def wrap(")
    assert main([*arguments, "stream=false"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == streamed.rstrip("\n")
    assert main([*arguments, "num_return_sequences=2", "num_candidates=2", "candidate_mode=topk"]) == 0
    assert capsys.readouterr().out.count("def wrap(") == 2


def test_generate_without_sampling_is_deterministic_and_an_empty_prompt_starts_a_document(run, capsys):
    outputs = []
    for seed in (1, 2):
        capsys.readouterr()
        assert main(["generate", f"checkpoint={run}", "max_new_tokens=4", "do_sample=false", f"seed={seed}"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_wrong_generation_input_is_one_clear_line(run, base_lm, tmp_path, capsys):
    corrupt = tmp_path / "corrupt"
    shutil.copytree(run, corrupt, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = (corrupt / "model.safetensors").read_bytes()
    (corrupt / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    cases = [
        (["generate", "prompt=x"], "checkpoint="),
        (["generate", f"checkpoint={tmp_path / 'nowhere'}"], "nowhere"),
        (["generate", f"checkpoint={base_lm}", "prompt=x"], "stablelm", "hf-elm adapt"),
        (["generate", f"checkpoint={corrupt}", "prompt=x"], "cannot be loaded"),
        (["generate", f"checkpoint={run}", "prompt=x", "temprature=1"], "temperature"),
        (["generate", f"checkpoint={run}", "prompt=" + "x" * 2000], "prompt has", "positions"),
        (["generate", f"checkpoint={run}", "prompt=x", "device=abacus"], "device"),
        (["generate", f"checkpoint={run}", "prompt=x", "dtype=int3"], "dtype", "bfloat16"),
        (["generate", f"checkpoint={run}", "prompt=x", "num_candidates=0"], "num_candidates"),
    ]
    for arguments, *parts in cases:
        fails(capsys, arguments, *parts)


def test_export_writes_a_folder_that_works_without_the_package(run, tmp_path, capsys):
    out = tmp_path / "exported"
    assert main(["export", str(run), str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "modeling_monarc.py",
    } <= names
    before = listing(out)
    fails(capsys, ["export", run, out], "OUT=", "not empty")
    assert listing(out) == before
    (tmp_path / "file").write_text("")
    fails(capsys, ["export", run, tmp_path / "file"], "OUT=")
    fails(capsys, ["export", tmp_path, tmp_path / "new"], "config.json")


def test_a_folder_that_needs_the_package_is_not_exported(run, tmp_path, capsys, monkeypatch):
    from hf_elm import hub_folder

    load = hub_folder.load_checkpoint

    def leaking(*args, **kwargs):
        model, tokenizer = load(*args, **kwargs)
        save = model.save_pretrained

        def save_and_leak(folder):
            save(folder)
            code = folder / "residual_energy.py"
            code.write_text(f"import hf_elm\n{code.read_text()}")

        model.save_pretrained = save_and_leak
        return model, tokenizer

    monkeypatch.setattr(hub_folder, "load_checkpoint", leaking)
    fails(capsys, ["export", run, tmp_path / "out"], "does not work without hf_elm", "hf_elm")
    assert list(tmp_path.iterdir()) == []


def test_convert_checks_its_arguments(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    fails(capsys, ["convert", "monarc", tmp_path], "FAMILY SOURCE OUT")
    fails(capsys, ["convert", "nope", tmp_path, tmp_path / "out"], "family", "monarc")
    fails(capsys, ["convert", "monarc", tmp_path / "nowhere", tmp_path / "out"], "SOURCE=")
    fails(capsys, ["convert", "monarc", tmp_path, tmp_path / "full"], "OUT=", "not empty")


def test_env_prints_versions(capsys):
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"]["torch"] == torch.__version__
    assert main(["env"]) == 0
    assert "transformers" in capsys.readouterr().out
    fails(capsys, ["env", "--yaml"], "--json")


# ------------------------------------------------------------------------------------------------------- exit status


class Command:
    """usage: a stand-in."""

    def __init__(self, error):
        self.error = error

    def run(self, arguments):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left"),
        (RuntimeError("a bug"), 1, "Traceback"),
        (KeyError("a bug"), 1, "Traceback"),
        (ValueError("from elsewhere"), 1, "Traceback"),  # not raised by our code
    ],
)
def test_exit_status(monkeypatch, capsys, error, status, message):
    monkeypatch.setattr("importlib.import_module", lambda name: Command(error))
    assert main(["train", "x"]) == status
    assert message in capsys.readouterr().err


def test_every_command_has_a_help_text(capsys):
    for name in COMMANDS:
        capsys.readouterr()
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: hf-elm {name}")


def test_debugging_shows_the_traceback_of_a_user_error(monkeypatch, capsys):
    monkeypatch.setenv("HF_ELM_DEBUG", "1")
    assert main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err
