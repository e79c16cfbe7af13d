"""``hf-elm compare``: the same documents for every model, differences paired by document, and its errors."""

import inspect
import json
import textwrap

import pytest
import torch

from hf_elm.command_line import main
from hf_elm.continuation_scores import scorer_of
from hf_elm.document_scores import score_documents, windows
from hf_elm.document_totals import ratio_estimate
from hf_elm.evaluation import evaluate_elm
from hf_elm.model_comparison import chosen_documents, compare_models, ratio_difference
from hf_elm.spent_compute import spent_compute
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm import tiny_harness as tiny


TEXTS = ["The cat sat on the mat.", "one, two, three", "quick brown fox jumps over it and over it again"]
LETTERS = tiny.letters()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, byte = tmp_path_factory.mktemp("models"), build_tokenizer("byte")
    models = {
        "monarc": (tiny.monarc(LETTERS, dtype=torch.float32), LETTERS),
        "nano": (tiny.nano_ebm(LETTERS, dtype=torch.float32), LETTERS),
        "gpt2": (tiny.gpt2(LETTERS), LETTERS),
        "byte": (tiny.gpt2(byte), byte),
    }
    return {name: tiny.saved(*pair, folder / name) for name, pair in models.items()}


def test_equal_units_give_the_ratio_of_the_difference_and_others_their_own():
    generator = torch.Generator().manual_seed(0)
    sums, base, counts = (torch.rand(3, 17, generator=generator, dtype=torch.float64) + 0.5).unbind()
    same = ratio_difference(sums, counts, base, counts)
    assert same == ratio_estimate(sums - base, counts)
    nearly = ratio_difference(sums, counts, base, counts * (1 + 1e-12))
    assert nearly.value == pytest.approx(same.value, rel=1e-9)
    assert nearly.standard_error == pytest.approx(same.standard_error, rel=1e-9)
    assert ratio_difference(sums, counts, sums, counts * 2).value == pytest.approx(
        (sums.sum() / counts.sum()).item() / 2
    )


def test_the_standard_error_of_unequal_units_is_that_of_repeated_draws():
    generator = torch.Generator().manual_seed(1)
    values, errors = [], []
    for _ in range(400):
        length = torch.rand(60, generator=generator, dtype=torch.float64) + 0.5
        shared = torch.randn(60, generator=generator, dtype=torch.float64)
        own = torch.randn(2, 60, generator=generator, dtype=torch.float64)
        first, second = length * (2 + shared + own[0]), length * (1.5 + shared + own[1])
        found = ratio_difference(first, length, second, length * 1.25)
        values.append(found.value)
        errors.append(found.standard_error)
    spread = torch.tensor(values).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(
        spread, rel=0.12
    )  # 400 draws: 3.5 % each way, three times


@pytest.mark.parametrize(("length", "window"), [(1, 8), (2, 8), (8, 8), (9, 8), (23, 8), (23, 7), (5, None), (9, 2)])
def test_windows_score_every_token_but_the_first_once(length, window):
    ids = list(range(length))
    pairs = windows(ids, window)
    assert [token for _, scored in pairs for token in scored] == ids[1:]
    for context, scored in pairs:
        assert context
        assert window is None or len(context) + len(scored) <= window
        assert context + scored == ids[context[0] : scored[-1] + 1]


def test_documents_are_scored_as_evaluate_elm_scores_rows():
    model = tiny.monarc(LETTERS)
    rows = [{"input_ids": LETTERS(text)["input_ids"]} for text in TEXTS]
    expected = evaluate_elm(model, rows, method="exact", tokenizer=LETTERS, progress=False)
    for batch_size in (1, 4):
        found = score_documents(scorer_of(model, batch_size), LETTERS, TEXTS, progress=False)
        assert int(found.counts.sum()) == expected.num_tokens
        assert int(found.num_bytes.sum()) == expected.num_bytes
        for column, name in (("lm", "lm_nll"), ("elm", "elm_nll")):
            mean, error = ratio_estimate(found.nll[column], found.counts)
            assert mean == pytest.approx(getattr(expected, name), abs=1e-9)
            assert error == pytest.approx(getattr(expected, f"{name}_se"), abs=1e-9)


def test_families_stand_beside_each_other_with_paired_differences(folders):
    found = compare_models([folders["monarc"], folders["nano"], folders["gpt2"]], TEXTS, progress=False)
    assert list(found.columns) == ["a:lm", "a:elm", "b:s1", "b:s2", "c:lm"]
    assert found.same_tokens == {"a": True, "b": True, "c": True}
    base = found.columns["a:lm"]
    assert base.nats_difference is None
    for column in list(found.columns.values())[1:]:
        assert column.nats_difference.value == pytest.approx(column.nats_per_token.value - base.nats_per_token.value)
        assert column.bits_difference.value == pytest.approx(column.bits_per_byte.value - base.bits_per_byte.value)
    assert found.columns["a:lm"].parameters < found.columns["a:elm"].parameters
    rows = [{"input_ids": LETTERS(text)["input_ids"]} for text in TEXTS]
    model = tiny.monarc(LETTERS, dtype=torch.float32)
    elm = evaluate_elm(model, rows, tokenizer=LETTERS, progress=False)  # unknown text is left out in both
    assert -found.columns["a:elm"].nats_difference.value == pytest.approx(elm.gain, abs=1e-6)
    assert found.columns["a:elm"].nats_difference.standard_error == pytest.approx(elm.gain_se, abs=1e-6)


def test_other_tokenizers_are_compared_in_bits_per_byte_only(folders):
    found = compare_models([folders["gpt2"], folders["byte"]], TEXTS, names=["x", "y"], progress=False)
    assert found.same_tokens == {"x": True, "y": False}
    assert found.columns["y:lm"].nats_difference is None
    assert found.columns["y:lm"].bits_difference is not None
    assert any("only bits/byte are compared" in note for note in found.notes())
    other = compare_models(
        [folders["gpt2"], folders["byte"]], TEXTS, names=["x", "y"], baseline="y:lm", progress=False
    )
    assert other.columns["x:lm"].bits_difference.value == pytest.approx(-found.columns["y:lm"].bits_difference.value)
    with pytest.raises(ValueError, match="baseline must be one of x:lm, y:lm"):
        compare_models([folders["gpt2"], folders["byte"]], TEXTS, names=["x", "y"], baseline="z", progress=False)


def test_sampled_ends_enclose_the_middle(folders):
    options = {"method": "sampled", "exact_top": 8, "num_samples": 4, "progress": False}
    columns = compare_models([folders["monarc"]], TEXTS, **options).columns
    values = [columns[f"a:{name}"].nats_per_token.value for name in ("elm_upper", "elm", "elm_lower")]
    assert values == sorted(values)


def test_models_share_the_smallest_window_that_one_was_trained_in(folders, tmp_path):
    short = tiny.saved(tiny.gpt2(LETTERS), LETTERS, tmp_path / "short")
    (tmp_path / "short" / "recipe.yaml").write_text("data:\n  sequence_length: 8\n")
    found = compare_models([folders["gpt2"], short], TEXTS, progress=False)
    assert found.window == found.to_dict()["window"] == 8
    assert f"at most 8 tokens seen at once: the rows that {short} was trained on" in found.notes()
    own, other = (column.nats_per_token for column in found.columns.values())
    assert own == other  # the same weights, the same contexts
    expected = score_documents(scorer_of(tiny.gpt2(LETTERS)), LETTERS, TEXTS, 8, progress=False)
    assert own == pytest.approx(ratio_estimate(expected.nll["lm"], expected.counts), abs=1e-6)
    wide = compare_models([folders["gpt2"], short], TEXTS, window=999, progress=False)
    assert wide.window == tiny.POSITIONS
    assert "fewer than the 999 asked for" in wide.window_origin
    assert wide.columns["a:lm"].nats_per_token != own


def test_documents_are_drawn_and_cut():
    texts = ["é" * 40, "  ", *(f"document {i}" for i in range(9))]
    chosen = chosen_documents(texts, 5, 11, seed=0)
    assert len(chosen) == 5
    assert chosen == chosen_documents(texts, 5, 11, seed=0) != chosen_documents(texts, 5, 11, seed=1)
    everything = chosen_documents(texts, 0, 11, seed=0)
    assert len(everything) == 10
    assert "é" * 5 in everything  # not half a character
    with pytest.raises(ValueError, match="1 documents"):
        chosen_documents(["one", " "], 0, 0, seed=0)


def test_a_runs_files_tell_its_cost(tmp_path):
    assert spent_compute("user/model") == {}
    lines = [{"step": 2, "tokens_seen": 64}, {"step": 4, "tokens_seen": 128, "train_runtime": 1.5, "total_flos": 7.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 5, "tok')
    assert spent_compute(str(tmp_path)) == {"tokens_seen": 128, "steps": 4, "train_seconds": 1.5, "flos": 7.0}
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2, "num_input_tokens_seen": 64}')
    assert spent_compute(str(tmp_path / "checkpoint-2")) == {"tokens_seen": 64, "steps": 2}


def test_the_command_prints_and_writes(folders, tmp_path, capsys):
    corpus, output = tmp_path / "text.txt", tmp_path / "comparison.json"
    corpus.write_text(inspect.getsource(textwrap), encoding="utf-8")
    options = [f"data.corpus={corpus}", "documents=2", "document_bytes=80", f"output={output}"]
    assert main(["compare", folders["monarc"], folders["byte"], *options]) == 0
    shown, found = capsys.readouterr().out, json.loads(output.read_text())
    assert list(found["columns"]) == ["a:lm", "a:elm", "b:lm"]
    assert found["columns"]["b:lm"]["nats_difference"] is None
    for word in ("a: elm", "bits/byte", "2 documents"):
        assert word in shown


def test_an_interrupted_comparison_goes_on(folders, tmp_path, monkeypatch):
    checkpoints = [str(folders[name]) for name in ("monarc", "gpt2", "byte")]
    options = {"progress": False, "method": "exact", "seed": 0}
    whole = compare_models(checkpoints, TEXTS, output=tmp_path / "whole.json", **options)
    scored, output = [], tmp_path / "out.json"

    def interrupted(scorer, *arguments):
        scored.append(type(scorer.model).__name__)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score_documents(scorer, *arguments)

    monkeypatch.setattr("hf_elm.model_comparison.score_documents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_models(checkpoints, TEXTS, output=output, **options)
    with pytest.raises(FileExistsError, match="holds an interrupted run that differs: texts"):
        compare_models(checkpoints, TEXTS[:2], output=output, **options)
    again = compare_models(checkpoints, TEXTS, output=output, **options)
    assert scored == ["MonArcForCausalLM", "GPT2LMHeadModel", "GPT2LMHeadModel", "GPT2LMHeadModel"]
    assert again.to_dict() == whole.to_dict()
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not (tmp_path / "out.json.partial").exists()
    with pytest.raises(FileExistsError, match=r"out\.json exists"):
        compare_models(checkpoints, TEXTS, output=output, **options)


def test_errors_come_before_any_work(folders, tmp_path, capsys):
    (tmp_path / "there.json").write_text("{}")
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "m2_bert"}')
    cases = {
        (): "one or more models",
        (str(tmp_path / "none"),): "does not exist",
        (str(encoder),): "an encoder",
        (folders["gpt2"], "documents=1"): "documents must be at least 2",
        (folders["gpt2"], "part=some"): "part must be one of",
        (folders["gpt2"], f"output={tmp_path / 'there.json'}"): "exists",
    }
    for arguments, message in cases.items():
        capsys.readouterr()
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
