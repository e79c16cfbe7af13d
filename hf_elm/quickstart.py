"""The whole story on a small model: a language model, its energy, exact likelihoods, a Hub folder, a clean process.

Three models are compared on the same held-out bytes: the language model (LM), the same LM trained on for the CPU time that
the energy took, and the energy-based model (ELM) around the frozen LM. With 258 tokens every normaliser is an exact sum.
"""

import copy
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from transformers import StableLmConfig, StableLmForCausalLM, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import ProgressCallback

from . import run_folder
from .elm_likelihood import ElmLikelihood
from .environment import describe_environment
from .evaluation import evaluate_elm
from .hub_folder import export_checkpoint, run_without_hf_elm
from .modeling.monarc.modeling_monarc import MonArcForCausalLM
from .trainers.corpora import load_corpus
from .trainers.packing import PackingCollator, pack_rows
from .trainers.residual_energy_config import ResidualEnergyConfig
from .trainers.residual_energy_trainer import ResidualEnergyTrainer
from .trainers.tokenization import build_tokenizer


SEQUENCE_LENGTH, ROWS_PER_STEP = 64, 32
LM_SHAPE = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 2}
LM_LEARNING_RATE, CONTINUED_LEARNING_RATE, ENERGY_LEARNING_RATE = 4e-3, 2e-3, 4e-3
ADAPTER_RANK = 8
HELD_OUT_FRACTION = 0.1

SAMPLE = """
folder, prompt, seed = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(prompt, return_tensors="pt")
torch.manual_seed(int(seed))
ids = model.generate(**inputs, do_sample=True, max_new_tokens=160, num_candidates=8)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
"""


class QuietProgress(ProgressCallback):
    """transformers' progress bar with the last logged loss beside it, instead of a line for every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


@dataclass
class QuickstartRun:
    """One quickstart; the fields are documented in `hf_elm.recipe_sections.QuickstartSection`."""

    output_dir: str
    corpus: str
    lm_steps: int
    energy_steps: int
    evaluation_tokens: int
    prompt: str
    seed: int

    def __post_init__(self):
        for name in ("lm_steps", "energy_steps", "evaluation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        self.folder = Path(self.output_dir)
        self.console = Console(highlight=False)
        self.started = time.monotonic()

    def run(self) -> ElmLikelihood:
        """Train, compare, export, sample; everything is written below ``output_dir``."""
        torch.set_num_threads(1)  # matrices this small are slower on two
        set_seed(self.seed)
        corpus = load_corpus(self.corpus, held_out_fraction=HELD_OUT_FRACTION, seed=self.seed)
        self.tokenizer = build_tokenizer("byte")
        self.train_rows = pack_rows(corpus.train, self.tokenizer, SEQUENCE_LENGTH, seed=self.seed)
        held_out = pack_rows(corpus.held_out, self.tokenizer, SEQUENCE_LENGTH, seed=self.seed)
        self._say(
            f"{corpus.name}: {len(corpus.train):,} documents to train on, {len(corpus.held_out):,} held out; a token is a byte"
        )
        seconds = {}
        lm, seconds["lm"] = self.train_lm()
        elm, seconds["energy"] = self.train_energy(lm)
        continued, seconds["lm_continued"] = self.continue_lm(lm, seconds["lm"] / self.lm_steps, seconds["energy"])
        likelihood = self.compare(elm, continued, held_out)
        self._report(likelihood, seconds)
        self.publish()
        self._record(likelihood, seconds)
        self._say(f"done: {self.folder}. Next: hf-elm generate checkpoint={self.folder / 'elm'} prompt=...")
        return likelihood

    def train_lm(self) -> tuple[StableLmForCausalLM, float]:
        """A fresh language model and the CPU seconds of its training."""
        config = StableLmConfig(
            **LM_SHAPE,
            num_key_value_heads=LM_SHAPE["num_attention_heads"],
            vocab_size=len(self.tokenizer),
            max_position_embeddings=1024,
            use_qkv_bias=True,
            bos_token_id=None,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        lm = StableLmForCausalLM(config)
        self._say(f"1. language model: {lm.num_parameters():,} parameters, {self.lm_steps:,} steps")
        seconds = self._train(lm, self.lm_steps, LM_LEARNING_RATE, "lm")
        lm.save_pretrained(self.folder / "lm")
        self.tokenizer.save_pretrained(self.folder / "lm")
        return lm, seconds

    def train_energy(self, lm: StableLmForCausalLM) -> tuple[MonArcForCausalLM, float]:
        """The ELM around a frozen copy of ``lm``, and the CPU seconds of its training."""
        elm = MonArcForCausalLM.from_causal_lm(
            copy.deepcopy(lm), freeze_lm=True, energy_adapter_rank=ADAPTER_RANK, lm_loss_chunk_size=2048
        )
        parameters = sum(p.numel() for p in elm.energy_parameters())
        self._say(f"2. energy: {parameters:,} parameters, {self.energy_steps:,} steps, the LM frozen")
        seconds = self._train(elm, self.energy_steps, ENERGY_LEARNING_RATE, "elm", weight_decay=0.0)
        elm.save_pretrained(self.folder / "elm")
        self.tokenizer.save_pretrained(self.folder / "elm")
        return elm, seconds

    def continue_lm(self, lm: StableLmForCausalLM, seconds_per_step: float, budget: float) -> tuple:
        """``lm`` trained on for about ``budget`` CPU seconds, re-warmed, and the CPU seconds that it really took."""
        steps = max(1, round(budget / seconds_per_step))
        self._say(f"3. the LM given the energy's compute: {steps:,} more steps")
        continued = copy.deepcopy(lm)
        return continued, self._train(continued, steps, CONTINUED_LEARNING_RATE, "lm_continued", seed=self.seed + 1)

    def compare(self, elm, continued, held_out: Dataset) -> ElmLikelihood:
        """Exact likelihoods on the same held-out bytes."""
        self._say(
            f"4. exact likelihoods on {self.evaluation_tokens:,} held-out bytes: every byte scored at every place"
        )
        return evaluate_elm(
            elm,
            held_out,
            method="exact",
            max_tokens=self.evaluation_tokens,
            max_rows=512,
            tokenizer=self.tokenizer,
            equal_compute_lm=continued,
            seed=self.seed,
        )

    def publish(self) -> None:
        """Writes the Hub folder, which is proven in a clean process, and prints a sample made by another one."""
        export_checkpoint(str(self.folder / "elm"), self.folder / "hub")
        self._say(f"5. {self.folder / 'hub'} loads and generates in a process that cannot import hf_elm, for example:")
        sample = run_without_hf_elm(SAMPLE, self.folder / "hub", self.prompt, str(self.seed))
        (self.folder / "sample.txt").write_text(sample, encoding="utf-8")
        self.console.print(sample.rstrip(), markup=False, soft_wrap=True)

    def _train(self, model, steps, learning_rate, name, seed=None, weight_decay=0.1):
        """Trains ``model`` in place, linear decay to zero; the CPU seconds it took."""
        is_elm = isinstance(model, MonArcForCausalLM)
        options = {
            "output_dir": str(self.folder / "logs" / name),
            "max_steps": steps,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": min(100, steps // 10),
            "weight_decay": weight_decay,
            "adam_beta2": 0.95,
            "per_device_train_batch_size": ROWS_PER_STEP,
            "logging_steps": max(1, steps // 20),
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "seed": self.seed if seed is None else seed,
        }
        arguments = (ResidualEnergyConfig if is_elm else TrainingArguments)(**options)
        trainer = (ResidualEnergyTrainer if is_elm else Trainer)(
            model=model,
            args=arguments,
            train_dataset=self.train_rows,
            data_collator=PackingCollator(self.tokenizer.pad_token_id),
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(QuietProgress)
        start = time.process_time()
        trainer.train()
        return time.process_time() - start

    def _report(self, likelihood, seconds):
        self.console.print(likelihood.table())
        errors = f" ({likelihood.gain / likelihood.gain_se:.1f} standard errors)" if likelihood.gain_se else ""
        self._say(
            f"the ELM is {likelihood.gain:+.4f} nats/byte better than its own LM{errors}, and "
            f"{likelihood.gain_over_equal_compute:+.4f} than the LM trained on for {seconds['lm_continued']:.0f} CPU-s (the "
            f"energy took {seconds['energy']:.0f})"
        )
        if likelihood.gain_over_equal_compute < 0:
            self._say("   an LM that is far from saturated learns more from its own loss; an energy pays once it is")

    def _record(self, likelihood, seconds):
        """likelihood.json and quickstart.json: what was found, how, where and how long it took."""
        likelihood.to_json(self.folder / "likelihood.json")
        wall = time.monotonic() - self.started
        environment = describe_environment() | {"threads": torch.get_num_threads()}
        record = {"settings": asdict(self), "cpu_seconds": seconds, "wall_seconds": wall, "environment": environment}
        run_folder.write_json(self.folder / "quickstart.json", record)

    def _say(self, text):
        self.console.print(f"[{time.monotonic() - self.started:4.0f} s] {text}", markup=False, soft_wrap=True)
        sys.stdout.flush()
