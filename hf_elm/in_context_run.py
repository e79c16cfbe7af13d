"""Small models that learn languages in context, LM against ELM against thinking; what ``hf-elm automata`` does by default."""

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from . import run_folder
from .in_context_evaluation import InContextResult, evaluate_in_context
from .in_context_languages import LanguageSettings, languages
from .in_context_predictors import THINK_STEPS, RowTokens, model_distributions, ngram_distributions
from .modeling.monarc.modeling_monarc import MonArcForCausalLM
from .modeling.nano_ebm.configuration_nano_ebm import NanoEBMConfig
from .modeling.nano_ebm.modeling_nano_ebm import NanoEBMForRefinement
from .quickstart_story import QuietProgress
from .trainers.packing import PackingCollator
from .trainers.refinement_config import RefinementConfig
from .trainers.refinement_trainer import RefinementTrainer
from .trainers.residual_energy_config import ResidualEnergyConfig
from .trainers.residual_energy_trainer import ResidualEnergyTrainer
from .trainers.tokenization import build_tokenizer


MODELS = ("lm", "elm", "lm_continued", "nano_ebm")
TITLES = {"lm": "LM", "elm": "ELM", "lm_continued": "LM trained on", "nano_ebm": "nanoEBM"}
NGRAMS = (2, 3)
HEADS, LAYERS, ADAPTER_RANK = 2, 2, 8
LEARNING_RATES = {"lm": 5e-3, "elm": 4e-3, "lm_continued": 2.5e-3, "nano_ebm": 5e-3}
RUN_FILE, LANGUAGES_FILE, TRAINING_FILE = "automata.json", "languages.json", "training.json"


@dataclass
class InContextRun:
    """Small models trained on languages, all different, and scored on others; the fields are documented in `automata_sections`.

    Raises:
        ValueError: a count below 1, an unknown model, elm without lm.
        FileExistsError: ``output_dir`` holds something else than an interrupted run with these settings.
    """

    settings: LanguageSettings
    output_dir: str = "runs/automata"
    models: Sequence[str] | None = None
    steps: int = 1200
    energy_steps: int = 400
    hidden_size: int = 32
    batch_size: int = 16
    languages: int = 100
    think_steps: Sequence[int] | None = None
    seed: int = 0
    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(highlight=False), repr=False)

    def __post_init__(self):
        for name in ("steps", "energy_steps", "hidden_size", "batch_size", "languages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}.")
        if self.hidden_size % (2 * HEADS):
            raise ValueError(f"hidden_size must be a multiple of {2 * HEADS}, got {self.hidden_size}.")
        self.models = tuple(MODELS if self.models is None else self.models)
        if unknown := sorted(set(self.models) - set(MODELS)):
            raise ValueError(f"models={list(self.models)}: {unknown[0]!r} is not one of {', '.join(MODELS)}.")
        needed = {"elm": "lm", "lm_continued": "elm"}
        for name, base in needed.items():
            if name in self.models and base not in self.models:
                raise ValueError(f"models={list(self.models)}: {name} starts from {base}; name that too.")
        self.think_steps = check_think_steps(self.think_steps)
        self.folder = Path(self.output_dir)

    def run(self) -> InContextResult:
        """Train what is missing, score everything, write scores.json."""
        self._claim()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # matrices this small are slower on two
        try:
            self.tokenizer = build_tokenizer("char", [self.settings.characters])
            self.tokenizer.model_max_length = 1024
            for name in MODELS:
                if name in self.models and not (self.folder / name).is_dir():
                    self._train(name)
            result = self._scores()
        finally:
            torch.set_num_threads(threads)
        result.to_json(self.folder / "scores.json")
        return result

    def _claim(self):
        """The folder is new, or that of a run with the same settings."""
        own = {"settings": self.settings.to_dict()}
        own |= {name: getattr(self, name) for name in ("steps", "energy_steps", "hidden_size", "batch_size", "seed")}
        record = self.folder / RUN_FILE
        if record.is_file():
            try:
                there = json.loads(record.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{record} is damaged ({error}); choose another output_dir.") from None
            difference = run_folder.first_difference(there, own)
            if difference:
                raise FileExistsError(
                    f"output_dir={self.folder} holds models of other settings ({difference}); choose another output_dir."
                )
            return
        run_folder.require_empty(self.folder, "output_dir")
        run_folder.write_json(record, own)

    # ------------------------------------------------------------------------------------------------------ training

    def _train(self, name):
        steps, seed = (self.energy_steps if name == "elm" else self.steps), self.seed
        model, trainer_class, arguments_class = self._new(name)
        if name == "lm_continued":  # for as long as the energy took, on languages that the LM has not seen
            spent = self._facts("lm")["cpu_seconds"] / self.steps
            steps, seed = max(1, round(self._facts("elm")["cpu_seconds"] / spent)), self.seed + 1
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.say(f"{TITLES[name]}: {parameters:,} parameters to train, {steps:,} steps")
        logs = {"output_dir": str(self.folder / "logs" / name), "logging_steps": max(1, steps // 10)}
        arguments = arguments_class(
            **logs, max_steps=steps, learning_rate=LEARNING_RATES[name], lr_scheduler_type="linear",
            warmup_steps=min(50, steps // 10), per_device_train_batch_size=self.batch_size, adam_beta2=0.95,
            weight_decay=0.0 if name == "elm" else 0.1, save_strategy="no", report_to="none", use_cpu=True, seed=self.seed,
            disable_tqdm=self.quiet,
        )  # fmt: skip
        rows = training_rows(self.settings, self.tokenizer, steps * self.batch_size, seed)
        collator = PackingCollator(self.tokenizer.pad_token_id)
        trainer = trainer_class(model=model, args=arguments, train_dataset=rows, data_collator=collator)
        trainer.remove_callback(ProgressCallback)
        if not self.quiet:
            trainer.add_callback(QuietProgress)
        start = time.process_time()
        trainer.train()
        facts = {"cpu_seconds": time.process_time() - start, "steps": steps, "parameters": model.num_parameters()}
        with run_folder.new_folder(self.folder / name, "output_dir") as folder:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            run_folder.write_json(folder / LANGUAGES_FILE, self.settings.to_dict())
            run_folder.write_json(folder / TRAINING_FILE, facts)

    def _new(self, name):
        """A model to train, with its Trainer and the class of its arguments."""
        set_seed(self.seed)
        special = {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
        shape = {"vocab_size": len(self.tokenizer), "hidden_size": self.hidden_size, "num_hidden_layers": LAYERS}
        shape |= {"num_attention_heads": HEADS, "max_position_embeddings": max(1024, self.settings.length + 1)}
        # weights of order 1 / sqrt(width): with 0.02, which suits wide models, these stay on the plateau of single symbols for longer
        shape |= {"bos_token_id": None, **special, "initializer_range": self.hidden_size**-0.5}
        if name == "nano_ebm":
            config = NanoEBMConfig(position_type="rope", **shape)
            return NanoEBMForRefinement(config), RefinementTrainer, RefinementConfig
        if name == "lm":
            sizes = {"intermediate_size": 8 * (self.hidden_size // 3), "num_key_value_heads": HEADS}
            config = StableLmConfig(**shape, **sizes, use_qkv_bias=True, partial_rotary_factor=1.0)
            return StableLmForCausalLM(config), Trainer, TrainingArguments
        lm = AutoModelForCausalLM.from_pretrained(self.folder / "lm")
        if name == "lm_continued":
            return lm, Trainer, TrainingArguments
        options = {"freeze_lm": True, "energy_adapter_rank": ADAPTER_RANK, "lm_loss_chunk_size": 2048}
        elm = MonArcForCausalLM.from_causal_lm(lm, **options)
        return elm, ResidualEnergyTrainer, ResidualEnergyConfig

    # ------------------------------------------------------------------------------------------------------- scoring

    def _facts(self, name):
        facts = json.loads((self.folder / name / TRAINING_FILE).read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("cpu_seconds", "parameters")}

    def _scores(self):
        problems = unseen_problems(self.settings, self.languages, self.seed)
        rows = [row for _, row in problems]
        found = ngram_predictions(rows, self.settings)
        facts = {}
        for name in [name for name in MODELS if name in self.models]:
            model = AutoModelForCausalLM.from_pretrained(self.folder / name)
            tokens = RowTokens(self.tokenizer, rows, self.settings)
            for label, probs in model_distributions(model, tokens, think_steps=self.think_steps).items():
                title = TITLES[name] if label in ("LM", "ELM") else f"{TITLES[name]}, {label}"
                if name == "elm" and label == "LM":  # frozen, and there already
                    continue
                found[title], facts[title] = probs, self._facts(name)
        return evaluate_in_context(
            problems, found, self.settings, baseline="LM" if "LM" in found else None, facts=facts
        )

    def say(self, text: str) -> None:
        """Prints ``text``, unless quiet."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)


def check_think_steps(think_steps: Sequence[int] | None) -> tuple[int, ...]:
    """``think_steps`` in order, each once; None is 1, 2 and 8."""
    steps = THINK_STEPS if think_steps is None else tuple(sorted(set(think_steps)))
    if not steps or not all(isinstance(count, int) and count >= 1 for count in steps):
        raise ValueError(f"think_steps must be a list of numbers of at least 1, got {think_steps!r}.")
    return steps


def training_rows(settings: LanguageSettings, tokenizer, count: int, seed: int) -> datasets.Dataset:
    """``input_ids`` of ``count`` rows, each of another language, and each ended by eos."""
    texts = [row for _, row in itertools.islice(languages(settings, "train", seed), count)]
    return datasets.Dataset.from_dict(
        {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]}
    )


def unseen_problems(settings: LanguageSettings, count: int, seed: int) -> list:
    """``count`` languages of the test part with a row each."""
    return list(itertools.islice(languages(settings, "test", seed), count))


def ngram_predictions(rows: Sequence[str], settings: LanguageSettings) -> dict[str, np.ndarray]:
    """Name -> what 2- and 3-grams of each row's own beginning predict."""
    return {f"{order}-gram of the row": ngram_distributions(rows, settings, order) for order in NGRAMS}
