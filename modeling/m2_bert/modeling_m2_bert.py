"""Monarch Mixer BERT: a bidirectional encoder whose cost grows as L log L.

* Sequence mixing by long convolutions with implicit filters (Hyena), in both directions in one transform, gated, plus a second
  ungated one; MLPs of block-diagonal layers. No attention.
* States are channels-first ``(hidden, batch, seq)`` between the layers, so that every product is one GEMM without copies and
  every convolution is contiguous; outputs are ``(batch, seq, hidden)``.
* Training keeps the inputs of a layer's convolutions and recomputes the rest piece by piece.
* In evaluation the spectra of the filters are remembered under ``config.kernel_cache_bytes``.
* Filters and transforms are float32 (or float64), under autocast and in models of lower precision too.
* ``config.padding_mode``: outputs that do not depend on padding, or the published ones of the released weights however the
  tokenizer padded.

Differences from the original code: one stored frequency vector per filter instead of six tied copies, every layer has its own
random start, labels are ignored at -100 (there: everything below 1), a batch without labels has loss 0, rows that are too long
are refused.

Every class reads any checkpoint of the family: heads that it lacks are new, heads that it has no use for are left out.

Shapes: batch, seq, hidden, vocab.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from .block_diagonal import BlockDiagonalLinear
from .configuration_m2_bert import M2BertConfig
from .encoder import M2BertEmbeddings, M2BertEncoder, M2BertPooler
from .encoder_inputs import check_inputs, row_layout
from .implicit_filter import ImplicitFilter, decay_rates, lag_features, lag_times
from .short_convolution import NUM_TAPS, ShortConvolution


IGNORED = -100  # labels that are not predicted
AUTO_MAP = {
    "AutoConfig": "configuration_m2_bert.M2BertConfig",
    "AutoModel": "modeling_m2_bert.M2BertModel",
    "AutoModelForMaskedLM": "modeling_m2_bert.M2BertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_m2_bert.M2BertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_m2_bert.M2BertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_m2_bert.M2BertForQuestionAnswering",
    "AutoModelForTextEncoding": "modeling_m2_bert.M2BertForSentenceEmbedding",  # AutoModel is the encoder itself
}


class M2BertPreTrainedModel(PreTrainedModel):
    config_class = M2BertConfig
    config: M2BertConfig
    base_model_prefix = "m2_bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["M2BertLayer", "M2BertEmbeddings"]
    _keep_in_fp32_modules_strict = ["gated_filter", "residual_filter"]  # sines of frequency 10 magnify rounding

    def __init__(self, config: M2BertConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        config.auto_map = {**AUTO_MAP, **(getattr(config, "auto_map", None) or {})}

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, ImplicitFilter):
            self._init_filter(module)
        elif isinstance(module, ShortConvolution):
            init.uniform_(module.weight, -(NUM_TAPS**-0.5), NUM_TAPS**-0.5)
            init.uniform_(module.bias, -(NUM_TAPS**-0.5), NUM_TAPS**-0.5)
        elif isinstance(module, BlockDiagonalLinear):
            init.uniform_(module.weight, -module.weight_bound, module.weight_bound)
            if module.bias is not None:
                init.uniform_(module.bias, -module.bias_bound, module.bias_bound)
        else:
            super()._init_weights(module)

    def _init_filter(self, module):
        config = self.config
        for weight in (module.weight_in, module.weight_mid, module.weight_out):
            init.normal_(weight, std=config.initializer_range)
        init.zeros_(module.bias_in)
        init.zeros_(module.bias_mid)
        init.normal_(module.skip)
        init.constant_(module.frequency, config.filter_freq)
        length = config.max_position_embeddings
        with torch.device("cpu"):  # the values, also when the model is being built on the meta device
            init.copy_(module.positions, lag_features(length, config.time_scale, config.filter_emb_dim))
            if module.time is not None:
                init.copy_(module.time, lag_times(length, config.time_scale))
                init.copy_(module.rates, decay_rates(config.hidden_size))


class M2BertModel(M2BertPreTrainedModel):
    """The encoder (see the module's docstring), with a pooler.

    Args:
        add_pooling_layer: False leaves ``pooler_output`` out.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^classifier\.", r"^qa_outputs\."]

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = M2BertEmbeddings(config)
        self.encoder = M2BertEncoder(config)
        self.pooler = M2BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """States of every token, and the pooled state of every row.

        Args:
            input_ids: ``(batch, seq)``, or inputs_embeds ``(batch, seq, hidden)`` in their place.
            attention_mask: 1 = token, 0 = padding on either side, ``(batch, seq)``; see ``config.padding_mode``.
            token_type_ids: ``(batch, seq)``; None = 0.
            position_ids: ``(batch or 1, seq)``; None = 0, 1, ... over the tokens.

        Returns:
            last_hidden_state ``(batch, seq, hidden)``, in the layout of the input (states at padding mean nothing and may be 0);
            pooler_output ``(batch, hidden)``; hidden_states of the embeddings and of each layer if asked for.

        Raises:
            ValueError, TypeError: a tensor of the wrong shape, dtype or range, a row that is too long or empty.
        """
        _, seq = check_inputs(self.config, input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids)
        layout = row_layout(self.config, attention_mask, seq)
        if position_ids is not None and (layout.order is not None or layout.length > seq):
            raise ValueError(
                'position_ids cannot be given where padding_mode="reference" lays the rows out itself; leave them out.'
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states = self.embeddings(layout, input_ids, inputs_embeds, token_type_ids, position_ids)
        last, every = self.encoder(states, layout.mask, output_hidden_states)
        last = layout.restore(last)
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last, layout),
            hidden_states=None if every is None else tuple(layout.restore(each) for each in every),
        )


@dataclass
class SentenceEmbeddingOutput(ModelOutput):
    """Output of `M2BertForSentenceEmbedding`.

    Attributes:
        sentence_embedding: one vector per row, ``(batch, dimensions)``.
        last_hidden_state: ``(batch, seq, hidden)``.
        hidden_states: of the embeddings and of each layer, if asked for.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple | None = None


class M2BertLMHead(nn.Module):
    """Dense, GELU, LayerNorm, decoder tied to the word embeddings, plus a bias."""

    def __init__(self, config: M2BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        """``(..., hidden)`` -> logits ``(..., vocab)``."""
        return self.decoder(self.norm(F.gelu(self.dense(states))))


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """Predicts masked tokens."""

    _tied_weights_keys = {"lm_head.decoder.weight": "m2_bert.embeddings.word_embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^(m2_bert\.)?pooler\.", r"^classifier\.", r"^qa_outputs\."]

    def __init__(self, config: M2BertConfig):
        super().__init__(config)
        self.m2_bert = M2BertModel(config, add_pooling_layer=False)
        self.lm_head = M2BertLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_logits: bool | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Logits and, with ``labels``, the cross-entropy in nats per labelled token. Other arguments as `M2BertModel`.

        Args:
            labels: true tokens, -100 where there is nothing to predict, ``(batch, seq)``. Without any, the loss is 0.
            num_items_in_batch: divisor of the loss; None = the number of labelled tokens.
            output_logits: default: always, except when training with labels on a CPU or CUDA device, where they are computed at
                the labelled places only and not returned.
        """
        out = self.m2_bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        states, loss = out.last_hidden_state, None
        if output_logits is None:
            # a compiler, XLA's too, wants shapes that do not depend on values
            fixed = torch.compiler.is_compiling() or (labels is not None and labels.device.type not in ("cpu", "cuda"))
            output_logits = labels is None or not self.training or fixed
        logits = self.lm_head(states) if output_logits else None
        if labels is not None:
            _check_labels(labels, states.shape[:2], self.config.vocab_size)
            labelled = labels != IGNORED
            if logits is None:
                losses = F.cross_entropy(
                    _at_least_float(self.lm_head(states[labelled])), labels[labelled], reduction="sum"
                )
            else:
                losses = F.cross_entropy(_at_least_float(logits).flatten(0, 1), labels.flatten(), reduction="sum")
            loss = losses / (labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class _M2BertClassifier(M2BertPreTrainedModel):
    """A linear layer on the encoder's output, after dropout."""

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.m2_bert = M2BertModel(config, add_pooling_layer=add_pooling_layer)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class M2BertForSequenceClassification(_M2BertClassifier):
    """Classifies rows, or regresses with ``num_labels=1``; the loss follows ``config.problem_type`` as in transformers."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^qa_outputs\."]

    def __init__(self, config: M2BertConfig):
        super().__init__(config, add_pooling_layer=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Logits ``(batch, num_labels)`` and, with ``labels`` ``(batch,)`` or ``(batch, num_labels)``, the loss."""
        kwargs, loss_options = _split_options(kwargs)
        out = self.m2_bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits, loss = self.classifier(self.dropout(out.pooler_output)), None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **loss_options)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class M2BertForTokenClassification(_M2BertClassifier):
    """Classifies tokens."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^qa_outputs\.", r"^(m2_bert\.)?pooler\."]

    def __init__(self, config: M2BertConfig):
        super().__init__(config, add_pooling_layer=False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Logits ``(batch, seq, num_labels)`` and, with ``labels`` ``(batch, seq)`` (-100 = ignored), the loss."""
        kwargs, loss_options = _split_options(kwargs)
        out = self.m2_bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits, loss = self.classifier(self.dropout(out.last_hidden_state)), None
        if labels is not None:
            _check_labels(labels, logits.shape[:2], self.num_labels)
            loss = self.loss_function(logits, labels, self.config, **loss_options)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class M2BertForQuestionAnswering(M2BertPreTrainedModel):
    """Finds the first and last token of an answer."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^classifier\.", r"^(m2_bert\.)?pooler\."]

    def __init__(self, config: M2BertConfig):
        super().__init__(config)
        self.m2_bert = M2BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Logits of the two ends ``(batch, seq)`` and, with both positions ``(batch,)``, the mean of their cross-entropies."""
        kwargs, loss_options = _split_options(kwargs)
        out = self.m2_bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start, end = (logits.contiguous() for logits in self.qa_outputs(out.last_hidden_state).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start, end, start_positions, end_positions, **loss_options)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, hidden_states=out.hidden_states
        )


class M2BertForSentenceEmbedding(M2BertPreTrainedModel):
    """One vector per text: the pooler's output, its first ``truncate_dim`` dimensions, of unit length if configured.

    AutoModelForTextEncoding loads it; AutoModel loads the encoder alone, whose ``pooler_output`` is the vector before it is cut
    and normalised.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^classifier\.", r"^qa_outputs\."]

    def __init__(self, config: M2BertConfig):
        super().__init__(config)
        self.m2_bert = M2BertModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        **kwargs,
    ) -> SentenceEmbeddingOutput:
        """Embeddings ``(batch, truncate_dim or hidden)``. Other arguments as `M2BertModel`.

        Args:
            truncate_dim: keep the first dimensions (Matryoshka); None = ``config.truncate_dim``.
            normalize: unit length, after truncation; None = ``config.normalize_embeddings``.

        Raises:
            ValueError: truncate_dim outside [1, hidden].
        """
        dimensions = self.config.truncate_dim if truncate_dim is None else truncate_dim
        hidden = self.config.hidden_size
        if dimensions is not None and not 1 <= dimensions <= hidden:
            raise ValueError(f"truncate_dim must be from 1 to hidden_size ({hidden}), got {dimensions}.")
        out = self.m2_bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        embedding = out.pooler_output[:, :dimensions]
        if self.config.normalize_embeddings if normalize is None else normalize:
            embedding = F.normalize(embedding, dim=-1)
        return SentenceEmbeddingOutput(embedding, out.last_hidden_state, out.hidden_states)


def _split_options(kwargs):
    """Arguments of the encoder and of the loss."""
    loss = {key: kwargs[key] for key in ("num_items_in_batch",) if key in kwargs}
    return {key: value for key, value in kwargs.items() if key not in loss}, loss


def _check_labels(labels, shape, classes):
    if labels.shape != shape:
        raise ValueError(f"labels must be (batch, seq) = {tuple(shape)}, got {tuple(labels.shape)}.")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
        if wrong.numel():
            raise ValueError(f"labels must be {IGNORED} or in [0, {classes}), got {int(wrong[0])}.")


def _at_least_float(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


M2BertModel.register_for_auto_class("AutoModel")
M2BertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
M2BertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
M2BertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
M2BertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
M2BertForSentenceEmbedding.register_for_auto_class("AutoModelForTextEncoding")
