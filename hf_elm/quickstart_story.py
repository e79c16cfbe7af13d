"""What the quickstarts of all families share: the text as rows, training in CPU seconds, the Hub folder, the records."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Trainer, set_seed
from transformers.trainer_callback import ProgressCallback

from . import run_folder
from .environment import describe_environment
from .hub_folder import export_checkpoint, run_without_hf_elm
from .trainers.corpora import load_corpus
from .trainers.curves_picture import write_curves_picture
from .trainers.packing import PackingCollator, pack_rows
from .trainers.tokenization import build_tokenizer


HELD_OUT_FRACTION = 0.1


class QuietProgress(ProgressCallback):
    """transformers' progress bar with the last logged loss beside it, instead of a line for every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


@dataclass
class QuickstartStory:
    """One quickstart on the CPU; the fields are documented in `hf_elm.recipe_sections`.

    Subclasses add their fields, their ``run()``, and say which fields are counts of at least 1, the tokens of a row, and the
    code that samples from the Hub folder (its arguments: the folder, the prompt, the seed).

    Raises:
        ValueError: a count below 1, an empty prompt.
    """

    output_dir: str
    corpus: str
    evaluation_tokens: int
    prompt: str
    seed: int

    counts = ("evaluation_tokens",)
    sequence_length = 64
    sample_code = ""

    def __post_init__(self):
        for name in self.counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.prompt:
            raise ValueError("prompt must not be empty: there would be nothing to continue; give some text.")
        self.folder = Path(self.output_dir)
        self.console = Console(highlight=False)
        self.started = time.monotonic()

    def prepare(self) -> None:
        """Reads the corpus; ``tokenizer``, ``train_rows`` and ``held_out`` are there afterwards. A token is a byte."""
        torch.set_num_threads(1)  # matrices this small are slower on two
        set_seed(self.seed)
        corpus = load_corpus(self.corpus, held_out_fraction=HELD_OUT_FRACTION, seed=self.seed)
        self.tokenizer = build_tokenizer("byte")
        self.train_rows = pack_rows(corpus.train, self.tokenizer, self.sequence_length, seed=self.seed)
        self.held_out = pack_rows(corpus.held_out, self.tokenizer, self.sequence_length, seed=self.seed)
        self.say(
            f"{corpus.name}: {len(corpus.train):,} documents to train on, {len(corpus.held_out):,} held out; a token is a byte"
        )

    def training_options(self, name: str, steps: int) -> dict[str, Any]:
        """TrainingArguments that every training of a quickstart has; ``name`` is the folder of its logs."""
        return {
            "output_dir": str(self.folder / "logs" / name),
            "max_steps": steps,
            "warmup_steps": min(100, steps // 10),
            "adam_beta2": 0.95,
            "logging_steps": max(1, steps // 20),
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "seed": self.seed,
        }

    def train(self, trainer_class: type[Trainer], model, arguments) -> float:
        """Trains ``model`` in place on ``train_rows``; the CPU seconds it took, without those of drawing the curves."""
        arguments.curves = False
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=self.train_rows,
            data_collator=PackingCollator(self.tokenizer.pad_token_id),
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(QuietProgress)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        write_curves_picture(trainer.state.log_history, arguments.output_dir)
        return seconds

    def save(self, model, name: str) -> None:
        """Writes ``model`` and the tokenizer to the folder ``name``."""
        model.save_pretrained(self.folder / name)
        self.tokenizer.save_pretrained(self.folder / name)

    def publish(self, name: str, number: int) -> None:
        """Writes the Hub folder of the model ``name``, proven in a clean process, and prints a sample made by another one."""
        hub = self.folder / "hub"
        export_checkpoint(str(self.folder / name), hub)
        self.say(f"{number}. {hub} loads and generates in a process that cannot import hf_elm, for example:")
        sample = run_without_hf_elm(self.sample_code, hub, self.prompt, str(self.seed))
        (self.folder / "sample.txt").write_text(sample, encoding="utf-8")
        self.console.print(sample.rstrip(), markup=False, soft_wrap=True)

    def record(self, likelihood, seconds: dict[str, float], **more: Any) -> None:
        """likelihood.json and quickstart.json: what was found, how, where and how long it took, and ``more``."""
        likelihood.to_json(self.folder / "likelihood.json")
        wall = time.monotonic() - self.started
        environment = describe_environment() | {"threads": torch.get_num_threads()}
        record = {
            "settings": asdict(self),
            "cpu_seconds": seconds,
            "wall_seconds": wall,
            "sequence_length": self.sequence_length,
            **more,
            "environment": environment,
        }
        run_folder.write_json(self.folder / "quickstart.json", record)

    def say(self, text: str) -> None:
        """Prints ``text`` with the seconds since the start."""
        self.console.print(f"[{time.monotonic() - self.started:4.0f} s] {text}", markup=False, soft_wrap=True)
        sys.stdout.flush()
