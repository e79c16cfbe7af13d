"""The GLUE example on generated and on local data, offline."""

import csv
import json

import pytest
from transformers import AutoModelForSequenceClassification

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.trainers.tokenization import build_tokenizer
from tests.examples.example_files import load_example


QUIET = ["--disable_tqdm", "True", "--use_cpu", "--save_strategy", "no", "--dataloader_pin_memory", "False"]


@pytest.fixture(scope="module")
def glue():
    return load_example("glue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved masked language model: its classifier is new."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_tokenizer("byte", encoder=True)
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "hidden_size": 32}
    M2BertForMaskedLM(M2BertConfig.preset("tiny", intermediate_size=64, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def local_arguments(checkpoint, train, validation, out):
    files = ["--train_file", str(train), "--validation_file", str(validation)]
    return ["--model", str(checkpoint), *files, "--output_dir", str(out), "--max_steps", "2", *QUIET]


def test_smoke_run_learns(glue, tmp_path):
    metrics = glue.main(["--smoke", "--output_dir", str(tmp_path / "run"), *QUIET])
    assert metrics["eval_accuracy"] > 0.9  # half of the labels are "good"
    saved = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert saved["eval_accuracy"] == metrics["eval_accuracy"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_a_saved_encoder_classifies_pairs_from_csv_files(glue, tmp_path, checkpoint):
    """Three classes named by integers that do not start at 0; the validation file lacks one of them."""
    train = [["first", "second", "label"], *([f"a {i}", f"b {i}", 3 + i % 3] for i in range(12))]
    validation = [["first", "second", "label"], ["a 1", "b 1", 4], ["a 2", "b 2", 5]]
    files = (write_csv(tmp_path / "train.csv", train), write_csv(tmp_path / "dev.csv", validation))
    metrics = glue.main(local_arguments(checkpoint, *files, tmp_path / "run"))
    assert {"eval_accuracy", "eval_f1_macro"} <= metrics.keys()
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config
    assert config.id2label == {0: "3", 1: "4", 2: "5"}
    with pytest.raises(FileExistsError, match="output_dir"):
        glue.main(local_arguments(checkpoint, *files, tmp_path / "run"))


def test_floats_are_regressed(glue, tmp_path, checkpoint):
    rows = [{"sentence": "x" * (1 + i), "label": i / 4} for i in range(8)]
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    metrics = glue.main(local_arguments(checkpoint, path, path, tmp_path / "run"))
    assert -1 <= metrics["eval_pearson"] <= 1


def test_missing_arguments_are_named(glue, tmp_path):
    with pytest.raises(SystemExit, match="--task_name"):
        glue.main(["--output_dir", str(tmp_path / "run")])
