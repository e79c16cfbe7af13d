"""Fine-tune an M2-BERT encoder to classify sentences or pairs of sentences: a GLUE task by name, or your own CSV or JSON files.

python examples/glue.py --model danfu09/m2-bert-80m --task_name mrpc --output_dir runs/mrpc
python examples/glue.py --model runs/m2_bert_tiny --train_file train.csv --validation_file dev.csv --output_dir runs/mine
python examples/glue.py --smoke --output_dir runs/glue_smoke    # offline, under a minute: a small new model, generated sentences

Files have a column label (text, integers, or floats for regression) and one or two columns of text before it. All of
transformers' TrainingArguments are options too.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import evaluate
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForSequenceClassification
from hf_elm.run_folder import require_empty
from hf_elm.trainers import build_tokenizer


@dataclass
class GlueArguments:
    model: str | None = None  # folder or Hub id of an M2-BERT encoder, any head
    task_name: str | None = None  # cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb or wnli, from the Hub
    train_file: str | None = None  # .csv or .json
    validation_file: str | None = None
    max_length: int = 128
    smoke: bool = False  # a small new model and generated sentences in place of all of these


def main(arguments=None):
    options, args = HfArgumentParser((GlueArguments, TrainingArguments)).parse_args_into_dataclasses(arguments)
    require_empty(args.output_dir, "output_dir")
    data, columns, labels = load_data(options)
    tokenizer, model = load_model(options, labels)
    if options.smoke:
        args.num_train_epochs, args.learning_rate, args.per_device_train_batch_size = 4, 3e-3, 16
    data = data.map(
        lambda rows: tokenizer(*(rows[name] for name in columns), truncation=True, max_length=options.max_length),
        batched=True,
        remove_columns=[name for name in data["train"].column_names if name != "label"],
    )
    metric = evaluate.load("glue", options.task_name) if options.task_name else None

    def compute_metrics(prediction):
        guess, truth = prediction.predictions, prediction.label_ids
        guess = guess[:, 0] if labels is None else guess.argmax(-1)
        if metric is not None:
            return metric.compute(predictions=guess, references=truth)
        if labels is None:
            return {"pearson": float(pearsonr(guess, truth).statistic)}
        return {"accuracy": accuracy_score(truth, guess), "f1_macro": f1_score(truth, guess, average="macro")}

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation_matched" if options.task_name == "mnli" else "validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    print(json.dumps(metrics, indent=2))
    return metrics


def load_data(options):
    """Splits, their columns of text, and the names of the labels (None: numbers to predict)."""
    given = (
        (options.task_name is not None) + (None not in (options.train_file, options.validation_file)) + options.smoke
    )
    if given != 1 or (options.model is None and not options.smoke):
        sys.exit("give --model with --task_name, or with --train_file and --validation_file; or --smoke alone.")
    if options.smoke:
        data = DatasetDict({"train": generated_sentences(256, 0), "validation": generated_sentences(64, 1)})
    elif options.task_name is None:
        kind = {".csv": "csv", ".json": "json", ".jsonl": "json"}.get(Path(options.train_file).suffix)
        if kind is None:
            sys.exit(f"--train_file {options.train_file} must end in .csv, .json or .jsonl.")
        data = load_dataset(kind, data_files={"train": options.train_file, "validation": options.validation_file})
    else:
        data = load_dataset("nyu-mll/glue", options.task_name)
    columns = [name for name in data["train"].column_names if name not in ("label", "idx")][:2]
    feature = data["train"].features["label"]
    if feature.dtype.startswith("float"):
        return data.cast_column("label", Value("float32")), columns, None
    if not isinstance(feature, ClassLabel):  # text or integers of any kind: numbered in their order
        feature = ClassLabel(names=[str(label) for label in sorted(set(data["train"]["label"]))])
        data = data.map(lambda row: {"label": feature.str2int(str(row["label"]))}).cast_column("label", feature)
    return data, columns, feature.names


def load_model(options, labels):
    """Tokenizer and classifier; the head is new where the checkpoint has none for so many classes."""
    shape = (
        {"num_labels": 1, "problem_type": "regression"} if labels is None else {"id2label": dict(enumerate(labels))}
    )
    if options.smoke:
        tokenizer = build_tokenizer("byte", encoder=True)
        shape |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "pooling": "mean"}
        return tokenizer, M2BertForSequenceClassification(
            M2BertConfig.preset("tiny", hidden_dropout_prob=0.0, **shape)
        )
    model = AutoModelForSequenceClassification.from_pretrained(options.model, ignore_mismatched_sizes=True, **shape)
    return AutoTokenizer.from_pretrained(options.model), model


def generated_sentences(count, seed):
    """Sentences whose label is told by one of their words."""
    draw, words = random.Random(seed), {"good": ["fine", "lovely"], "bad": ["awful", "dreadful"]}
    rows = []
    for _ in range(count):
        label = draw.choice(["good", "bad"])
        filler = draw.choices(["the", "play", "was", "long", "and", "loud"], k=draw.randint(1, 4))
        rows.append({"sentence": f"{' '.join(filler)} {draw.choice(words[label])}", "label": label})
    return Dataset.from_list(rows)


if __name__ == "__main__":
    main()
