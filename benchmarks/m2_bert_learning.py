"""What a masked M2-BERT learns on a CPU, and when.

* ``recall``: the answer at a masked place is the symbol a fixed lag ahead. With filters of both directions, and with causal ones,
  which cannot see it: their best is chance.
* ``stdlib``: the recipe m2_bert_tiny on the interpreter's own library: CPU seconds until the held-out loss is below the entropy of
  the held-out tokens' own frequencies, and below what the frequencies of the training text reach, and the loss at the end.

python benchmarks/m2_bert_learning.py [recall|stdlib ...] [steps=N]
"""

import sys
import tempfile
import time

import datasets
import torch
from record import record
from transformers import TrainerCallback

from hf_elm.commands.train import resolve_settings
from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.trainers import MaskedLMConfig, MaskedLMTrainer
from hf_elm.training_run import prepare


BENCH = "m2_bert_learning"
SYMBOLS, SEQ, LAG, MASK = 8, 32, 5, 1
QUIET = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "metrics_file": None}


def recall_rows(count, seed):
    """Random symbols; masked are some places t whose symbol at t + LAG, the label, is visible."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(2, 2 + SYMBOLS, (count, SEQ), generator=generator)
    masked = torch.rand(count, SEQ, generator=generator) < 0.3
    masked[:, SEQ - LAG :] = False
    for place in reversed(range(SEQ - LAG)):
        masked[:, place] &= ~masked[:, place + LAG]
    labels = torch.where(masked, symbols.roll(-LAG, 1), -100)
    rows = {"input_ids": symbols.masked_fill(masked, MASK).tolist(), "labels": labels.tolist()}
    return datasets.Dataset.from_dict(rows)


def recall(steps=400):
    """Held-out accuracy after ``steps`` steps, three seeds, both kinds of filters in turn."""
    found = {True: [], False: []}
    seconds = {True: [], False: []}
    for seed in range(3):
        for bidirectional in (True, False):
            torch.manual_seed(seed)
            sizes = {"vocab_size": 2 + SYMBOLS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
            shape = {"filter_order": 32, "max_position_embeddings": SEQ, "hidden_dropout_prob": 0.0}
            model = M2BertForMaskedLM(M2BertConfig(**sizes, **shape, bidirectional=bidirectional))
            batch = {"per_device_train_batch_size": 32, "learning_rate": 3e-3, "logging_steps": steps}
            args = MaskedLMConfig(tempfile.mkdtemp(), max_steps=steps, seed=seed, **batch, **QUIET)
            trainer = MaskedLMTrainer(model, args, recall_rows(32 * steps, seed), recall_rows(1024, 100 + seed))
            start = time.process_time()
            trainer.train()
            seconds[bidirectional].append(round(time.process_time() - start, 1))
            found[bidirectional].append(round(trainer.evaluate()["eval_masked_accuracy"], 4))
    for bidirectional, accuracies in found.items():
        record(
            BENCH,
            task="recall",
            impl="bidirectional" if bidirectional else "unidirectional",
            shape={"batch": 32, "seq": SEQ, "lag": LAG, "symbols": SYMBOLS, "layers": 2, "hidden": 64},
            metric="masked_accuracy",
            values=accuracies,
            chance=1 / SYMBOLS,
            steps=steps,
            cpu_seconds=seconds[bidirectional],
            n=len(accuracies),
        )


class CpuClock(TrainerCallback):
    """(step, CPU seconds of training, held-out loss) of every evaluation."""

    def __init__(self):
        self.curve, self.spent, self.since = [], 0.0, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.since = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.spent += time.process_time() - self.since
        self.since = time.process_time()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.curve.append((state.global_step, round(self.spent, 1), round(metrics["eval_loss"], 4)))
        self.since = time.process_time()  # evaluating is not training


def stdlib(steps=None):
    """The recipe m2_bert_tiny, evaluated every 50 steps, with its full schedule or one of ``steps``."""
    settings = resolve_settings(["m2_bert_tiny", f"output_dir={tempfile.mkdtemp()}"], "train")
    evaluations = {"eval_strategy": "steps", "eval_steps": 50, "logging_steps": 50, "report_to": "none"}
    settings["train"] |= QUIET | evaluations | ({"max_steps": steps} if steps else {})
    run = prepare(settings)
    clock = CpuClock()
    run.trainer.add_callback(clock)
    run.trainer.train()
    final = run.trainer.evaluate()
    counts = torch.bincount(torch.cat([torch.tensor(row) for row in run.trainer.train_dataset["input_ids"]]))
    counts = torch.nn.functional.pad(counts, (0, len(run.tokenizer) - len(counts))).double() + 1
    counts[run.tokenizer.all_special_ids] = 0
    targets = run.trainer.target_counts.double()
    seen = targets > 0
    train_unigram = -(targets[seen] * (counts[seen] / counts.sum()).log()).sum().item() / targets.sum().item()
    entropy = final["eval_unigram_entropy"]
    record(
        BENCH,
        task="stdlib",
        impl="m2_bert_tiny",
        shape={
            "batch": run.trainer.args.per_device_train_batch_size,
            "seq": settings["data"]["sequence_length"],
            "vocab": len(run.tokenizer),
            "parameters": run.model.num_parameters(),
        },
        metric="eval_loss",
        unit="nats per masked token",
        value=round(final["eval_loss"], 4),
        masked_accuracy=round(final["eval_masked_accuracy"], 4),
        masked_tokens=final["eval_masked_tokens"],
        unigram_entropy=round(entropy, 4),
        train_unigram_cross_entropy=round(train_unigram, 4),
        below_unigram_entropy=first_below(clock.curve, entropy),
        below_train_unigram=first_below(clock.curve, train_unigram),
        steps=run.trainer.state.global_step,
        cpu_seconds=round(clock.spent, 1),
        curve=clock.curve,
        n=1,
    )


def first_below(curve, bound):
    """The first evaluation with a loss below ``bound``, or None."""
    found = [{"step": step, "cpu_seconds": spent} for step, spent, loss in curve if loss < bound]
    return found[0] if found else None


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = dict(argument.split("=") for argument in sys.argv[1:] if "=" in argument)
    tasks = [argument for argument in sys.argv[1:] if "=" not in argument] or ["recall", "stdlib"]
    for task in tasks:
        {"recall": recall, "stdlib": stdlib}[task](**{name: int(value) for name, value in options.items()})
