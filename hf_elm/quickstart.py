"""The whole story on a small model: a language model, its energy, exact likelihoods, a Hub folder, a clean process.

Three models are compared on the same held-out bytes: the language model (LM), the same LM trained on for the CPU time that
the energy took, and the energy-based model (ELM) around the frozen LM. With 258 tokens every normaliser is an exact sum.
"""

import copy
from dataclasses import dataclass

from transformers import StableLmConfig, StableLmForCausalLM, Trainer, TrainingArguments

from .elm_likelihood import ElmLikelihood
from .evaluation import evaluate_elm
from .modeling.monarc.modeling_monarc import MonArcForCausalLM
from .quickstart_story import QuickstartStory
from .trainers.residual_energy_config import ResidualEnergyConfig
from .trainers.residual_energy_trainer import ResidualEnergyTrainer


ROWS_PER_STEP = 32
LM_SHAPE = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 2}
LM_LEARNING_RATE, CONTINUED_LEARNING_RATE, ENERGY_LEARNING_RATE = 4e-3, 2e-3, 4e-3
ADAPTER_RANK = 8

SAMPLE = """
folder, prompt, seed = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(prompt, return_tensors="pt")
torch.manual_seed(int(seed))
ids = model.generate(**inputs, do_sample=True, max_new_tokens=160, num_candidates=8)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
"""


@dataclass
class QuickstartRun(QuickstartStory):
    """One quickstart; the fields are documented in `hf_elm.recipe_sections`."""

    lm_steps: int
    energy_steps: int

    counts = ("lm_steps", "energy_steps", "evaluation_tokens")
    sample_code = SAMPLE

    def run(self) -> ElmLikelihood:
        """Train, compare, export, sample; everything is written below ``output_dir``."""
        self.prepare()
        seconds = {}
        lm, seconds["lm"] = self.train_lm()
        elm, seconds["energy"] = self.train_energy(lm)
        continued, seconds["lm_continued"] = self.continue_lm(lm, seconds["lm"] / self.lm_steps, seconds["energy"])
        likelihood = self.compare(elm, continued)
        self._report(likelihood, seconds)
        self.publish("elm", 5)
        self.record(likelihood, seconds)
        self.say(f"done: {self.folder}. Next: hf-elm generate checkpoint={self.folder / 'elm'} prompt=...")
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
        self.say(f"1. language model: {lm.num_parameters():,} parameters, {self.lm_steps:,} steps")
        seconds = self._train(lm, self.lm_steps, LM_LEARNING_RATE, "lm")
        self.save(lm, "lm")
        return lm, seconds

    def train_energy(self, lm: StableLmForCausalLM) -> tuple[MonArcForCausalLM, float]:
        """The ELM around a frozen copy of ``lm``, and the CPU seconds of its training."""
        elm = MonArcForCausalLM.from_causal_lm(
            copy.deepcopy(lm), freeze_lm=True, energy_adapter_rank=ADAPTER_RANK, lm_loss_chunk_size=2048
        )
        parameters = sum(p.numel() for p in elm.energy_parameters())
        self.say(f"2. energy: {parameters:,} parameters, {self.energy_steps:,} steps, the LM frozen")
        seconds = self._train(elm, self.energy_steps, ENERGY_LEARNING_RATE, "elm", weight_decay=0.0)
        self.save(elm, "elm")
        return elm, seconds

    def continue_lm(self, lm: StableLmForCausalLM, seconds_per_step: float, budget: float) -> tuple:
        """``lm`` trained on for about ``budget`` CPU seconds, re-warmed, and the CPU seconds that it really took."""
        steps = max(1, round(budget / seconds_per_step))
        self.say(f"3. the LM given the energy's compute: {steps:,} more steps")
        continued = copy.deepcopy(lm)
        return continued, self._train(continued, steps, CONTINUED_LEARNING_RATE, "lm_continued", seed=self.seed + 1)

    def compare(self, elm, continued) -> ElmLikelihood:
        """Exact likelihoods on the same held-out bytes."""
        self.say(
            f"4. exact likelihoods on {self.evaluation_tokens:,} held-out bytes: every byte scored at every place"
        )
        return evaluate_elm(
            elm,
            self.held_out,
            method="exact",
            max_tokens=self.evaluation_tokens,
            max_rows=512,
            tokenizer=self.tokenizer,
            equal_compute_lm=continued,
            seed=self.seed,
        )

    def _train(self, model, steps, learning_rate, name, seed=None, weight_decay=0.1):
        """Trains ``model`` in place, linear decay to zero; the CPU seconds it took."""
        is_elm = isinstance(model, MonArcForCausalLM)
        options = self.training_options(name, steps) | {
            "learning_rate": learning_rate,
            "lr_scheduler_type": "linear",
            "weight_decay": weight_decay,
            "per_device_train_batch_size": ROWS_PER_STEP,
            "seed": self.seed if seed is None else seed,
        }
        arguments = (ResidualEnergyConfig if is_elm else TrainingArguments)(**options)
        return self.train(ResidualEnergyTrainer if is_elm else Trainer, model, arguments)

    def _report(self, likelihood, seconds):
        self.console.print(likelihood.table())
        errors = f" ({likelihood.gain / likelihood.gain_se:.1f} standard errors)" if likelihood.gain_se else ""
        self.say(
            f"the ELM is {likelihood.gain:+.4f} nats/byte better than its own LM{errors}, and "
            f"{likelihood.gain_over_equal_compute:+.4f} than the LM trained on for {seconds['lm_continued']:.0f} CPU-s (the "
            f"energy took {seconds['energy']:.0f})"
        )
        if likelihood.gain_over_equal_compute < 0:
            self.say("   an LM that is far from saturated learns more from its own loss; an energy pays once it is")
