"""Labelled texts: which columns are text, how labels are numbered, which head and metric they ask for."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_elm.labelled_texts import generated_texts, glue_task, labelled_files, labelled_texts, small_classifier


def splits(rows):
    return DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:2]))


def test_classes_of_text_and_integers_are_numbered_in_order():
    texts = labelled_texts(splits([{"a": "x", "b": "y", "label": label, "idx": 0} for label in ("no", "yes", "no")]))
    assert (texts.columns, texts.names) == (["a", "b"], ["no", "yes"])
    assert texts.data["train"]["label"] == [0, 1, 0]
    assert texts.head_fields()["label2id"] == {"no": 0, "yes": 1}
    numbered = labelled_texts(splits([{"a": "x", "label": label} for label in (7, 3, 7)]))
    assert numbered.names == ["3", "7"]
    assert numbered.data["train"]["label"] == [1, 0, 1]


def test_floats_are_numbers_to_predict():
    texts = labelled_texts(splits([{"a": "x", "label": value} for value in (0.5, 1.0, 2.5)]))
    assert texts.names is None
    assert texts.head_fields() == {"num_labels": 1, "problem_type": "regression"}
    guess = SimpleNamespace(predictions=np.array([[1.0], [2.0], [4.0]]), label_ids=np.array([2.0, 4.0, 8.0]))
    assert texts.metrics()(guess) == pytest.approx({"pearson": 1.0})


def test_classes_are_measured_by_accuracy_and_macro_f1():
    texts = labelled_texts(splits([{"a": "x", "label": label} for label in ("no", "yes", "no")]))
    guess = SimpleNamespace(predictions=np.array([[1, 0], [1, 0], [0, 1.0]]), label_ids=np.array([0, 0, 0]))
    found = texts.metrics()(guess)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx(
        (0.8 + 0) / 2
    )  # precision 1, recall 2/3 of one class, nothing of the other


def test_rows_without_labels_or_texts_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="column label"):
        labelled_texts(splits([{"a": "x"}, {"a": "y"}]))
    with pytest.raises(ValueError, match="one or two of text"):
        labelled_texts(splits([{"label": 1}, {"label": 0}]))
    with pytest.raises(ValueError, match=r"train_file=rows\.txt must end in \.csv"):
        labelled_files("rows.txt", "dev.csv")
    with pytest.raises(ValueError, match="task_name must be one of cola"):
        glue_task("squad")


def test_files_of_json_lines_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"s": f"{i}", "label": "ab"[i % 2]}) + "\n" for i in range(4)))
    texts = labelled_files(str(path), str(path))
    assert (texts.validation, texts.names) == ("validation", ["a", "b"])


def test_generated_texts_are_the_same_each_time_and_make_rows_for_a_model():
    texts = generated_texts(8, 4)
    assert texts.data["train"]["sentence"] == generated_texts(8, 4).data["train"]["sentence"]
    assert texts.names == ["bad", "good"]
    tokenizer, model = small_classifier(texts)
    rows = texts.tokenized(tokenizer, 6)
    assert set(rows["train"].column_names) >= {"label", "input_ids"}
    assert "sentence" not in rows["train"].column_names
    assert max(map(len, rows["train"]["input_ids"])) == 6
    assert model.config.id2label == {0: "bad", 1: "good"}
