"""MonArc: an autoregressive language model with a residual energy on every token.

    p(x_t | x_<t) = p_LM(x_t | x_<t) exp(-E(x_t)) / Z(x_<t),     Z(x_<t) = sum_y p_LM(y | x_<t) exp(-E(y))

* Composite over any transformers causal LM with full softmax attention (`config.text_config`); at initialisation E = 0.
* Two streams: the true pass leaves its keys and values, negatives drawn from the LM are scored in a second pass over them.
* One chunked pass for LM loss, negatives and log-probabilities; never a ``(batch * seq, vocab)`` tensor in training.
* Optional energy adapter: low-rank weights that act on candidate tokens only, so that the LM stays bit-identical.
* `generate` resamples candidates by energy with one forward pass per emitted token.

Differences from the original code: energies belong to the token they score (``energies[:, t]`` to ``input_ids[:, t]``), first
tokens of packed documents are not counted unless asked, the logged loss is a bound on the likelihood, keys and values are
not computed twice.

Shapes: batch, seq, K = candidates per position, hidden, vocab. Units: nats.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .backbone import BackbonePlans, candidate_pass, check_backbone, run_decoder, true_pass, watch_final_norm
from .candidate_decoding import CandidateDecoding
from .configuration_monarc import OWN_FIELDS, MonArcConfig, new_causal_lm
from .energy_adapter import attach_energy_adapter
from .lm_head_loss import accumulation_dtype, lm_head_pass
from .residual_energy import BilinearEnergyHead, LinearEnergyHead, clamp_energy, energy_loss_terms
from .rotary_scaling import renew_rotary_embeddings, with_rope_scaling
from .token_layout import check_inputs, token_layout
from .two_stream_attention import Stream, checkpoint_with_streams


AUTO_MAP = {
    "AutoConfig": "configuration_monarc.MonArcConfig",
    "AutoModel": "modeling_monarc.MonArcForCausalLM",
    "AutoModelForCausalLM": "modeling_monarc.MonArcForCausalLM",
}


@dataclass
class MonArcOutput(ModelOutput):
    """Output of `MonArcForCausalLM`.

    The five scalars are sums over the counted targets divided by ``num_items_in_batch`` when that is given, else by the number
    of counted targets.

    Attributes:
        loss: ``lm_loss + energy_loss_weight * energy_loss``, nats/token.
        lm_loss: cross-entropy of the LM, nats/token.
        energy_loss: in the configured form, nats/token.
        z_hat: mean of exp(-E) over negatives, an unbiased estimate of the mean of Z.
        elm_nll_bound: ``lm_loss + mean E + z_hat - 1``: unbiased estimate of an upper bound on the ELM's NLL, nats/token.
        logits: of the LM, ``(batch, seq, vocab)``; None when training with labels, unless asked for.
        energies: E of each token, ``(batch, seq)``; 0 where ``target_mask`` is False.
        log_probs: LM log-probability of each token, ``(batch, seq)``; 0 at the same places.
        target_mask: tokens that are scored and counted, boolean ``(batch, seq)``.
        negatives, negative_energies, negative_log_probs: ``(batch, K, seq)``; energies are 0 where no negative was scored.
        final_state: with a cache: the last token's state before the final norm, ``(batch, 1, hidden)``.
    """

    loss: Tensor | None = None
    lm_loss: Tensor | None = None
    energy_loss: Tensor | None = None
    z_hat: Tensor | None = None
    elm_nll_bound: Tensor | None = None
    logits: Tensor | None = None
    energies: Tensor | None = None
    log_probs: Tensor | None = None
    target_mask: Tensor | None = None
    negatives: Tensor | None = None
    negative_energies: Tensor | None = None
    negative_log_probs: Tensor | None = None
    past_key_values: object | None = None
    final_state: Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


@dataclass
class CandidateScores(ModelOutput):
    """Energies of alternative tokens, see `MonArcForCausalLM.score_candidates`.

    Attributes:
        energies, log_probs: of the candidates, ``(batch, K, seq)``; 0 where ``target_mask`` is False.
        token_energies, token_log_probs: of ``input_ids`` themselves, ``(batch, seq)``.
        target_mask: tokens that are scored, boolean ``(batch, seq)``.
    """

    energies: Tensor | None = None
    log_probs: Tensor | None = None
    token_energies: Tensor | None = None
    token_log_probs: Tensor | None = None
    target_mask: Tensor | None = None


class MonArcPreTrainedModel(PreTrainedModel):
    config_class = MonArcConfig
    config: MonArcConfig
    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BilinearEnergyHead", "LinearEnergyHead"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        # leaves are tagged: containers without parameters of their own are never passed here for code outside transformers
        kind = getattr(module, "_monarc_init", None)
        if kind == "zeros":
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif kind == "fan_in":
            init.normal_(module.weight, std=module.in_features**-0.5)
        else:
            super()._init_weights(module)


class MonArcForCausalLM(CandidateDecoding, BackbonePlans, MonArcPreTrainedModel, GenerationMixin):
    """A causal language model with a residual energy on every token (see the module's docstring).

    Args:
        config: its ``text_config`` names the LM.
        lm: the LM itself, taken over as it is; None = built from ``text_config`` with fresh weights. Use `from_pretrained` for
            saved MonArc models and `from_causal_lm` for existing LMs.

    Raises:
        ValueError: the LM is not a decoder with full causal attention in every layer.
    """

    accepts_loss_kwargs = True

    def __init__(self, config: MonArcConfig, lm: PreTrainedModel | None = None):
        super().__init__(config)
        self.lm = new_causal_lm(config.text_config) if lm is None else lm
        config.text_config = self.lm.config
        decoder = self.lm.get_decoder()
        watch_final_norm(decoder)
        self.energy_head = self._build_energy_head(config)
        self.energy_adapter = None
        if config.energy_adapter_rank:
            self.energy_adapter = attach_energy_adapter(
                decoder, config.energy_adapter_rank, config.energy_adapter_targets
            )
        config.auto_map = {**AUTO_MAP, **(getattr(config, "auto_map", None) or {})}
        # a given LM keeps its weights; a new one initialises itself, and must be free to refill its buffers in from_pretrained
        if lm is not None:
            for module in self.lm.modules():
                module._is_hf_initialized = True
        self.post_init()
        self.set_candidate_defaults()
        if config.freeze_lm:
            self.lm.requires_grad_(False)
        check_backbone(self.lm)

    @staticmethod
    def _build_energy_head(config):
        hidden_size = config.text_config.hidden_size
        eps = getattr(config.text_config, "layer_norm_eps", 1e-5)
        if config.energy_head == "linear":
            return LinearEnergyHead(hidden_size, eps)
        return BilinearEnergyHead(hidden_size, eps, config.energy_logprob_features)

    @classmethod
    def from_causal_lm(cls, model_or_path, **options) -> "MonArcForCausalLM":
        """Wraps an existing language model; with the energy at its zero initialisation the result *is* that model.

        Args:
            model_or_path: a transformers causal LM (its modules are taken over, not copied), or a path or Hub id of one.
            options: fields of `MonArcConfig`; for a path the others go to `AutoModelForCausalLM.from_pretrained`.

        Raises:
            TypeError: the argument is neither a plain causal LM nor a path to one, or an option is not known.
            ValueError: the architecture does not qualify.
        """
        options = with_rope_scaling(options)
        fields = {key: options.pop(key) for key in list(options) if key in OWN_FIELDS}
        if isinstance(model_or_path, str) or hasattr(model_or_path, "__fspath__"):
            model_or_path = AutoModelForCausalLM.from_pretrained(model_or_path, **options)
        elif options:
            raise TypeError(
                f"{sorted(options)} are no fields of MonArcConfig; known: {sorted(OWN_FIELDS - {'text_config'})}."
            )
        if isinstance(model_or_path, MonArcPreTrainedModel):
            raise TypeError("from_causal_lm got a MonArc model, which has its energy already; use it as it is.")
        if not isinstance(model_or_path, PreTrainedModel) or model_or_path.get_output_embeddings() is None:
            raise TypeError(
                f"from_causal_lm needs a transformers causal language model or a path to one, got {type(model_or_path).__name__}."
            )
        lm = model_or_path
        # saved with the config: a Hub id is worth keeping, a local path is not
        if os.path.isdir(lm.config._name_or_path):
            lm.config._name_or_path = ""
        config = MonArcConfig(text_config=lm.config, **fields)
        if "rope_scaling" in fields:
            renew_rotary_embeddings(lm)
        model = cls(config, lm=lm)
        head = lm.get_output_embeddings().weight
        whole = head.dtype.is_floating_point and not getattr(lm, "is_quantized", False)
        dtype = (
            head.dtype if whole else torch.get_default_dtype()
        )  # of the energy: full precision on quantised weights
        for part in filter(None, (model.energy_head, model.energy_adapter)):
            part.to(head.device, dtype)
        model.config.dtype = dtype
        model.generation_config = lm.generation_config
        model.set_candidate_defaults()
        return model.train(lm.training)

    # ------------------------------------------------------------------------------------------- transformers' seams

    def get_input_embeddings(self):
        return self.lm.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.lm.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        self.lm.set_output_embeddings(new_embeddings)

    def get_decoder(self):
        return self.lm.get_decoder()

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=None, **kwargs):
        if gradient_checkpointing_func is not None:
            config = self.lm.get_decoder().config
            kwargs["gradient_checkpointing_func"] = checkpoint_with_streams(gradient_checkpointing_func, config)
        return super()._set_gradient_checkpointing(enable=enable, **kwargs)

    def train(self, mode: bool = True):
        """As `nn.Module.train`; a frozen LM stays in evaluation mode, so that dropout never disturbs it, and frozen.

        `from_pretrained` replaces parameters and then calls this: they are frozen again here.
        """
        super().train(mode)
        if self.config.freeze_lm:
            self.lm.eval().requires_grad_(False)
        return self

    def energy_parameters(self) -> list[nn.Parameter]:
        """The parameters that belong to the energy alone: head and adapter."""
        return [p for part in filter(None, (self.energy_head, self.energy_adapter)) for p in part.parameters()]

    # ----------------------------------------------------------------------------------------------------- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        negatives: Tensor | None = None,
        num_negatives: int | None = None,
        negative_fraction: float | None = None,
        energy_loss: str | None = None,
        energy_loss_weight: float | None = None,
        generator: torch.Generator | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_energies: bool | None = None,
        output_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> MonArcOutput:
        """LM logits, token energies and, with ``labels`` or ``negatives``, the losses.

        Args:
            input_ids: ``(batch, seq)``.
            attention_mask: 1 = token, 0 = padding on either side, ``(batch, seq)``.
            segment_ids: documents packed in a row, -1 = padding, ``(batch, seq)``; tokens see their own document only.
            labels: ``input_ids`` with -100 where a token is not to be counted, ``(batch, seq)``; the shift happens inside.
            negatives: tokens of the candidate streams, int64 ``(batch, K, seq)``, used as they are; None = drawn from the LM.
            num_negatives, negative_fraction, energy_loss, energy_loss_weight: instead of the configuration's.
            generator: source of the negatives, on the model's device.
            num_items_in_batch: divisor of every loss term; None = the number of counted targets of this batch.
            output_energies: default: whenever no cache is in use. False with no labels = the language model alone.
            output_logits: default: always, except when training with labels.
            logits_to_keep: as in transformers.

        Raises:
            ValueError, TypeError: a tensor of the wrong shape, dtype or range, labels that differ from ``input_ids``.
        """
        losses = labels is not None or negatives is not None
        if output_energies is None:
            output_energies = past_key_values is None and inputs_embeds is None and not use_cache
        if not (output_energies or losses):
            if segment_ids is not None:
                raise ValueError(
                    "segment_ids go with energies or losses of whole rows: pass output_energies=True and no cache."
                )
            return self._lm_forward(
                logits_to_keep, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
                output_hidden_states=output_hidden_states, **kwargs,
            )  # fmt: skip
        if past_key_values is not None or inputs_embeds is not None:
            raise ValueError(
                "energies and losses need whole rows of input_ids: pass no past_key_values and no inputs_embeds."
            )
        check_inputs(input_ids, labels, negatives, self.lm.get_input_embeddings().weight.shape[0])
        if num_negatives is None:
            num_negatives = self.config.num_negatives
        if num_negatives < 1:
            raise ValueError(
                f"num_negatives must be at least 1, got {num_negatives}; for the LM's loss alone use model.lm."
            )
        true = self._true_pass(
            input_ids, attention_mask, position_ids, segment_ids, output_hidden_states=output_hidden_states
        )
        scored = true.layout.scored if labels is None else true.layout.scored & (labels != -100)
        if num_items_in_batch is None:
            num_items_in_batch = scored.sum().clamp(min=1)
        weights = scored.to(accumulation_dtype(true.normed.dtype)) / num_items_in_batch
        head = self._head_pass(true, input_ids, weights, negatives, num_negatives if losses else 0, generator)
        out = MonArcOutput(log_probs=head.target_log_probs, target_mask=scored, hidden_states=true.hidden_states)
        if losses:
            fraction = self.config.negative_fraction if negative_fraction is None else negative_fraction
            out.lm_loss, out.negatives, out.negative_log_probs = head.loss, head.candidates, head.candidate_log_probs
            positions = negative_positions(input_ids.shape[1], fraction, generator, input_ids.device)
            energies, negative_energies = self._energies(true, input_ids, head, positions)
            out.energies = energies.masked_fill(~scored, 0.0)
            out.negative_energies = negative_energies.masked_fill(~scored.unsqueeze(1), 0.0)
            form = self.config.energy_loss if energy_loss is None else energy_loss
            factor = self.config.energy_loss_weight if energy_loss_weight is None else energy_loss_weight
            self._add_losses(out, weights, positions, form, factor)
        else:
            out.energies = self._energies(true, input_ids, head, None)[0].masked_fill(~scored, 0.0)
        out.log_probs = out.log_probs.masked_fill(~scored, 0.0)
        if output_logits or (output_logits is None and (labels is None or not self.training)):
            out.logits = self.lm.get_output_embeddings()(true.normed[:, _kept(logits_to_keep)])
        return MonArcOutput(**out)  # in the order of the fields: as a tuple it starts with the loss

    def _lm_forward(self, logits_to_keep, **inputs):
        """The language model alone, with its cache."""
        out, state = run_decoder(self.lm, Stream("plain"), **inputs)
        return MonArcOutput(
            logits=self.lm.get_output_embeddings()(out.last_hidden_state[:, _kept(logits_to_keep)]),
            final_state=state[:, -1:],
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=getattr(out, "attentions", None),
        )

    def _true_pass(self, input_ids, attention_mask, position_ids, segment_ids, **options):
        layout = token_layout(input_ids, attention_mask, position_ids, segment_ids, self.config.mask_segment_starts)
        return true_pass(self.lm, input_ids, layout, self._backend(), **options)

    def _backend(self):
        if self.config.two_stream_backend == "auto" and self.lm.config._attn_implementation == "eager":
            return "eager"
        return self.config.two_stream_backend

    def _head_pass(self, true, input_ids, weights, candidates, num_samples, generator):
        """`lm_head_pass` over the batch, its results aligned with the tokens: ``(batch, seq)`` and ``(batch, K, seq)``."""
        batch, seq = input_ids.shape
        given = None if candidates is None else candidates[:, :, 1:].transpose(1, 2).flatten(0, 1)
        head = lm_head_pass(
            self.lm.get_output_embeddings(), true.normed[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(),
            weights[:, 1:].flatten(), given, num_samples, generator, self.config.lm_loss_chunk_size,
        )  # fmt: skip
        head.target_log_probs = nn.functional.pad(head.target_log_probs.view(batch, seq - 1), (1, 0))
        copies = head.candidate_log_probs.shape[1]
        log_probs = head.candidate_log_probs.view(batch, seq - 1, copies).transpose(1, 2)
        head.candidate_log_probs = nn.functional.pad(log_probs, (1, 0))
        if candidates is None:
            drawn = head.candidates.view(batch, seq - 1, copies).transpose(1, 2)
            first = input_ids[:, None, :1].expand(-1, copies, -1)
            candidates = torch.cat([first, drawn], -1)
        head.candidates = candidates
        return head

    def _energies(self, true, input_ids, head, positions):
        """Energies of the tokens ``(batch, seq)`` and of the candidates ``(batch, K, seq)``, at ``positions`` only (0 elsewhere)."""
        log_probs = head.target_log_probs.unsqueeze(1)
        if positions is not None or not head.candidates.shape[1]:
            token_energies = self._energy(true, self._states(true, input_ids.unsqueeze(1)), log_probs)
            return token_energies[:, 0], self._candidate_energies(
                true, head.candidates, head.candidate_log_probs, positions
            )
        states = self._states(true, input_ids.unsqueeze(1), head.candidates)
        energies = self._energy(true, states, torch.cat([log_probs, head.candidate_log_probs], 1))
        return energies[:, 0], energies[:, 1:]

    def _states(self, true, tokens, candidates=None):
        """States of the tokens themselves ``(batch, 1, seq, hidden)``, then of the candidates if any.

        Without an adapter a token's state as its own candidate is the one that the true stream has already.
        """
        if self.energy_adapter is not None:
            together = tokens if candidates is None else torch.cat([tokens, candidates], 1)
            return candidate_pass(self.lm, true, together, None, self._backend())
        own = true.state.unsqueeze(1)
        if candidates is None:
            return own
        return torch.cat([own, candidate_pass(self.lm, true, candidates, None, self._backend())], 1)

    def _candidate_energies(self, true, candidates, log_probs, positions=None):
        """Energies of candidates, ``(batch, K, seq)``; scored at ``positions`` only, 0 elsewhere."""
        if not candidates.shape[1]:
            return log_probs
        if positions is not None:
            candidates, log_probs = candidates[..., positions], log_probs[..., positions]
        states = candidate_pass(self.lm, true, candidates, positions, self._backend())
        energies = self._energy(true, states, log_probs, positions)
        if positions is None:
            return energies
        return energies.new_zeros(*energies.shape[:2], true.state.shape[1]).index_copy(-1, positions, energies)

    def _energy(self, true, states, log_probs, positions=None):
        previous = torch.cat([true.state[:, :1], true.state[:, :-1]], 1)  # position 0 has none and is never counted
        if positions is not None:
            previous = previous[:, positions]
        return clamp_energy(self.energy_head(previous.unsqueeze(1), states, log_probs), self.config.energy_bound)

    def _add_losses(self, out, weights, positions, form, factor):
        data_term, negative_term = energy_loss_terms(out.energies, out.negative_energies, form)
        negative_weights = weights
        if positions is not None:  # each position is scored with probability len(positions) / (seq - 1)
            inclusion = (weights.shape[1] - 1) / positions.shape[0]
            negative_weights = torch.zeros_like(weights).index_fill(1, positions, inclusion) * weights
        out.energy_loss = (data_term * weights).sum() + (negative_term * negative_weights).sum()
        out.z_hat = (torch.exp(-out.negative_energies.detach()).mean(1) * negative_weights).sum()
        mean_one = negative_weights.sum()  # 1 in expectation; exactly 1 when every position is scored
        out.elm_nll_bound = (out.lm_loss + (out.energies * weights).sum() + out.z_hat - mean_one).detach()
        out.loss = out.lm_loss + factor * out.energy_loss

    @torch.no_grad()
    def score_candidates(
        self,
        input_ids: Tensor,
        candidates: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        max_rows: int = 64,
        positions: Tensor | None = None,
    ) -> CandidateScores:
        """Energies and LM log-probabilities of alternative tokens, each given the true tokens before its position.

        Args:
            input_ids: ``(batch, seq)``.
            candidates: candidate (b, k, t) stands in the place of ``input_ids[b, t]``, int64 ``(batch, K, seq)``.
            max_rows: candidate streams that run at once; memory against speed.
            positions: score the candidates at these places of the row only, ascending, int64 ``(queries,)``; energies are 0
                elsewhere.

        Raises:
            ValueError, TypeError: candidates of the wrong shape, dtype or range.
        """
        check_inputs(input_ids, None, candidates, self.lm.get_input_embeddings().weight.shape[0], name="candidates")
        true = self._true_pass(input_ids, attention_mask, position_ids, segment_ids)
        scored = true.layout.scored
        head = self._head_pass(true, input_ids, scored.float(), candidates, 0, None)
        token_states = self._states(true, input_ids.unsqueeze(1))
        token_energies = self._energy(true, token_states, head.target_log_probs.unsqueeze(1))[:, 0]
        chunk = max(1, max_rows // input_ids.shape[0])
        parts = zip(candidates.split(chunk, 1), head.candidate_log_probs.split(chunk, 1), strict=True)
        energies = torch.cat([self._candidate_energies(true, *part, positions) for part in parts], 1)
        unscored = ~scored.unsqueeze(1)
        return CandidateScores(
            energies=energies.masked_fill(unscored, 0.0),
            log_probs=head.candidate_log_probs.masked_fill(unscored, 0.0),
            token_energies=token_energies.masked_fill(~scored, 0.0),
            token_log_probs=head.target_log_probs.masked_fill(~scored, 0.0),
            target_mask=scored,
        )


def negative_positions(seq: int, fraction: float, generator=None, device=None) -> Tensor | None:
    """A random subset of round(fraction * (seq - 1)) >= 1 of the places 1..seq-1, ascending; None = all of them."""
    if not 0 < fraction <= 1:
        raise ValueError(f"negative_fraction must be in (0, 1], got {fraction}.")
    count = max(1, round(fraction * (seq - 1)))
    if seq <= 1 or count == seq - 1:
        return None
    return torch.randperm(seq - 1, generator=generator, device=device)[:count].sort().values + 1


def _kept(logits_to_keep):
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep


MonArcForCausalLM.register_for_auto_class("AutoModelForCausalLM")
