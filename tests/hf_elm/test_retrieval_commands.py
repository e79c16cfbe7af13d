"""Training for retrieval and ranking from the command line."""

import json
import sys

import pytest
import yaml

from hf_elm.command_line import main
from hf_elm.commands.train import resolve_settings
from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.trainers.retrieval_config import RetrievalConfig
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm.test_command_line import fails
from tests.trainers.tiny_retrieval import ROWS


SMALL = ["model.hidden_size=32", "model.intermediate_size=64", "model.filter_order=8", "data.sequence_length=48"]
QUIET = ["train.disable_tqdm=true", "train.use_cpu=true", "train.logging_steps=1", "train.save_strategy=no"]
STEPS = ["train.max_steps=2", "train.per_device_train_batch_size=4", *QUIET]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, pairs):
    out = tmp_path_factory.mktemp("runs") / "found"
    data = [f"data.corpus={pairs}", "data.held_out_fraction=0.3", "tokenizer.vocab_size=300"]
    assert main(["train", "m2_bert_retrieval", f"output_dir={out}", *SMALL, *data, *STEPS]) == 0
    return out


def test_training_ends_with_a_ranking_beside_bm25(run):
    assert yaml.safe_load((run / "recipe.yaml").read_text())["objective"] == "retrieval"
    scores = json.loads((run / "retrieval.json").read_text())["scores"]
    assert [score["retriever"] for score in scores] == ["found", "BM25"]
    assert all(0 < score["means"]["mrr"] <= 1 for score in scores)
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "positive_cosine", "negative_cosine", "tokens_per_second"} <= logs[0].keys()
    config = json.loads((run / "config.json").read_text())
    assert (config["architectures"], config["pooling"]) == (["M2BertForSentenceEmbedding"], "mean")


def test_retrieve_searches_the_runs_own_held_out_pairs(run, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert main(["retrieve", f"checkpoint={run}", f"output={out}"]) == 0
    again, first = json.loads(out.read_text())["scores"], json.loads((run / "retrieval.json").read_text())["scores"]
    assert [score["means"] for score in again] == [score["means"] for score in first]
    assert "BM25" in capsys.readouterr().out
    before = out.read_bytes()
    fails(capsys, ["retrieve", f"checkpoint={run}", f"output={out}"], "output=", "exists")
    assert out.read_bytes() == before


def test_retrieve_finds_hidden_facts_by_length_and_depth(run, capsys, pairs):
    hidden = ["task=passkey", "documents=3", "depths=[0,1]", "dtype=float32"]
    fails(
        capsys, ["retrieve", f"checkpoint={run}", *hidden, "lengths=[4096]"], "lengths=[4096] go beyond the 128 tokens"
    )
    fails(capsys, ["retrieve", f"checkpoint={run}", *hidden, "lengths=[8]"], "lengths=8 tokens are too few")
    fails(capsys, ["retrieve", f"checkpoint={run}", f"task={pairs}", "depths=[0.5]"], "depths=[0.5] does not concern")
    assert main(["retrieve", f"checkpoint={run}", *hidden, "lengths=[128]"]) == 0
    printed = capsys.readouterr().out
    assert "depth 1" in printed
    assert "100.0 ± 0.0" in printed  # BM25 finds them all


def test_an_encoder_that_was_not_trained_to_embed(run, tmp_path, pairs, capsys):
    """A masked language model: fine-tuning gives it a pooler, ranking without one is refused unless it pools without."""
    tokenizer = build_tokenizer("byte", encoder=True)
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "hidden_size": 32}
    M2BertForMaskedLM(M2BertConfig.preset("tiny", intermediate_size=64, **shape)).save_pretrained(tmp_path / "mlm")
    tokenizer.save_pretrained(tmp_path / "mlm")
    search = ["retrieve", f"checkpoint={tmp_path / 'mlm'}", f"task={pairs}"]
    fails(capsys, search, "pooler", "pool_with_dense=false")
    assert main([*search, "pooling=mean", "pool_with_dense=false"]) == 0
    start = ["family=m2_bert", "objective=retrieval", f"model.checkpoint={tmp_path / 'mlm'}", f"data.corpus={pairs}"]
    start += ["data.held_out_fraction=0.3", "data.sequence_length=48", "train.negatives_per_query=2"]
    assert main(["train", f"output_dir={tmp_path / 'run'}", *start, *STEPS]) == 0
    assert main(["retrieve", f"checkpoint={tmp_path / 'run'}", f"task={pairs}"]) == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "objective=retrieval"], ['objective="retrieval" is not one of family monarc']),
        (["train", "family=m2_bert", "objective=ranking"], ['objective="ranking"', "retrieval"]),
        (["train", "m2_bert_retrieval", "data.strategy=greedy"], ['unknown key "data.strategy"']),
        (["train", "m2_bert_retrieval", "train.retrieval_loss=hinge"], ["retrieval_loss must be one of"]),
        (["train", "m2_bert_retrieval", "data.corpus=nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["retrieve"], ["checkpoint="]),
        (["retrieve", "checkpoint=nowhere"], ["checkpoint=nowhere"]),
    ],
)
def test_wrong_settings_are_named(tmp_path, monkeypatch, capsys, arguments, parts):
    monkeypatch.chdir(tmp_path)
    fails(capsys, arguments, *parts)
    assert not list(tmp_path.iterdir())


def test_without_bm25_nothing_is_begun(tmp_path, monkeypatch, capsys, run, pairs):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    train = ["train", "m2_bert_retrieval", f"output_dir={tmp_path / 'run'}", f"data.corpus={pairs}", *SMALL]
    for arguments in (train, ["retrieve", f"checkpoint={run}"]):
        fails(capsys, arguments, 'pip install "hf_elm[retrieval]"')
    assert not list(tmp_path.iterdir())


def test_the_published_recipe_has_the_published_hyperparameters(tmp_path):
    settings = resolve_settings(["m2_bert_80m_32k_retrieval"], "train")
    train = {name: value for name, value in settings["train"].items() if name != "output_dir"}
    args = RetrievalConfig(output_dir=str(tmp_path), **(train | {"bf16": False, "use_cpu": True}))
    expected = {
        "learning_rate": 5e-6,
        "num_train_epochs": 1,
        "negatives_per_query": 32,
        "per_device_train_batch_size": 1,
    }
    expected |= {"retrieval_loss": "orthogonal_projection", "optim": "adamw_torch_fused"}
    assert {name: getattr(args, name) for name in expected} == expected
    assert settings["data"]["sequence_length"] == 32768
