"""The whole story of nanoEBM on a small model: thinking against its own system 1 and against plain GPTs, and its landscape.

Three models are trained on the same batches and compared on the same held-out bytes: a GPT; a nanoEBM whose trunk has a block
less, so that its energy makes up the number of parameters; and the GPT again, from the start, with as many steps as fit into the
CPU time that the nanoEBM took. A GPT here is `NanoEBMForRefinement` with the linear energy and no thinking: the same blocks,
initialisation, optimizer and loop, one pass and plain cross-entropy.
"""

from dataclasses import dataclass

from transformers import set_seed

from .modeling.nano_ebm.configuration_nano_ebm import NanoEBMConfig
from .modeling.nano_ebm.modeling_nano_ebm import NanoEBMForRefinement
from .quickstart_story import QuickstartStory
from .refinement_evaluation import MORE_STEPS, evaluate_refinement, trainable_parameters
from .refinement_likelihood import RefinementLikelihood
from .trainers.refinement_config import RefinementConfig
from .trainers.refinement_trainer import RefinementTrainer


ROWS_PER_STEP = 16
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "position_type": "rope", "max_position_embeddings": 1024}
GPT_BLOCKS = 3
UNIT_MULTIPLE = 8  # widths that fast matrix products like
LEARNING_RATE = 6e-3  # of 3e-3 and 6e-3 the better one for both models
WARM_UP_STEPS = 2  # of a model that is thrown away: the first training in a process pays for imports

SAMPLE = """
folder, prompt, seed = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(prompt, return_tensors="pt")
torch.manual_seed(int(seed))
ids = model.generate(**inputs, do_sample=True, max_new_tokens=160, use_thinking=True)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
"""


@dataclass
class RefinementQuickstart(QuickstartStory):
    """One quickstart of nanoEBM; the fields are documented in `hf_elm.recipe_sections`."""

    steps: int
    think_steps: int

    counts = ("steps", "think_steps", "evaluation_tokens")
    sample_code = SAMPLE

    def run(self) -> RefinementLikelihood:
        """Train, compare, draw, export, sample; everything is written below ``output_dir``."""
        self.prepare()
        seconds = {}
        self._train(self.new_gpt(), WARM_UP_STEPS, "warm_up")
        gpt, seconds["gpt"] = self.train_gpt()
        nano_ebm, seconds["nano_ebm"] = self.train_nano_ebm()
        steps = max(1, round(self.steps * seconds["nano_ebm"] / seconds["gpt"]))
        longer, seconds["equal_compute_gpt"] = self.train_equal_compute_gpt(steps)
        likelihood = self.compare(nano_ebm, gpt, longer)
        likelihood.cpu_seconds = seconds
        self._report(likelihood)
        self.draw(nano_ebm)
        self.publish("nano_ebm", 6)
        self.record(likelihood, seconds, equal_compute_steps=steps)
        self.say(f"done: {self.folder}. Next: hf-elm generate checkpoint={self.folder / 'nano_ebm'} prompt=...")
        return likelihood

    def new_gpt(self) -> NanoEBMForRefinement:
        """A fresh plain GPT; its loss is the cross-entropy of system 1, and nothing else is computed."""
        no_energy = {"energy_type": "linear", "use_thinking": False, "think_steps": 0, "think_lr_learnable": False}
        return self._new_model(num_hidden_layers=GPT_BLOCKS, **no_energy)

    def new_nano_ebm(self) -> NanoEBMForRefinement:
        """A fresh nanoEBM of as many parameters: a block less, and as many units in its energy as that block pays for."""
        fields = {"num_hidden_layers": GPT_BLOCKS - 1, "think_steps": self.think_steps}
        bare, some = (trainable_parameters(self._new_model(energy_units=n, **fields)) for n in (0, UNIT_MULTIPLE))
        room = trainable_parameters(self.new_gpt()) - bare
        return self._new_model(energy_units=room // (some - bare) * UNIT_MULTIPLE, **fields)

    def train_gpt(self) -> tuple[NanoEBMForRefinement, float]:
        """The GPT and the CPU seconds of its training."""
        gpt = self.new_gpt()
        self.say(f"1. GPT: {trainable_parameters(gpt):,} parameters, {self.steps:,} steps")
        return gpt, self._train(gpt, self.steps, "gpt")

    def train_nano_ebm(self) -> tuple[NanoEBMForRefinement, float]:
        """The nanoEBM and the CPU seconds of its training."""
        model = self.new_nano_ebm()
        thinks = f"{self.think_steps} refinement step{'' if self.think_steps == 1 else 's'} per prediction"
        self.say(f"2. nanoEBM: {trainable_parameters(model):,} parameters, the same {self.steps:,} batches, {thinks}")
        return model, self._train(model, self.steps, "nano_ebm")

    def train_equal_compute_gpt(self, steps: int) -> tuple[NanoEBMForRefinement, float]:
        """The GPT trained from the start for ``steps`` steps with a schedule of that length, and its CPU seconds."""
        gpt = self.new_gpt()
        self.say(f"3. the GPT given the nanoEBM's compute: {steps:,} steps from the start")
        return gpt, self._train(gpt, steps, "equal_compute_gpt")

    def compare(self, nano_ebm, gpt, longer) -> RefinementLikelihood:
        """Exact likelihoods on the same held-out bytes."""
        self.say(f"4. likelihoods on {self.evaluation_tokens:,} held-out bytes")
        return evaluate_refinement(
            nano_ebm,
            self.held_out,
            gpt=gpt,
            equal_compute_gpt=longer,
            max_tokens=self.evaluation_tokens,
            tokenizer=self.tokenizer,
            seed=self.seed,
        )

    def draw(self, nano_ebm) -> None:
        """landscape.png: the free energy of the prediction after the prompt, with the path of thinking."""
        from .plots.energy_landscape import energy_landscape, plot_energy_landscape

        picture = self.folder / "landscape.png"
        try:
            plot_energy_landscape(energy_landscape(nano_ebm, self.tokenizer, self.prompt), path=picture)
        except ImportError as error:  # everything else is worth having without a picture
            self.say(f"5. no picture of the energy landscape: {error}")
        else:
            self.say(f"5. {picture}: the energy landscape of the prediction after {self.prompt!r}")

    def _new_model(self, **fields):
        set_seed(self.seed)
        special = {name: getattr(self.tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
        config = NanoEBMConfig(vocab_size=len(self.tokenizer), bos_token_id=None, **special, **SHAPE, **fields)
        return NanoEBMForRefinement(config)

    def _train(self, model, steps, name):
        """Trains ``model`` in place, cosine decay to a tenth, and saves it as ``name``; the CPU seconds of the training."""
        options = self.training_options(name, steps)
        options |= {"learning_rate": LEARNING_RATE, "per_device_train_batch_size": ROWS_PER_STEP}
        seconds = self.train(RefinementTrainer, model, RefinementConfig(**options))
        if name != "warm_up":
            self.save(model, name)
        return seconds

    def _report(self, likelihood):
        self.console.print(likelihood.table())
        self.say(_verdict(likelihood, "thinking_gain", "its own system 1"))
        change = round(-likelihood.estimates["more_thinking_gain"].value, 4) + 0.0  # no "-0.0000"
        self.say(f"   thinking for {MORE_STEPS} steps changes that by {change:+.4f} nats/byte")
        self.say(_verdict(likelihood, "gain_over_gpt", "the GPT of equal size after equal steps"))
        seconds = likelihood.cpu_seconds
        longer = f"the GPT trained for {seconds['equal_compute_gpt']:.0f} CPU-s (the nanoEBM took {seconds['nano_ebm']:.0f})"
        self.say(_verdict(likelihood, "gain_over_equal_compute", longer))
        if likelihood.estimates["gain_over_equal_compute"].value < 0:
            self.say(
                "   thinking is paid for in training: a GPT this far from saturated learns more from further steps"
            )


def _verdict(likelihood, name, opponent):
    gain = likelihood.estimates[name].value
    word = "better" if gain >= 0 else "worse"
    return f"system 2 is {abs(gain):.4f} nats/byte {word} than {opponent}{likelihood.standard_errors(name)}"
