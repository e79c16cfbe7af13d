"""Texts with labels for fine-tuning a classifier: GLUE tasks, CSV and JSON files; the classifier and its metrics."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .modeling.m2_bert import M2BertConfig, M2BertForSequenceClassification
from .trainers.tokenization import build_tokenizer


GLUE_TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
SUFFIXES = {".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class LabelledTexts:
    """Rows with a column ``label`` and one or two columns of text.

    Attributes:
        data: the splits.
        columns: names of the columns of text, one or two.
        names: names of the classes in the order of their numbers; None: labels are numbers to predict.
        task: GLUE task, if it is one.
    """

    data: DatasetDict
    columns: list[str]
    names: list[str] | None
    task: str | None = None

    @property
    def validation(self) -> str:
        """Name of the split to measure on: of MNLI the genres of the training data."""
        return "validation_matched" if self.task == "mnli" else "validation"

    def tokenized(self, tokenizer, max_length: int) -> DatasetDict:
        """Rows for a model: texts, or pairs of them, as tokens; cut at ``max_length``."""
        return self.data.map(
            lambda rows: tokenizer(*(rows[name] for name in self.columns), truncation=True, max_length=max_length),
            batched=True,
            remove_columns=[name for name in self.data["train"].column_names if name != "label"],
        )

    def head_fields(self) -> dict:
        """Fields of a transformers config for a head that predicts these labels."""
        if self.names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        return {"id2label": dict(enumerate(self.names)), "label2id": {name: i for i, name in enumerate(self.names)}}

    def metrics(self) -> Callable[..., dict[str, float]]:
        """``compute_metrics`` of a Trainer: the task's own (GLUE), accuracy and macro F1, or Pearson's correlation."""
        if self.task is not None:
            import evaluate

            metric = evaluate.load("glue", self.task)
        from scipy.stats import pearsonr
        from sklearn.metrics import accuracy_score, f1_score

        def compute(prediction):
            guess, truth = prediction.predictions, prediction.label_ids
            guess = guess[:, 0] if self.names is None else guess.argmax(-1)
            if self.task is not None:
                return metric.compute(predictions=guess, references=truth)
            if self.names is None:
                return {"pearson": float(pearsonr(guess, truth).statistic)}
            return {"accuracy": accuracy_score(truth, guess), "f1_macro": f1_score(truth, guess, average="macro")}

        return compute


def glue_task(name: str) -> LabelledTexts:
    """The GLUE task ``name`` from the Hub.

    Raises:
        ValueError: no such task.
    """
    if name not in GLUE_TASKS:
        raise ValueError(f'task_name must be one of {", ".join(GLUE_TASKS)}, got "{name}".')
    return labelled_texts(load_dataset("nyu-mll/glue", name), name)


def labelled_files(train_file: str, validation_file: str) -> LabelledTexts:
    """Rows of two files, .csv, .json or .jsonl.

    Raises:
        ValueError: another suffix.
    """
    kind = SUFFIXES.get(Path(train_file).suffix)
    if kind is None:
        raise ValueError(f"train_file={train_file} must end in {', '.join(SUFFIXES)}.")
    return labelled_texts(load_dataset(kind, data_files={"train": train_file, "validation": validation_file}))


def labelled_texts(data: DatasetDict, task: str | None = None) -> LabelledTexts:
    """``data`` with its labels numbered: floats are numbers to predict, text and integers of any kind are classes.

    Raises:
        ValueError: no column ``label``, or none of text.
    """
    columns = [name for name in data["train"].column_names if name not in ("label", "idx")][:2]
    if "label" not in data["train"].column_names or not columns:
        raise ValueError(f"the rows need a column label and one or two of text, got {data['train'].column_names}.")
    feature = data["train"].features["label"]
    if feature.dtype.startswith("float"):
        return LabelledTexts(data.cast_column("label", Value("float32")), columns, None, task)
    if not isinstance(feature, ClassLabel):
        feature = ClassLabel(names=[str(label) for label in sorted(set(data["train"]["label"]))])
        numbered = data.map(lambda row: {"label": feature.str2int(str(row["label"]))})
        data = numbered.cast_column("label", feature)
    return LabelledTexts(data, columns, feature.names, task)


def generated_texts(train: int = 256, validation: int = 64) -> LabelledTexts:
    """So many sentences with labels, for trials without data: one of the words tells the label."""
    draw, words = random.Random(0), {"good": ["fine", "lovely"], "bad": ["awful", "dreadful"]}

    def sentence(label):
        filler = draw.choices(["the", "play", "was", "long", "and", "loud"], k=draw.randint(1, 4))
        return {"sentence": " ".join([*filler, draw.choice(words[label])]), "label": label}

    rows = [sentence(draw.choice(["good", "bad"])) for _ in range(train + validation)]
    return labelled_texts(
        DatasetDict(train=Dataset.from_list(rows[:train]), validation=Dataset.from_list(rows[train:]))
    )


def load_classifier(checkpoint: str, texts: LabelledTexts) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and classifier of ``texts`` on the encoder at ``checkpoint``; a head of another size is made anew."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, ignore_mismatched_sizes=True, **texts.head_fields()
    )
    return AutoTokenizer.from_pretrained(checkpoint), model


def small_classifier(texts: LabelledTexts) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte tokenizer and a new M2-BERT classifier of ``texts`` that trains in seconds."""
    tokenizer = build_tokenizer("byte", encoder=True)
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "pooling": "mean"}
    config = M2BertConfig.preset("tiny", hidden_dropout_prob=0.0, **shape, **texts.head_fields())
    return tokenizer, M2BertForSequenceClassification(config)
