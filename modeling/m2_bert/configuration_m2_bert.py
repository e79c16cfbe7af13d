"""Configuration of Monarch Mixer BERT (M2-BERT)."""

from transformers import PreTrainedConfig

from .field_types import refusals_of, refuse_unusable, refuse_wrong_types


# sizes of the released checkpoints (danfu09/m2-bert-* and togethercomputer/m2-bert-80M-*); "tiny" is for a CPU
PRESETS = {
    "tiny": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "filter_order": 32},
    "80m": {},
    "80m-legacy": {"mixer_pre_norm": True},
    "80m-2k": {"max_position_embeddings": 2048},
    "80m-8k": {"max_position_embeddings": 8192},
    "80m-32k": {"max_position_embeddings": 32768},
    "110m": {"hidden_size": 960, "intermediate_size": 3840},
    "260m": {"hidden_size": 1536, "intermediate_size": 6144},
    "341m": {"hidden_size": 1792, "intermediate_size": 7168},
    "341m-2k": {"hidden_size": 1792, "intermediate_size": 7168, "max_position_embeddings": 2048},
}

CHOICES = {
    "padding_mode": ("mask", "reference"),
    "pooling": ("cls", "mean"),
    "conv_backend": ("fft", "direct"),
}
POSITIVE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "type_vocab_size",
    "mlp_num_blocks", "filter_order",
)  # fmt: skip


class M2BertConfig(PreTrainedConfig):
    """Configuration of `M2BertModel` and its heads.

    Args:
        vocab_size: rows of the word embedding; the released models round bert-base-uncased's 30,522 up to 30,528.
        hidden_size, num_hidden_layers, intermediate_size: the usual ones.
        max_position_embeddings: longest row in tokens, and length of the convolution filters.
        use_position_embeddings: add learned positions to the word embeddings.
        type_vocab_size: number of token types.
        hidden_dropout_prob: dropout after the embeddings, inside the MLP and before the classifiers.
        layer_norm_eps: of every norm but the legacy one before the mixer (1e-5).
        initializer_range: standard deviation of new linear layers, embeddings and filter networks.
        bidirectional: convolve with lags of both signs; False = causal.
        residual_long_conv: add a second, ungated long convolution of the mixer's input.
        mixer_pre_norm: LayerNorm before the mixer, as in the first released 80M checkpoint.
        mlp_gated: GELU-gated MLP; False = plain GELU.
        mlp_num_blocks: blocks of the block-diagonal layers of the MLP; 1 = dense.
        filter_order: width of the network that makes the filters.
        filter_emb_dim: positional features of a lag: time, and cosine and sine of (filter_emb_dim - 1) / 2 bands; odd, >= 3.
        filter_freq: initial frequency w of the filter network's sines.
        filter_freq_scale: constant factor of these frequencies.
        filter_time_scale: number of lags that time 0..1 spans; None = max_position_embeddings. `extend_context` sets it.
        filter_decay: ``"computed"`` (the published rule) or ``"stored"`` (time and decay rates come with the weights, for
            checkpoints whose buffers differ from that rule).
        pooling: ``"cls"`` (first token) or ``"mean"`` (over the attention mask).
        pool_with_dense: follow the pooling by a dense layer and tanh.
        normalize_embeddings: unit length of `M2BertForSentenceEmbedding`'s output.
        truncate_dim: keep the first dimensions of that output only; None = all.
        padding_mode: ``"mask"``: outputs do not depend on padding, on either side. ``"reference"``: padding tokens take part, as
            in the original code; the model itself moves them to the right and pads every row to ``pad_to_length``, so that the
            published output comes out however the tokenizer padded. Released weights need ``"reference"``.
        pad_to_length: with ``"reference"``: None = max_position_embeddings; 0 = rows as they come, as the original code does.
        conv_backend: ``"fft"``, or ``"direct"`` = the O(length^2) sum, for checks.
        kernel_cache_bytes: memory that a model may spend in evaluation on the spectra of its filters; 0 = none.
        classifier_dropout: before the classifiers; None = hidden_dropout_prob.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    model_type = "m2_bert"
    keys_to_ignore_at_inference = ["hidden_states"]
    # no tensor plan: convolutions and block-diagonal layers are no matrices to cut into columns and rows
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight"}

    def __init__(
        self,
        vocab_size: int = 30528,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 128,
        use_position_embeddings: bool = True,
        type_vocab_size: int = 2,
        hidden_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        bidirectional: bool = True,
        residual_long_conv: bool = True,
        mixer_pre_norm: bool = False,
        mlp_gated: bool = True,
        mlp_num_blocks: int = 4,
        filter_order: int = 128,
        filter_emb_dim: int = 5,
        filter_freq: float = 10.0,
        filter_freq_scale: float = 1.0,
        filter_time_scale: int | None = None,
        filter_decay: str = "computed",
        pooling: str = "cls",
        pool_with_dense: bool = True,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        padding_mode: str = "mask",
        pad_to_length: int | None = None,
        conv_backend: str = "fft",
        kernel_cache_bytes: int = 320 * 2**20,
        classifier_dropout: float | None = None,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.use_position_embeddings = use_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.bidirectional = bidirectional
        self.residual_long_conv = residual_long_conv
        self.mixer_pre_norm = mixer_pre_norm
        self.mlp_gated = mlp_gated
        self.mlp_num_blocks = mlp_num_blocks
        self.filter_order = filter_order
        self.filter_emb_dim = filter_emb_dim
        self.filter_freq = filter_freq
        self.filter_freq_scale = filter_freq_scale
        self.filter_time_scale = filter_time_scale
        self.filter_decay = filter_decay
        self.pooling = pooling
        self.pool_with_dense = pool_with_dense
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.padding_mode = padding_mode
        self.pad_to_length = pad_to_length
        self.conv_backend = conv_backend
        self.kernel_cache_bytes = kernel_cache_bytes
        self.classifier_dropout = classifier_dropout
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self._check_fields()
        refuse_unusable(vars(self) | kwargs)
        with refusals_of(f"fields of every transformers config ({', '.join(kwargs)})"):
            super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)

    @classmethod
    def preset(cls, name: str, **overrides) -> "M2BertConfig":
        """A named size, with ``overrides`` of any field: ``M2BertConfig.preset("80m-2k", padding_mode="reference")``.

        Raises:
            ValueError: unknown preset.
        """
        if name not in PRESETS:
            raise ValueError(f'preset must be one of {sorted(PRESETS)}, got "{name}".')
        return cls(**(PRESETS[name] | overrides))

    @property
    def time_scale(self) -> int:
        """Number of lags that the filters' time 0..1 spans."""
        return self.filter_time_scale or self.max_position_embeddings

    @property
    def reference_length(self) -> int:
        """Length to which ``padding_mode="reference"`` pads every row; 0 = none."""
        if self.padding_mode != "reference":
            return 0
        return self.max_position_embeddings if self.pad_to_length is None else self.pad_to_length

    def _check_fields(self):
        refuse_wrong_types(self, {name: kind for name, kind in FIELD_TYPES.items() if name not in CHOICES})
        for name, choices in {**CHOICES, "filter_decay": ("computed", "stored")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        limit = self.max_position_embeddings
        rules = {name: (_is_int(getattr(self, name), 1), "an integer of at least 1") for name in POSITIVE}
        rules |= {
            "filter_emb_dim": (_is_int(self.filter_emb_dim, 3) and self.filter_emb_dim % 2, "an odd integer of at least 3"),
            "filter_time_scale": (_is_int(self.time_scale, 1), "a positive number of lags, or None"),
            "hidden_dropout_prob": (0 <= self.hidden_dropout_prob < 1, "in [0, 1)"),
            "classifier_dropout": (0 <= (self.classifier_dropout or 0) < 1, "in [0, 1), or None"),
            "kernel_cache_bytes": (_is_int(self.kernel_cache_bytes, 0), "a number of bytes, 0 for no cache"),
            "truncate_dim": (
                self.truncate_dim is None or (_is_int(self.truncate_dim, 1) and self.truncate_dim <= self.hidden_size),
                f"from 1 to hidden_size ({self.hidden_size}), or None for all dimensions",
            ),
            "pad_to_length": (
                self.pad_to_length is None or (_is_int(self.pad_to_length, 0) and self.pad_to_length <= limit),
                f"from 0 (none) to max_position_embeddings ({limit}), or None for the latter",
            ),
            "pad_token_id": (
                self.pad_token_id is None or (_is_int(self.pad_token_id, 0) and self.pad_token_id < self.vocab_size),
                f"below vocab_size ({self.vocab_size}), or None",
            ),
        }  # fmt: skip
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}.")
        if self.pad_to_length is not None and self.padding_mode == "mask":
            raise ValueError(
                f'pad_to_length={self.pad_to_length} needs padding_mode="reference"; "mask" pads nothing by itself.'
            )
        if self.pad_token_id is None and self.reference_length:
            raise ValueError(
                'padding_mode="reference" pads every row and needs a pad_token_id, got None; give the tokenizer\'s '
                "(0 for bert-base-uncased), or pad_to_length=0."
            )


def _is_int(value, at_least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


FIELD_TYPES = {name: kind for name, kind in M2BertConfig.__init__.__annotations__.items() if name != "return"}

M2BertConfig.register_for_auto_class()
