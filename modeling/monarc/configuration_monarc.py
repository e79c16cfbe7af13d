"""Configuration of MonArc: any causal language model plus a residual energy on every token."""

import difflib

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .field_types import refusals_of, refuse_unusable, refuse_wrong_types
from .rotary_scaling import scale_positions


STABLELM_2 = {
    "model_type": "stablelm",
    "vocab_size": 50258,
    "max_position_embeddings": 1024,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": True,
    "rope_theta": 10000,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 50257,
}

# "163m" and "430m" are the shapes of the published runs (MonArc README, "Experiments"); vocabulary: GPT-2's 50,257 + [PAD].
PRESETS = {
    "tiny": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4},
    "163m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "430m": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 24, "num_attention_heads": 16},
}

CHOICES = {
    "energy_head": ("bilinear", "linear"),
    "energy_loss": ("direct", "nce", "rank"),
    "two_stream_backend": ("auto", "merged", "sdpa", "eager"),
}


class MonArcConfig(PreTrainedConfig):
    """Configuration of `MonArcForCausalLM`.

    Args:
        text_config: the causal LM inside, as a transformers config or a dict with ``model_type``; missing: a StableLM-2 style
            model of the 163M preset. Any architecture with full causal softmax attention in every layer qualifies.
        energy_head: ``"bilinear"`` (previous state x token state) or ``"linear"`` (token state only).
        energy_logprob_features: give the bilinear head the LM's log-probability of the token.
        energy_bound: clamp energies smoothly to (-bound, bound) nats; None = unbounded. A bound makes certified likelihood
            intervals possible.
        energy_loss: ``"direct"`` (an upper bound on the ELM's NLL), ``"nce"`` or ``"rank"``.
        energy_loss_weight: factor of the energy loss beside the LM's cross-entropy.
        num_negatives: tokens drawn from the LM per position in training.
        negative_fraction: share of positions whose negatives are scored in a training step, in (0, 1]; the estimate stays
            unbiased.
        energy_adapter_rank: rank of the low-rank weights that act on candidate tokens only; 0 = none.
        energy_adapter_targets: ``"all-linear"`` or names of linear layers, e.g. ``["q_proj", "v_proj"]``.
        freeze_lm: train the energy only; the LM stays bit-identical.
        mask_segment_starts: leave the first token of each packed document out of both losses. False counts them, as the
            original training did.
        two_stream_backend: ``"auto"``, ``"merged"``, ``"sdpa"`` or ``"eager"``.
        lm_loss_chunk_size: rows per chunk of the LM head pass; memory against speed.
        rope_scaling: linear scaling of rotary positions for rows longer than the LM's own, e.g.
            ``{"rope_type": "linear", "factor": 4.0}``; its positions are multiplied by the factor. Kept in
            ``text_config.rope_parameters``, which takes every other type that transformers knows.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    model_type = "monarc"
    keys_to_ignore_at_inference = [
        "past_key_values", "final_state", "energies", "log_probs", "target_mask", "negatives", "negative_energies", "negative_log_probs",
        "lm_loss", "energy_loss", "z_hat", "elm_nll_bound",
    ]  # fmt: skip
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: dict | PreTrainedConfig | None = None,
        energy_head: str = "bilinear",
        energy_logprob_features: bool = True,
        energy_bound: float | None = None,
        energy_loss: str = "direct",
        energy_loss_weight: float = 1.0,
        num_negatives: int = 1,
        negative_fraction: float = 1.0,
        energy_adapter_rank: int = 0,
        energy_adapter_targets: str | list[str] = "all-linear",
        freeze_lm: bool = False,
        mask_segment_starts: bool = True,
        two_stream_backend: str = "auto",
        lm_loss_chunk_size: int = 128,
        rope_scaling: dict | None = None,
        **kwargs,
    ):
        self.text_config = _resolve_text_config(text_config)
        if rope_scaling is not None:
            scale_positions(self.text_config, rope_scaling)
        self.energy_head = energy_head
        self.energy_logprob_features = energy_logprob_features
        self.energy_bound = energy_bound
        self.energy_loss = energy_loss
        self.energy_loss_weight = energy_loss_weight
        self.num_negatives = num_negatives
        self.negative_fraction = negative_fraction
        self.energy_adapter_rank = energy_adapter_rank
        self.energy_adapter_targets = energy_adapter_targets
        self.freeze_lm = freeze_lm
        self.mask_segment_starts = mask_segment_starts
        self.two_stream_backend = two_stream_backend
        self.lm_loss_chunk_size = lm_loss_chunk_size
        self._check_fields()
        kwargs.setdefault(
            "tie_word_embeddings", False
        )  # the inner config decides for the LM; the energy head ties nothing
        # passed on to text_config by the base class, which would otherwise reset the choice of a config that is in use
        kwargs.setdefault("attn_implementation", self.text_config._attn_implementation)
        refuse_unusable(vars(self) | kwargs)
        with refusals_of(f"fields of every transformers config ({', '.join(kwargs)})"):
            super().__init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides) -> "MonArcConfig":
        """A named size: ``"tiny"`` (CPU), ``"163m"`` or ``"430m"`` (the published shapes), StableLM-2 style.

        ``overrides`` with the name of a field of this class set that field; the others go to ``text_config``, for example
        ``MonArcConfig.preset("tiny", vocab_size=258, energy_adapter_rank=8)``.

        Raises:
            ValueError: unknown preset.
        """
        if name not in PRESETS:
            raise ValueError(f'preset must be one of {sorted(PRESETS)}, got "{name}".')
        own = {key: overrides.pop(key) for key in list(overrides) if key in OWN_FIELDS}
        text_config = STABLELM_2 | PRESETS[name] | overrides
        vocab = text_config["vocab_size"]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if key not in overrides and text_config[key] is not None and text_config[key] >= vocab:
                text_config[key] = None
        text_config.setdefault("num_key_value_heads", text_config["num_attention_heads"])
        return cls(text_config=text_config, **own)

    @property
    def rope_scaling(self) -> dict | None:
        """Rotary parameters of the LM inside; assigning scales its positions (before a model is built from this config)."""
        return getattr(self.text_config, "rope_parameters", None)

    @rope_scaling.setter
    def rope_scaling(self, value: dict) -> None:
        scale_positions(self.text_config, value)

    def _check_fields(self):
        refuse_wrong_types(self, {name: kind for name, kind in FIELD_TYPES.items() if name not in CHOICES})
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        rules = {
            "energy_bound": (self.energy_bound is None or self.energy_bound > 0, "positive nats, or None for unbounded"),
            "energy_loss_weight": (self.energy_loss_weight >= 0, "zero or positive"),
            "num_negatives": (_is_int(self.num_negatives) and self.num_negatives >= 1, "an integer of at least 1"),
            "negative_fraction": (0 < self.negative_fraction <= 1, "in (0, 1]"),
            "energy_adapter_rank": (
                _is_int(self.energy_adapter_rank) and self.energy_adapter_rank >= 0, "an integer, 0 for no adapter",
            ),
            "lm_loss_chunk_size": (_is_int(self.lm_loss_chunk_size) and self.lm_loss_chunk_size >= 1, "an integer of at least 1"),
        }  # fmt: skip
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}.")


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


FIELD_TYPES = {name: kind for name, kind in MonArcConfig.__init__.__annotations__.items() if name != "return"}
OWN_FIELDS = frozenset(FIELD_TYPES)


def _resolve_text_config(text_config):
    if isinstance(text_config, PreTrainedConfig):
        return text_config
    if not isinstance(text_config, (dict, type(None))):
        raise ValueError(f"text_config must be a transformers config, a mapping or None, got {text_config!r}.")
    fields = dict(STABLELM_2 | PRESETS["163m"] if text_config is None else text_config)
    model_type = fields.pop("model_type", "stablelm")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), CONFIG_MAPPING.keys(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f'text_config.model_type "{model_type}" is not known to this version of transformers; the nearest is "{near}".'
        )
    refuse_unusable(fields)
    with refusals_of("text_config"):
        return AutoConfig.for_model(model_type, **fields)


def new_causal_lm(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The language model of ``text_config`` with new weights.

    Raises:
        ValueError: transformers cannot build one of it.
    """
    with refusals_of("text_config"):
        return AutoModelForCausalLM.from_config(text_config)


MonArcConfig.register_for_auto_class()
