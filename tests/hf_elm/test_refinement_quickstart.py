"""The quickstart of nanoEBM at tiny size: what it prints is what its saved models give, and the comparison is a fair one."""

import inspect
import io
import json
import math
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_elm.command_line import main
from hf_elm.command_schemas import quickstart_schema
from hf_elm.refinement_evaluation import evaluate_refinement, trainable_parameters
from hf_elm.refinement_quickstart import RefinementQuickstart
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.packing import pack_rows
from hf_elm.trainers.tokenization import build_tokenizer


SETTINGS = {"evaluation_tokens": 300, "steps": 3, "think_steps": 3, "seed": 3}
MODELS = ("gpt", "equal_compute_gpt", "nano_ebm")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """(folder, corpus, what was printed) of ``hf-elm quickstart --model nano-ebm``."""
    folder = tmp_path_factory.mktemp("quickstart")
    corpus = folder / "text.txt"
    corpus.write_text(inspect.getsource(textwrap), encoding="utf-8")
    arguments = [f"--{name}={value}" for name, value in SETTINGS.items()]
    arguments += ["--model", "nano-ebm", f"corpus={corpus}", f"output_dir={folder / 'run'}", "prompt=def wrap("]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stdout", printed)
        assert main(["quickstart", *arguments]) == 0
    return folder / "run", corpus, printed.getvalue()


@pytest.fixture(scope="module")
def models(story):
    return {name: AutoModelForCausalLM.from_pretrained(story[0] / name).eval() for name in MODELS}


@pytest.fixture(scope="module")
def record(story):
    return json.loads((story[0] / "likelihood.json").read_text())


@pytest.fixture(scope="module")
def counted_rows(story):
    """The rows that the story evaluates on, in its order, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(story[0] / "nano_ebm")
    corpus = load_corpus(str(story[1]), held_out_fraction=0.1, seed=SETTINGS["seed"])
    rows = pack_rows(corpus.held_out, tokenizer, 64, seed=SETTINGS["seed"])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SETTINGS["seed"]))
    return [rows[i] for i in order.tolist()], tokenizer


@torch.no_grad()
def nll_token_by_token(model, rows, limit, **options):
    """{document: [nll]} by one forward pass per document piece and no packing: the oracle."""
    found, left = {}, limit
    for row in rows:
        for segment in sorted(set(row["segment_ids"]) - {-1}):
            places = [i for i, each in enumerate(row["segment_ids"]) if each == segment]
            ids = torch.tensor([[row["input_ids"][i] for i in places]])
            positions = torch.tensor([[row.get("position_ids", range(64))[i] for i in places]])
            log_probs = model(input_ids=ids, position_ids=positions, **options).logits.double().log_softmax(-1)
            nll = -log_probs[0, :-1].gather(-1, ids[0, 1:, None]).flatten()[:left]
            found.setdefault(row["document_ids"][places[0]], []).extend(nll.tolist())
            left -= len(nll)
    return found


def mean_and_error(by_document):
    """The mean per token and its standard error with documents as clusters."""
    sums, counts = ([f(each) for each in by_document.values() if each] for f in (math.fsum, len))
    mean, n = sum(sums) / sum(counts), len(sums)
    squares = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return mean, math.sqrt(n / (n - 1) * squares) / sum(counts)


def test_printed_numbers_are_those_of_the_saved_models(story, models, record, counted_rows):
    rows, limit = counted_rows[0], SETTINGS["evaluation_tokens"]
    nano = models["nano_ebm"]
    found = {name: nll_token_by_token(models[name], rows, limit) for name in ("gpt", "equal_compute_gpt")}
    found |= {"s1": nll_token_by_token(nano, rows, limit, use_thinking=False)}
    found |= {
        "s2": nll_token_by_token(nano, rows, limit),
        "s2_more": nll_token_by_token(nano, rows, limit, think_steps=8),
    }
    printed = story[2]
    assert record["num_tokens"] == limit == sum(map(len, found["s2"].values()))
    for name, by_document in found.items():
        mean, error = mean_and_error(by_document)
        assert record[f"{name}_nll"] == pytest.approx(mean, abs=1e-5)  # float32 sums in another order
        assert record[f"{name}_nll_se"] == pytest.approx(error, abs=1e-5)
        assert f"{record[f'{name}_nll']:.4f}" in printed
    pairs = {"thinking_gain": ("s1", "s2"), "gain_over_gpt": ("gpt", "s2"), "more_thinking_gain": ("s2", "s2_more")}
    pairs |= {"gain_over_equal_compute": ("equal_compute_gpt", "s2")}
    for name, (worse, better) in pairs.items():
        paired = {d: [a - b for a, b in zip(found[worse][d], found[better][d], strict=True)] for d in found["s2"]}
        mean, error = mean_and_error(paired)
        assert record[name] == pytest.approx(mean, abs=1e-5)
        assert record[f"{name}_se"] == pytest.approx(error, abs=1e-5)
        assert f"{abs(record[name]):.4f}" in printed


def test_bits_per_byte_count_the_text(record, counted_rows):
    rows, left, num_bytes = counted_rows[0], SETTINGS["evaluation_tokens"], 0
    for row in rows:
        pairs = zip(row["segment_ids"], row["segment_ids"][1:], row["input_ids"][1:], strict=False)
        for before, now, token in pairs:
            if left and before == now >= 0:
                left -= 1
                num_bytes += token < 256  # the end of a document is no byte
    assert record["num_bytes"] == num_bytes
    assert record["s2_bits_per_byte"] == pytest.approx(
        record["s2_nll"] * record["num_tokens"] / num_bytes / math.log(2)
    )


def test_models_are_of_equal_size_and_start(models, record, story):
    counts = {name: trainable_parameters(model) for name, model in models.items()}
    assert record["parameters"] == counts
    assert counts["gpt"] == counts["equal_compute_gpt"]
    assert 0.97 * counts["gpt"] <= counts["nano_ebm"] <= counts["gpt"]
    assert f"{counts['gpt']:,}" in story[2]
    assert f"{counts['nano_ebm']:,}" in story[2]


def test_a_gpt_costs_one_pass_and_learns_by_cross_entropy(models, counted_rows):
    gpt, passes = models["gpt"], []
    ids = torch.tensor([row["input_ids"] for row in counted_rows[0][:2]])
    handles = [block.register_forward_hook(lambda *_: passes.append(1)) for block in gpt.trunk.blocks]
    readout = gpt.energy_head.register_forward_hook(lambda *_: passes.append(100))
    out = gpt(input_ids=ids, labels=ids)
    for handle in (*handles, readout):
        handle.remove()
    assert len(gpt.trunk.blocks) == 3
    assert sum(passes) % 100 == 3  # each block once
    assert torch.equal(out.logits, out.s1_logits)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


def test_every_energy_parameter_learned(models, story):
    story_again = RefinementQuickstart(
        output_dir=str(story[0]), corpus=str(story[1]), prompt="x", **{"evaluation_tokens": 1} | SETTINGS
    )
    story_again.tokenizer = AutoTokenizer.from_pretrained(story[0] / "nano_ebm")
    fresh = dict(story_again.new_nano_ebm().named_parameters())
    trained = dict(models["nano_ebm"].named_parameters())
    assert fresh.keys() == trained.keys()
    assert all(not torch.equal(fresh[name], trained[name]) for name in fresh)


def test_folder_holds_the_picture_the_hub_folder_and_the_records(story):
    folder, _, printed = story
    picture = (folder / "landscape.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert {"config.json", "model.safetensors", "modeling_nano_ebm.py", "tokenizer.json"} <= {
        path.name for path in (folder / "hub").iterdir()
    }
    sample = (folder / "sample.txt").read_text(encoding="utf-8")
    assert sample.startswith("def wrap(")
    assert len(sample) > len("def wrap(") + 40
    run = json.loads((folder / "quickstart.json").read_text())
    assert run["settings"].items() >= SETTINGS.items()
    assert run["cpu_seconds"].keys() == set(MODELS)
    assert min(run["cpu_seconds"].values()) > 0
    assert run["equal_compute_steps"] == max(1, round(3 * run["cpu_seconds"]["nano_ebm"] / run["cpu_seconds"]["gpt"]))
    assert all(len(line) <= 80 for line in printed.splitlines() if line.startswith(("┏", "│", "┃")))


def test_without_matplotlib_the_story_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    story = RefinementQuickstart(output_dir=str(tmp_path), corpus="", prompt="def", **SETTINGS)
    story.tokenizer = build_tokenizer("byte")
    story.draw(story.new_nano_ebm())
    assert 'pip install "hf_elm[plot]"' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=gpt-7"], "model must be one of monarc, nano-ebm"),
        (["model=m2-bert"], "model must be one of monarc, nano-ebm"),
        (["model=nano_ebm", "lm_steps=3"], "lm_steps is a key of model=monarc"),
        (["think_steps=3"], "think_steps is a key of model=nano-ebm"),
        (["model=nano-ebm", "steps=0"], "steps must be at least 1"),
        (["model=nano-ebm", "prompt="], "prompt must not be empty"),
        (["family=nano-ebm", "stepz=2"], 'the nearest valid key is "steps"'),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message, tmp_path, capsys):
    assert main(["quickstart", f"output_dir={tmp_path / 'run'}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(story, capsys):
    before = (story[0] / "likelihood.json").read_bytes()
    assert main(["quickstart", "model=nano-ebm", f"output_dir={story[0]}"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert (story[0] / "likelihood.json").read_bytes() == before


def test_help_lists_the_keys_of_both_stories(capsys):
    assert main(["quickstart", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name}  (" in text for name in ("model", "lm_steps", "energy_steps", "steps", "think_steps"))
    nano = quickstart_schema("nano-ebm").keys
    assert {"lm_steps", "energy_steps"}.isdisjoint(nano)
    assert {"steps", "think_steps"}.isdisjoint(quickstart_schema("monarc").keys)
    for name in ("output_dir", "evaluation_tokens"):  # where the text names the other default
        assert nano[name].default.strip("'") in quickstart_schema().keys[name].help


def test_each_language_model_keeps_its_name(story, models, counted_rows):
    rows, _ = counted_rows
    other = RefinementQuickstart(**{"output_dir": "x", "corpus": "", "prompt": "x", **SETTINGS, "seed": 11})
    other.tokenizer = counted_rows[1]
    fresh = other.new_gpt().eval()
    result = evaluate_refinement(
        models["nano_ebm"], rows[:5], gpt=fresh, equal_compute_gpt=models["gpt"], batch_size=2
    )
    for name, model in (("gpt", fresh), ("equal_compute_gpt", models["gpt"])):
        mean, _ = mean_and_error(nll_token_by_token(model, rows[:5], 5 * 64))
        assert result.estimates[f"{name}_nll"].value == pytest.approx(mean, abs=1e-5)
    assert result.bits_per_byte == {}
    alone = evaluate_refinement(models["nano_ebm"], rows[:5], batch_size=1)
    assert alone.estimates.keys() == {"s1_nll", "s2_nll", "s2_more_nll", "thinking_gain", "more_thinking_gain"}
    assert alone.estimates["s2_nll"].value == pytest.approx(result.estimates["s2_nll"].value, abs=1e-6)


def test_evaluation_refuses_what_has_no_system_two(models, counted_rows):
    with pytest.raises(ValueError, match="does not think"):
        evaluate_refinement(models["gpt"], counted_rows[0])
    with pytest.raises(TypeError, match="NanoEBMForRefinement"):
        evaluate_refinement(torch.nn.Linear(1, 1), counted_rows[0])
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        evaluate_refinement(models["nano_ebm"], counted_rows[0], max_tokens=0)
