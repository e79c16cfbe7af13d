"""``hf-elm plot``: every kind on a tiny run, and its errors: one line, nothing overwritten."""

import inspect
import json
import subprocess
import sys
import textwrap

import pytest

from hf_elm.command_line import main
from hf_elm.command_schemas import PLOT_FAMILIES, PLOT_KINDS, plot_schema
from tests.modeling.monarc.tiny_monarc import tiny_monarc


SMALL = {
    "landscape": ["grid=7"],
    "animate": ["grid=7", "frames_per_step=2"],
    "gain": ["max_tokens=100"],
    "energies": ["max_tokens=40", "max_rows=512"],
    "calibration": ["max_tokens=40", "max_rows=512"],
    "heatmap": ["text=def f(x): # <b>", "max_rows=512"],
}
ENERGY_KINDS = [kind for kind, family in PLOT_FAMILIES.items() if family == "monarc"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plots"), "nano-ebm", "tokenizer.kind=char")


@pytest.fixture(scope="module")
def monarc_run(tmp_path_factory):
    inner = "{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    return trained(
        tmp_path_factory.mktemp("energies"), "monarc", "tokenizer.kind=char", f"model.text_config={inner}", sizes=()
    )


def trained(
    folder,
    family,
    *settings,
    sizes=("model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2"),
):
    corpus = folder / "text.txt"
    corpus.write_text(inspect.getsource(textwrap), encoding="utf-8")
    quiet = [
        "train.max_steps=2",
        "train.disable_tqdm=true",
        "train.use_cpu=true",
        "train.curves=false",
        "evaluate.skip=true",
    ]
    data = [f"data.corpus={corpus}", "data.block_size=32", "data.held_out_fraction=0.3", "train.logging_steps=1"]
    batch = ["train.per_device_train_batch_size=2"]
    where = f"output_dir={folder / 'run'}"
    assert main(["train", f"family={family}", where, *data, *batch, *quiet, *settings, *sizes]) == 0
    return folder / "run"


def arguments_of(kind, run, output):
    prompt = [] if kind in ("gain", "training", *ENERGY_KINDS) else ["prompt=def wrap("]
    return ["plot", kind, f"checkpoint={run}", f"output={output}", *prompt, *SMALL.get(kind, [])]


def fails(capsys, arguments, *parts):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("kind", PLOT_KINDS)
def test_every_kind_writes_its_file_and_prints_the_path(run, monarc_run, tmp_path, capsys, kind):
    run = monarc_run if kind in ENERGY_KINDS else run
    output = tmp_path / ("film.gif" if kind == "animate" else "figure.png")
    capsys.readouterr()
    assert main(arguments_of(kind, run, output)) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_bytes()[:4] == (b"GIF8" if kind == "animate" else b"\x89PNG")
    before = output.read_bytes()
    fails(capsys, arguments_of(kind, run, output), "output=", "exists")
    assert output.read_bytes() == before


def test_the_suffix_chooses_the_format_and_the_name_has_a_default(run, tmp_path, capsys, monkeypatch):
    for suffix, head in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert main(arguments_of("tokens", run, tmp_path / f"figure.{suffix}")) == 0
        assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(head)
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "tokens", f"checkpoint={run}", "prompt=def"]) == 0
    assert (tmp_path / "tokens.png").is_file()
    fails(capsys, ["plot", "tokens", f"checkpoint={run}", "prompt=def"], "output=tokens.png exists")


def test_gain_reads_the_runs_held_out_text_or_another(run, tmp_path, monkeypatch):
    seen = []
    from hf_elm.plots import checkpoint_figures

    rows_of = checkpoint_figures.packed_part

    def remembered(data, part, tokenizer, seed):
        seen.append((data["corpus"], data["sequence_length"], part))
        return rows_of(data, part, tokenizer, seed)

    monkeypatch.setattr(checkpoint_figures, "packed_part", remembered)
    other = tmp_path / "other.txt"
    other.write_text(inspect.getsource(textwrap)[:2000], encoding="utf-8")
    assert main(arguments_of("gain", run, tmp_path / "own.png")) == 0
    assert main([*arguments_of("gain", run, tmp_path / "other.png"), f"corpus={other}"]) == 0
    assert seen == [(str(run.parent / "text.txt"), 32, "held_out"), (str(other), 32, "all")]


def test_wrong_input_is_one_clear_line(run, tmp_path, capsys):
    monarc = tmp_path / "monarc"
    tiny_monarc().save_pretrained(monarc)
    (tmp_path / "file").write_text("")
    out = f"output={tmp_path / 'figure.png'}"
    given = [f"checkpoint={run}", "prompt=def", out]
    cases = [
        (["plot"], "landscape"),
        (["plot", "landscpe", *given], 'the nearest is "landscape"'),
        (["plot", "landscape", "prompt=def", out], "checkpoint="),
        (["plot", "landscape", f"checkpoint={tmp_path / 'nowhere'}", "prompt=x", out], "does not exist"),
        (["plot", "landscape", f"checkpoint={monarc}", "prompt=x", out], "is a monarc model", "nanoEBM"),
        (["plot", "landscape", f"checkpoint={run}", out], "prompt must be some text"),
        (["plot", "landscape", f"checkpoint={run}", f"prompt={'x' * 300}", out], "prompt has 300 tokens", "positions"),
        (["plot", "landscape", f"checkpoint={run}", "prompt=5 £", out], "'£'"),
        (["plot", "landscape", *given, "mode=flat"], "mode", "contour"),
        (["plot", "landscape", *given, "grid=1"], "grid"),
        (["plot", "landscape", *given, "think_steps=0"], "think_steps"),
        (["plot", "landscape", *given, "think_lr=3"], "think_lr must be in (0, 1]"),
        (["plot", "landscape", *given, "fps=3"], "fps does not concern plot landscape"),
        (["plot", "landscape", *given, "promt=x"], 'nearest valid key is "prompt"'),
        (["plot", "animate", *given], "must end in .gif"),
        (["plot", "landscape", *given[:2], f"output={tmp_path / 'file' / 'x.png'}"], "is a file"),
        (["plot", "gain", f"checkpoint={run}", out, "part=half"], "part", "held_out"),
        (["plot", "training", f"checkpoint={monarc}", out], "no metrics.jsonl"),
        (
            ["plot", "energies", f"checkpoint={run}", out],
            "is a nano_ebm model",
            "plot energies needs a MonArc model",
            "landscape",
        ),
        (["plot", "heatmap", f"checkpoint={monarc}", out], "one of text=", "file=PATH"),
        (["plot", "heatmap", f"checkpoint={monarc}", "text=x", "file=y", out], "one of text="),
        (["plot", "heatmap", f"checkpoint={monarc}", f"file={tmp_path / 'none'}", out], "file=", "does not exist"),
        (["plot", "heatmap", f"checkpoint={monarc}", f"file={tmp_path}", out], "not a UTF-8 text file"),
        (["plot", "heatmap", f"checkpoint={monarc}", "text=x", "colour=red", out], "colour must be gain or energy"),
        (["plot", "heatmap", f"checkpoint={monarc}", "text=x", "output=x.gif"], "must end in .html or .png"),
        (
            ["plot", "energies", f"checkpoint={monarc}", "method=certified", out],
            "method must be auto, exact or sampled",
        ),
        (["plot", "calibration", f"checkpoint={monarc}", "num_samples=1", out], "num_samples must be at least 2"),
        (
            ["plot", "energies", f"checkpoint={monarc}", "think_steps=1", out],
            "think_steps does not concern plot energies",
        ),
        (["plot", "training", f"checkpoint={run}", "prompt=x", out], "prompt does not concern plot training"),
    ]
    for arguments, *parts in cases:
        fails(capsys, arguments, *parts)
    assert not (tmp_path / "figure.png").exists()


def test_without_matplotlib_the_extra_is_named_before_any_work(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("hf_elm.plots.checkpoint_figures.load_checkpoint", lambda *_: pytest.fail("loaded a model"))
    fails(capsys, arguments_of("landscape", run, tmp_path / "x.png"), "matplotlib", 'pip install "hf_elm[plot]"')


def test_heatmap_pages_need_no_matplotlib(monarc_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = ["plot", "heatmap", f"checkpoint={monarc_run}"]
    text = tmp_path / "text.py"
    text.write_text("def f(x):\n    return x < 3\n", encoding="utf-8")
    assert main([*given, f"file={text}", "color=energy", f"output={tmp_path / 'page.html'}"]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "energy E (nats)" in page
    assert "tokens scored" in page
    fails(capsys, [*given, f"file={text}", f"output={tmp_path / 'x.png'}"], 'pip install "hf_elm[plot]"')
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*given, "text=def f(x)"]) == 0
    assert (tmp_path / "heatmap.html").is_file()  # the default of this kind


def test_prepared_rows_are_read_as_they_are(run, tmp_path, capsys):
    arguments = [
        "prepare",
        f"output={tmp_path / 'rows'}",
        f"corpus={run.parent / 'text.txt'}",
        "data.held_out_fraction=0.3",
    ]
    assert main([*arguments, "data.block_size=32", f"tokenizer.path={run}", "progress=false"]) == 0
    given = ["plot", "gain", f"checkpoint={run}", f"corpus={tmp_path / 'rows'}", "max_tokens=60"]
    assert main([*given, "part=held_out", f"output={tmp_path / 'gain.png'}"]) == 0
    other = [
        "prepare",
        f"output={tmp_path / 'bytes'}",
        f"corpus={run.parent / 'text.txt'}",
        "data.block_size=32",
        "progress=false",
    ]
    assert main(other) == 0
    foreign = ["plot", "gain", f"checkpoint={run}", f"corpus={tmp_path / 'bytes'}", f"output={tmp_path / 'other.png'}"]
    fails(capsys, foreign, "prepared by another tokenizer")


def test_help_and_refusals_import_neither_torch_nor_matplotlib():
    code = (
        "import sys; from hf_elm.command_line import main; main(['plot', '--help']); main(['plot', 'landscape']); "
        "assert not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(kind in result.stdout for kind in PLOT_KINDS)


def test_every_kind_has_its_own_keys():
    everything = set(plot_schema().keys)
    for kind in PLOT_KINDS:
        assert set(plot_schema(kind).keys) <= everything
    assert set(plot_schema("training").keys) == {"checkpoint", "output", "dpi"}
    assert "think_topk" not in plot_schema("gain").keys  # leaves no likelihood
    assert json.dumps(sorted(everything))  # plain names
