"""Fine-tune an M2-BERT encoder to classify sentences or pairs of sentences: a GLUE task by name, or your own CSV or JSON files.

    python examples/glue.py --model danfu09/m2-bert-80m --task_name mrpc --output_dir runs/mrpc
    python examples/glue.py --model runs/encoder --train_file train.csv --validation_file dev.csv --output_dir runs/mine
    python examples/glue.py --smoke --output_dir runs/glue_smoke    # a small new model, generated sentences, seconds

Files have a column label (text, integers, or floats for regression) and one or two columns of text before it. All of
transformers' TrainingArguments are options too.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train,eval]", "scipy", "scikit-learn"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import sys
from dataclasses import dataclass

from transformers import DataCollatorWithPadding, HfArgumentParser, Trainer, TrainingArguments

from hf_elm.labelled_texts import generated_texts, glue_task, labelled_files, load_classifier, small_classifier
from hf_elm.run_folder import require_empty


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
    files = (options.train_file, options.validation_file)
    if not options.smoke and (options.model is None or (options.task_name is None) == (None in files)):
        sys.exit("give --model with --task_name, or with --train_file and --validation_file; or --smoke alone.")
    require_empty(args.output_dir, "output_dir")
    if options.smoke:
        args.num_train_epochs, args.learning_rate, args.per_device_train_batch_size = 4, 3e-3, 16
        tokenizer, model = small_classifier(texts := generated_texts())
    else:
        texts = glue_task(options.task_name) if options.task_name else labelled_files(*files)
        tokenizer, model = load_classifier(options.model, texts)
    data, collator = texts.tokenized(tokenizer, options.max_length), DataCollatorWithPadding(tokenizer)
    trainer = Trainer(model, args, collator, data["train"], data[texts.validation],
                      processing_class=tokenizer, compute_metrics=texts.metrics())  # fmt: skip
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    print(main())
