"""Configuration of nanoEBM: a GPT, or any causal LM, whose predictions are refined by descending an energy."""

import difflib

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .field_types import refusals_of, refuse_unusable, refuse_wrong_types


PRESETS = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
    "small": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 128},
}
# What the published code computes; its frozen linear energy can only sharpen predictions.
PUBLISHED = {
    "energy_type": "linear",
    "geometry": "logits",
    "grad_reduction": "mean",
    "entropy_weight": 0.0,
    "think_lr": 0.02,
    "think_lr_learnable": False,
    "think_steps": 4,
    "think_tolerance": 1e-4,
    "refinement_loss": "last",
    "aux_ce_weight": 0.0,
}
PRESETS["published"] = {**PRESETS["tiny"], "num_hidden_layers": 3, **PUBLISHED}

CHOICES = {
    "energy_type": ("free_energy", "linear"),
    "geometry": ("mirror", "logits"),
    "grad_reduction": ("none", "mean"),
    "refinement_loss": ("mean", "last"),
    "contrastive_type": ("cd", "pcd", "fast_pcd"),
    "use_soft_tokens": (False, True, "published"),
    "energy_power": (1, 2),
    "norm_type": ("layernorm", "rmsnorm"),
    "position_type": ("learned", "rope"),
}


class NanoEBMConfig(PreTrainedConfig):
    """Configuration of `NanoEBMForRefinement`.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, max_position_embeddings: of the
            trunk, a pre-norm GPT; ``intermediate_size=None`` = 4 * hidden_size.
        norm_type: ``"layernorm"`` (as published) or ``"rmsnorm"``.
        norm_eps: added to the variance in the norms.
        position_type: ``"learned"`` (as published) or ``"rope"``, which knows no longest prompt.
        rope_theta: base of the rotary frequencies.
        dropout: of embeddings, attention weights and block outputs.
        use_bias: biases in the trunk's linear layers and norms.
        initializer_range: standard deviation of fresh weights.
        text_config: another causal LM in the place of the trunk, as a transformers config or a dict with ``model_type``; the
            fields above then repeat its sizes. See `attach_refinement`.
        freeze_lm: train the energy only; needs ``text_config``.
        energy_type: ``"free_energy"`` (non-linear units and an associative memory, concave in the expected embedding) or
            ``"linear"`` (as published).
        energy_units: non-linear units; None = 3/2 hidden_size, or 4 * hidden_size without ``energy_context``; 0 = none.
        energy_heads: heads of the associative memory; None = num_attention_heads, 0 = no memory.
        energy_context: last tokens that the units see beside the state; the memory's keys then have their token in them. None =
            3, or 0 where there is no memory, which keeps them.
        energy_power: q of the units' response relu^q: 1 or 2.
        energy_feedback: s > 0, how far both terms answer to the candidate; the smaller, the more the first step does alone.
        geometry: ``"mirror"`` (natural gradient; provably descends) or ``"logits"`` (gradient in the logits, as published).
        grad_reduction: ``"none"`` (each position moves on its own) or ``"mean"`` (the energy is averaged over the batch, as
            published, so that steps shrink as the batch grows).
        mixture_stopgrad: the energy of a mixture of tokens is that of its own field (a free energy); False differentiates
            <p, E(p)> instead, without the guarantee.
        softmax_temperature: p = softmax(z / temperature) in every place.
        entropy_weight: factor of -H(p) in the free energy; 1 keeps predictions calibrated, 0 is published.
        use_thinking: refine predictions by default.
        think_steps: refinement steps in training, and by default in generation.
        think_lr: initial step size alpha of each step; in the mirror geometry in (0, 1], where every step descends.
        think_lr_learnable: learn one alpha per step.
        think_max_move: furthest that a logit may move from its start; a step is shortened to keep to it. 0 = no limit.
        think_tolerance: a position stops when a step changes its energy by less, in nats; 0 = never. With
            ``grad_reduction="mean"``: all stop when the mean does so twice in a row, as published.
        langevin_noise: temperature T of the noise sqrt(2 alpha T) added before steps in training and by ``think_samples``.
        use_soft_tokens: each step runs the trunk again: True on tokens plus the prediction made at each of them (causal),
            ``"published"`` on the predictions alone, in the place of the tokens (off by one, kept for comparison).
        refinement_loss: cross-entropy after each step (``"mean"``) or after the last one (``"last"``, as published).
        aux_ce_weight: weight a of the start: loss = (1 - a) * refined + a * CE(start).
        use_contrastive: add ``contrastive_weight`` * the contrastive divergence of token and refined energies.
        contrastive_type: ``"cd"`` (chains start at the prediction), ``"pcd"`` (they go on from stored displacements) or
            ``"fast_pcd"`` (with momentum and restarts).
        contrastive_k: Langevin steps of each chain.
        contrastive_weight: factor of the contrastive loss.
        langevin_step_size, langevin_noise_scale: alpha of the chains' steps, and s in their noise sqrt(2 alpha s).
        n_persistent: stored chains; that many positions of a batch are contrasted.
        chain_momentum, restart_prob: of ``"fast_pcd"``.
        info_nce_weight: weight of telling a token from the other tokens of the batch; 0 = off.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    model_type = "nano_ebm"
    keys_to_ignore_at_inference = [
        "past_key_values", "nll_s1", "nll_s2", "contrastive_loss", "info_nce_loss", "s1_logits", "energies", "trajectory",
        "target_mask",
    ]  # fmt: skip
    sub_configs = {"text_config": AutoConfig}
    base_model_fsdp_plan = {"blocks.*": "free_full_weight"}  # of the own trunk

    def __init__(
        self,
        vocab_size: int = 258,
        hidden_size: int = 128,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 256,
        norm_type: str = "layernorm",
        norm_eps: float = 1e-5,
        position_type: str = "learned",
        rope_theta: float = 10_000.0,
        dropout: float = 0.0,
        use_bias: bool = True,
        initializer_range: float = 0.02,
        text_config: dict | PreTrainedConfig | None = None,
        freeze_lm: bool = False,
        energy_type: str = "free_energy",
        energy_units: int | None = None,
        energy_heads: int | None = None,
        energy_context: int | None = None,
        energy_power: int = 2,
        energy_feedback: float = 0.1,
        geometry: str = "mirror",
        grad_reduction: str = "none",
        mixture_stopgrad: bool = True,
        softmax_temperature: float = 1.0,
        entropy_weight: float = 1.0,
        use_thinking: bool = True,
        think_steps: int = 2,
        think_lr: float = 0.97,
        think_lr_learnable: bool = True,
        think_max_move: float = 0.0,
        think_tolerance: float = 0.0,
        langevin_noise: float = 0.0,
        use_soft_tokens: bool | str = False,
        refinement_loss: str = "mean",
        aux_ce_weight: float = 0.5,
        use_contrastive: bool = False,
        contrastive_type: str = "cd",
        contrastive_k: int = 1,
        contrastive_weight: float = 0.05,
        langevin_step_size: float = 0.5,
        langevin_noise_scale: float = 0.01,
        n_persistent: int = 256,
        chain_momentum: float = 0.5,
        restart_prob: float = 0.05,
        info_nce_weight: float = 0.0,
        **kwargs,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        for name, value in given.items():
            setattr(self, name, value)
        self.text_config = _resolve_text_config(text_config)
        if self.text_config is not None:
            with refusals_of("text_config"):
                self._copy_sizes()
        refuse_wrong_types(self, {name: kind for name, kind in FIELD_TYPES.items() if name not in CHOICES})
        self.intermediate_size = 4 * self.hidden_size if intermediate_size is None else intermediate_size
        self.energy_heads = self.num_attention_heads if energy_heads is None else energy_heads
        if energy_context is None:
            self.energy_context = 3 if self.energy_heads else 0
        if energy_units is None:
            self.energy_units = 3 * self.hidden_size // 2 if self.energy_context else 4 * self.hidden_size
        self._check_fields()
        kwargs.setdefault("tie_word_embeddings", False)
        if self.text_config is not None:
            kwargs.setdefault("attn_implementation", self.text_config._attn_implementation)
        refuse_unusable(vars(self) | kwargs)
        with refusals_of(f"fields of every transformers config ({', '.join(kwargs)})"):
            super().__init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides) -> "NanoEBMConfig":
        """A named configuration: ``"tiny"`` (0.16 M parameters), ``"small"`` (0.8 M) or ``"published"`` (the original's energy).

        Raises:
            ValueError: unknown preset.
        """
        if name not in PRESETS:
            raise ValueError(f'preset must be one of {sorted(PRESETS)}, got "{name}".')
        return cls(**(PRESETS[name] | overrides))

    @property
    def descent_guaranteed(self) -> bool:
        """Whether every step lowers the free energy of every position, whatever the weights."""
        own_field = self.mixture_stopgrad or self.energy_type == "linear"
        return self.geometry == "mirror" and own_field and not self.use_soft_tokens

    def _copy_sizes(self):
        text_config = self.text_config.get_text_config()
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, getattr(text_config, name))
        self.max_position_embeddings = getattr(text_config, "max_position_embeddings", self.max_position_embeddings)

    def _check_fields(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
                raise ValueError(f"{name} must be one of {choices}, got {value!r}.")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings", "contrastive_k", "n_persistent"):  # fmt: skip
            check_field(name, getattr(self, name), _is_int, 1, "an integer of at least 1")
        for name in ("energy_units", "energy_heads", "energy_context", "think_steps"):
            check_field(name, getattr(self, name), _is_int, 0, "an integer, 0 for none")
        for name in ("entropy_weight", "think_max_move", "think_tolerance", "langevin_noise", "contrastive_weight",
                     "langevin_noise_scale", "info_nce_weight"):  # fmt: skip
            check_field(name, getattr(self, name), _is_number, 0, "zero or positive")
        rules = {
            "softmax_temperature": (self.softmax_temperature > 0, "positive"),
            "energy_context": (self.energy_heads > 0 or not self.energy_context, "0 without memory (energy_heads=0)"),
            "energy_feedback": (_is_number(self.energy_feedback) and self.energy_feedback > 0, "positive"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "aux_ce_weight": (0 <= self.aux_ce_weight <= 1, "in [0, 1]"),
            "chain_momentum": (0 <= self.chain_momentum < 1, "in [0, 1)"),
            "restart_prob": (0 <= self.restart_prob <= 1, "in [0, 1]"),
            "num_attention_heads": (
                self.text_config is not None or self.hidden_size % self.num_attention_heads == 0,
                f"a divisor of hidden_size ({self.hidden_size})",
            ),
            "energy_heads": (
                self.energy_heads == 0 or self.hidden_size % self.energy_heads == 0,
                f"0 or a divisor of hidden_size ({self.hidden_size})",
            ),
            "position_type": (
                self.position_type == "learned" or (self.hidden_size // self.num_attention_heads) % 2 == 0,
                "learned where heads are of odd width",
            ),
            "entropy_weight": (
                self.geometry == "logits" or self.entropy_weight > 0,
                'positive with geometry="mirror"; without entropy use geometry="logits"',
            ),
            "use_soft_tokens": (
                self.text_config is None or not self.use_soft_tokens,
                "False with text_config: only the own trunk takes soft tokens",
            ),
            "freeze_lm": (self.text_config is not None or not self.freeze_lm, "False without text_config"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}.")
        for name in ("think_lr", "langevin_step_size"):
            check_step_size(name, getattr(self, name), self.geometry)


def check_step_size(name: str, value: float, geometry: str) -> None:
    """Refuses a step size outside (0, 1] in the mirror geometry, where larger ones may climb; elsewhere outside (0, inf).

    Raises:
        ValueError: as said.
    """
    if geometry == "mirror":
        check_field(
            name, value, lambda x: _is_number(x) and 0 < x <= 1, 0,
            'in (0, 1] with geometry="mirror", where every such step lowers the energy; larger ones go with geometry="logits"',
        )  # fmt: skip
    check_field(name, value, lambda x: _is_number(x) and x > 0, 0, "positive")


def check_field(name: str, value, of_kind, minimum: float, rule: str) -> None:
    """Raises ValueError unless ``of_kind(value)`` and ``value >= minimum``."""
    if not (of_kind(value) and value >= minimum):
        raise ValueError(f"{name} must be {rule}, got {value!r}.")


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


FIELD_TYPES = {name: kind for name, kind in NanoEBMConfig.__init__.__annotations__.items() if name != "return"}
OWN_FIELDS = frozenset(FIELD_TYPES)


def _resolve_text_config(text_config):
    if text_config is None or isinstance(text_config, PreTrainedConfig):
        return text_config
    if not isinstance(text_config, dict):
        raise ValueError(f"text_config must be a transformers config, a mapping or None, got {text_config!r}.")
    fields = dict(text_config)
    model_type = fields.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), CONFIG_MAPPING.keys(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f'text_config.model_type "{model_type}" is not known to this version of transformers; the nearest is "{near}".'
        )
    refuse_unusable(fields)
    with refusals_of("text_config"):
        return AutoConfig.for_model(model_type, **fields)


NanoEBMConfig.register_for_auto_class()
