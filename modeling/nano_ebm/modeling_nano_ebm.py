"""nanoEBM: a language model that refines each prediction by descending a free energy.

    z_0 = W h_t                                                   system 1: an ordinary next-token prediction
    z_{k+1} = z_k + alpha_k (W r(W' softmax(z_k)) - z_k)          system 2: thinking, see free_energy

* The free energy is concave in the expected embedding: every step with alpha in (0, 1] lowers it at every position, whatever
  the weights; its gradient has a closed form, so that training needs first derivatives only.
* Non-linear units, which see the last tokens beside the state, and an associative memory of (state, next token) pairs make it
  more than a sharpening of system 1.
* Trunk: a small GPT, or any causal LM (`attach_refinement`).
* Generation keeps keys, values and memories in the cache and refines the last position only; best-of-N by energy.
* Contrastive divergence (plain, persistent, with momentum), soft tokens, top-k thinking, per-position early stop.

The published model is the special case ``energy_type="linear", geometry="logits", grad_reduction="mean", entropy_weight=0``
(`NanoEBMConfig.preset("published")`). Differences otherwise: positions are independent of the rest of the batch, step sizes are
learnt, soft tokens are causal, both contrastive phases carry gradient.

Energies: lower is likelier; nats. Shapes: batch, seq, query = positions that are refined, hidden, vocab, steps.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer
from transformers.utils import can_return_tuple

from .attention_layout import attention_layout
from .configuration_nano_ebm import NanoEBMConfig
from .contrastive import LangevinChain, NegativeChains, contrastive_divergence, in_batch_info_nce, sample_negatives
from .free_energy import FreeEnergyField, FreeEnergyTerms, Objective, effective_weight, linear_field
from .input_checks import check_inputs, check_positions
from .language_model_trunk import check_causal_lm, language_model_states, new_causal_lm, open_causal_lm
from .refinement import Refinement, StepRule, StepSizes, refine
from .refinement_loss import masked_mean, mean_nll, next_token_targets
from .refinement_output import Context, NanoEBMOutput
from .soft_tokens import FedBackTrunk, published_soft_move
from .thinking_generation import ThinkingGeneration
from .thinking_options import ThinkingOptions, thinking_options
from .trunk import Trunk, TrunkPlans


AUTO_MAP = {
    "AutoConfig": "configuration_nano_ebm.NanoEBMConfig",
    "AutoModel": "modeling_nano_ebm.NanoEBMForRefinement",
    "AutoModelForCausalLM": "modeling_nano_ebm.NanoEBMForRefinement",
}


class NanoEBMPreTrainedModel(PreTrainedModel):
    config_class = NanoEBMConfig
    config: NanoEBMConfig
    base_model_prefix = "trunk"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "FreeEnergyTerms"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True  # for a language model as the trunk; the own trunk calls SDPA whatever is chosen
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        # leaves are tagged: containers without parameters of their own are never passed here for code outside transformers
        kind = getattr(module, "_nano_ebm_init", None)
        if isinstance(module, StepSizes):
            init.copy_(module.raw, module.initial_raw())
        elif isinstance(module, NegativeChains):
            init.zeros_(module.displacement)
            init.zeros_(module.velocity)
        elif kind == "zeros":
            init.zeros_(module.weight)
        elif kind == "units":
            init.normal_(module.weight, std=0.05)
        else:
            super()._init_weights(module)


class NanoEBMForRefinement(ThinkingGeneration, TrunkPlans, NanoEBMPreTrainedModel, GenerationMixin):
    """A language model that refines its predictions (see the module's docstring).

    Args:
        config: without ``text_config`` the trunk is a GPT of its own, else that language model.
        lm: the language model itself, taken over as it is; None = built from ``config.text_config``. Use `attach_refinement`.
    """

    accepts_loss_kwargs = True

    def __init__(self, config: NanoEBMConfig, lm: PreTrainedModel | None = None):
        super().__init__(config)
        self.trunk = self.lm = self.energy_head = self.energy = self.chains = None
        if config.text_config is None:
            self.trunk = Trunk(config)
            self.energy_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            if config.tie_word_embeddings:
                self._tied_weights_keys = {"energy_head.weight": "trunk.token_embedding.weight"}
        else:
            self.lm = new_causal_lm(config.text_config) if lm is None else lm
            config.text_config = self.lm.config
        if config.energy_type == "free_energy":
            self.energy = FreeEnergyTerms(
                config.hidden_size, config.energy_units, config.energy_heads, self.lm is not None,
                config.energy_context, config.energy_power, config.energy_feedback,
            )  # fmt: skip
        self.step_sizes = StepSizes(config.think_steps, config.think_lr, config.geometry, config.think_lr_learnable)
        if config.use_contrastive and config.contrastive_type != "cd":
            momentum, restarts = (0.0, 0.0)
            if config.contrastive_type == "fast_pcd":
                momentum, restarts = config.chain_momentum, config.restart_prob
            self.chains = NegativeChains(config.n_persistent, config.vocab_size, momentum, restarts)
        config.auto_map = {**AUTO_MAP, **(getattr(config, "auto_map", None) or {})}
        if lm is not None:  # a given language model keeps its weights
            for module in lm.modules():
                module._is_hf_initialized = True
        self.post_init()
        self.set_thinking_defaults()
        self.freeze()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers'; what is frozen by the configuration stays so (loading makes every weight trainable)."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    def freeze(self) -> None:
        """Takes the gradient from what the configuration does not let learn."""
        self.step_sizes.raw.requires_grad_(self.config.think_lr_learnable)
        if self.config.freeze_lm:
            self.lm.requires_grad_(False)

    @classmethod
    def from_causal_lm(cls, model_or_path, **options) -> "NanoEBMForRefinement":
        """The same as `attach_refinement`."""
        return attach_refinement(model_or_path, **options)

    # ------------------------------------------------------------------------------------------- transformers' seams

    def get_input_embeddings(self):
        return self.trunk.token_embedding if self.lm is None else self.lm.get_input_embeddings()

    def set_input_embeddings(self, value):
        if self.lm is None:
            self.trunk.token_embedding = value
        else:
            self.lm.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.energy_head if self.lm is None else self.lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        if self.lm is None:
            self.energy_head = new_embeddings
        else:
            self.lm.set_output_embeddings(new_embeddings)

    def readout(self) -> nn.Linear:
        """W: from states to the negative energies of tokens."""
        return self.get_output_embeddings()

    def max_positions(self) -> int | None:
        """Longest row; None where positions are not a table of the own trunk."""
        learned = self.trunk is not None and self.trunk.position_embedding is not None
        return self.config.max_position_embeddings if learned else None

    def energy_parameters(self) -> list[nn.Parameter]:
        """The parameters that belong to refinement alone: non-linear terms and step sizes."""
        return [p for part in (self.energy, self.step_sizes) if part is not None for p in part.parameters()]

    def train(self, mode: bool = True):
        """As `nn.Module.train`; a frozen language model stays in evaluation mode, so that dropout never disturbs it."""
        super().train(mode)
        if self.config.freeze_lm:
            self.lm.eval()
        return self

    # ----------------------------------------------------------------------------------------------------- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_thinking: bool | None = None,
        think_steps: int | None = None,
        think_lr: float | None = None,
        think_topk: int | None = None,
        think_max_move: float | None = None,
        think_tolerance: float | None = None,
        think_samples: int | None = None,
        langevin_noise: float | None = None,
        generator: torch.Generator | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_energies: bool | None = None,
        output_trajectory: bool = False,
        output_hidden_states: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> NanoEBMOutput:
        """Predictions before and after thinking and, with ``labels``, the losses.

        Args:
            input_ids: ``(batch, seq)``.
            attention_mask: 1 = token, 0 = padding on either side, ``(batch, seq)``, with a cache ``(batch, past + seq)``.
            segment_ids: documents packed in a row, -1 = padding, ``(batch, seq)``; tokens see their own document only.
            labels: tokens, -100 where one is not counted, ``(batch, seq)``; the shift happens inside.
            use_thinking, think_steps, think_lr, think_max_move, think_tolerance, langevin_noise: instead of the configuration's;
                ``think_lr`` is one step size for every step.
            think_topk: only the k likeliest tokens of system 1 keep probability, fixed before the first step; 0 = all.
            think_samples: N refinements with Langevin noise (the first without), the one of lowest energy is taken.
            generator: source of all noise and negatives, on the model's device.
            num_items_in_batch: divisor of every loss; None = the number of counted targets of this batch.
            output_energies: default: when there are neither labels nor a cache.
            logits_to_keep: refine the last so many positions only, or those of a tensor; 0 = all.

        Raises:
            ValueError, TypeError: a tensor of the wrong shape, dtype or range; an option out of range.
        """
        options = self._thinking_options(
            use_thinking, think_steps, think_lr, think_topk, think_max_move, think_tolerance, think_samples, langevin_noise,
        )  # fmt: skip
        step, absent = self._token_step, (attention_mask, position_ids, segment_ids, labels, output_hidden_states)
        if step is not None and step.fits(input_ids, past_key_values, *absent):
            context, field = step(input_ids, past_key_values)
        else:
            check_inputs(self, input_ids, labels, logits_to_keep, options.topk)
            context = self._context(
                input_ids, attention_mask, position_ids, segment_ids, past_key_values, use_cache, logits_to_keep,
                output_hidden_states,
            )  # fmt: skip
            field = self._field(context)
        if output_energies is None:
            output_energies = labels is None and context.cache is None
        start = field.start()
        objective = self._objective(start, options.topk)
        result = self._refined(context, field, start, objective, options, generator, output_energies)
        out = NanoEBMOutput(past_key_values=context.cache)
        if labels is not None:
            targets = next_token_targets(labels, attention_mask, segment_ids)
            if num_items_in_batch is None:
                num_items_in_batch = (targets != -100).sum().clamp(min=1)
            self._add_losses(out, field, objective, result, targets, num_items_in_batch, generator)
        self._add_predictions(out, context, objective, result, output_energies, output_trajectory)
        if output_hidden_states:
            out.hidden_states = tuple(context.states)
        return out

    @torch.no_grad()
    def energy_field(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> FreeEnergyField:
        """The energy at every position of ``input_ids`` ``(batch, seq)``, to evaluate at any prediction.

        ``model.objective().energy(field, logits)`` is the free energy of ``logits`` ``(batch, seq, vocab)``;
        ``field.start()`` is system 1.
        """
        check_inputs(self, input_ids)
        return self._field(self._context(input_ids, attention_mask))

    def objective(self) -> Objective:
        """The configured free energy as a function of logits."""
        return self._objective(None, 0)

    # ------------------------------------------------------------------------------------------ states and energy

    def _context(
        self, input_ids, attention_mask=None, position_ids=None, segment_ids=None, past_key_values=None,
        use_cache=False, logits_to_keep=0, all_layers=False,
    ):  # fmt: skip
        cache = self._cache(past_key_values, use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        layout = attention_layout(input_ids, attention_mask, position_ids, segment_ids, past)
        check_positions(layout, self.max_positions())
        embeds = None
        if self.lm is None:
            embeds = self.trunk.token_embedding(input_ids)
            states = self.trunk(embeds, layout, cache)
        else:
            segmented = segment_ids is not None and layout.mask is not None
            states = language_model_states(
                self.lm, input_ids, attention_mask, layout, segmented, cache, bool(all_layers)
            )
        memories = None
        if self.energy is not None and self.energy.memory_key is not None:
            memories = self.energy.memories(states[-1], F.embedding(input_ids, effective_weight(self.readout())))
            if cache is not None:
                memories = cache.update(*memories, self._memory_layer(cache))
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return Context(layout, embeds, states, memories, cache, kept)

    def _cache(self, cache, use_cache):
        """The cache to fill, if any; refused when it cannot hold memories."""
        checkpointing = self.training and any(getattr(m, "gradient_checkpointing", False) for m in self.modules())
        if cache is None:
            return DynamicCache(config=self.config) if use_cache and not checkpointing else None
        if checkpointing:
            raise ValueError("blocks under gradient checkpointing fill no cache; call model.eval() before generate().")
        if not isinstance(cache, DynamicCache) or cache.offloading:
            raise ValueError(
                f"past_key_values must be a DynamicCache on the model's device, to which memories can be added, got "
                f"{type(cache).__name__}; leave cache_implementation unset, or pass use_cache=False."
            )
        if self.config.use_soft_tokens == "published":
            raise ValueError('use_soft_tokens="published" replaces the whole context; pass use_cache=False.')
        return cache

    def _memory_layer(self, cache, offset=0):
        """Index of the cache layer after the trunk's, made if need be; ``offset`` layers further."""
        layers = self.config.get_text_config().num_hidden_layers if self.trunk is None else len(self.trunk.blocks)
        index = layers + offset
        while len(cache.layers) <= index:
            cache.layers.append(DynamicLayer())
        return index

    def _field(self, context, hidden=None):
        """The energy at the kept positions; ``hidden`` ``(batch, query, hidden)`` = other states at them."""
        hidden = context.states[-1][:, context.kept] if hidden is None else hidden
        if self.energy is None:
            return linear_field(hidden, self.readout())
        mask, is_causal = context.layout.memory_queries(context.kept)
        recent = self.energy.recent(context.memories, context.layout, context.kept)
        return self.energy.field(hidden, context.memories, mask, is_causal, self.readout(), recent)

    def _objective(self, start, topk):
        candidates = None
        if topk and topk < start.shape[-1]:
            candidates = torch.zeros_like(start, dtype=torch.bool).scatter(-1, start.topk(topk, -1).indices, True)
        config = self.config
        return Objective(
            config.softmax_temperature, config.entropy_weight, config.mixture_stopgrad, candidates=candidates
        )

    # --------------------------------------------------------------------------------------------------- thinking

    def _thinking_options(self, *given) -> ThinkingOptions:
        """`thinking_options`, once for all tokens of one `generate`."""
        known = {} if self._token_step is None else self._token_step.thinking
        if given not in known:
            known[given] = thinking_options(self.config, *given)
        return known[given]

    def _refined(self, context, field, start, objective, options: ThinkingOptions, generator, output_energies):
        if not options.steps and not output_energies:
            return Refinement([start])
        rule = self._step_rule(context, options, generator)
        if options.samples > 1:
            return self._best_refinement(field, start, objective, rule, options)
        rule.noise = options.noise if self.training else 0.0
        if not (self.config.use_soft_tokens and rule.steps):
            return refine(field, start, objective, rule, output_energies=output_energies)
        whole = replace(context, kept=slice(None))  # every position is fed back, whatever is kept
        field = self._field(whole)
        objective = self._objective(field.start(), options.topk)
        move = self._soft_move(whole, objective, rule)
        result = refine(field, field.start(), objective, rule, move, output_energies)
        return Refinement(*([value[:, context.kept] for value in part] for part in (result.path, result.energies)))

    def _step_rule(self, context, options, generator):
        known = {} if self._token_step is None else self._token_step.thinking
        if options.step_size not in known:
            step_sizes = self.step_sizes()
            if options.step_size is not None:
                step_sizes = torch.full_like(step_sizes[:1], options.step_size)
            known[options.step_size] = step_sizes
        step_sizes = known[options.step_size]
        together = self.config.grad_reduction == "mean"
        return StepRule(
            step_sizes, options.steps, mirror=self.config.geometry == "mirror",
            divisor=context.states[-1].shape[0] * context.layout.num_keys if together else 1,
            max_move=options.max_move, tolerance=options.tolerance, stop_together=together, generator=generator,
        )  # fmt: skip

    def _soft_move(self, context, objective, rule):
        """move_at of `refine` where the states change with the prediction."""
        if self.config.use_soft_tokens == "published":
            return lambda logits, _, alpha: published_soft_move(self, context.layout, objective, rule, logits, alpha)
        first = 0
        if context.cache is not None:
            first = self._memory_layer(context.cache) + 1
            self._memory_layer(context.cache, rule.steps * len(self.trunk.blocks))
        fed_back = FedBackTrunk(self.trunk, context.embeds, context.layout, context.cache, first)

        def move(logits, index, alpha):
            expected = self._field(context).embed(objective.probs(logits))
            return rule.move(self._field(context, fed_back.hidden(index, expected)), objective, logits, alpha)

        return move

    def _best_refinement(self, field, start, objective, rule, options):
        """Of ``options.samples`` noisy refinements the one that ends lowest, position by position."""
        copies = options.samples
        noisy = torch.arange(copies, device=start.device).repeat(start.shape[0]) > 0
        rule.noise = options.noise * noisy.to(start.dtype)[:, None, None]
        candidates = objective.candidates
        if candidates is not None:
            objective = replace(objective, candidates=candidates.repeat_interleave(copies, 0))
        result = refine(
            field.repeat(copies), start.repeat_interleave(copies, 0), objective, rule, output_energies=True
        )
        best = result.energies[-1].unflatten(0, (-1, copies)).argmin(1, keepdim=True)  # (batch, 1, query)

        def chosen(values):
            values = values.unflatten(0, (-1, copies))
            index = best if values.ndim == 3 else best.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])
            return values.gather(1, index).squeeze(1)

        return Refinement(list(map(chosen, result.path)), list(map(chosen, result.energies)))

    def _add_predictions(self, out, context, objective, result, output_energies, output_trajectory):
        temperature = self.config.softmax_temperature

        def shown(logits):
            logits = logits / temperature if temperature != 1 else logits
            if objective.candidates is None:
                return logits
            return logits.masked_fill(~objective.candidates, -torch.inf)

        start = result.path[0]
        out.s1_logits = start / temperature if temperature != 1 else start
        out.logits = shown(result.last)
        if output_energies:
            out.energies = torch.stack(result.energies)
        if output_trajectory:
            out.trajectory = torch.stack([shown(logits) for logits in result.logits])

    # ----------------------------------------------------------------------------------------------------- losses

    def _add_losses(self, out, field, objective, result, targets, num_items, generator):
        config, temperature = self.config, self.config.softmax_temperature
        out.nll_s1, *steps = (mean_nll(logits / temperature, targets, num_items) for logits in result.path)
        out.loss = out.nll_s1
        if steps:
            out.nll_s2 = steps[-1]
            refined = steps[-1] if config.refinement_loss == "last" else torch.stack(steps).mean()
            out.loss = (1 - config.aux_ce_weight) * refined + config.aux_ce_weight * out.nll_s1
        out.target_mask = counted = targets != -100
        if config.use_contrastive:
            out.contrastive_loss = self._contrastive_loss(
                field, objective, result.path[0], targets, counted, num_items, generator
            )
            out.loss = out.loss + config.contrastive_weight * out.contrastive_loss
        if config.info_nce_weight:
            values = in_batch_info_nce(result.path[-1] / temperature, targets.clamp(min=0), counted)
            out.info_nce_loss = masked_mean(values, counted, num_items)
            out.loss = out.loss + config.info_nce_weight * out.info_nce_loss

    def _contrastive_loss(self, field, objective, start, targets, counted, num_items, generator):
        """Mean over the contrasted positions, weighted like a mean over all counted ones."""
        config = self.config
        size = torch.full((1,), config.langevin_step_size, device=start.device)
        rule = StepRule(
            size, config.contrastive_k, config.geometry == "mirror", noise=config.langevin_noise_scale,
            generator=generator,
        )  # fmt: skip
        chains = self.chains if self.training else None  # evaluation leaves the stored chains alone
        chain = LangevinChain(rule, 0.0 if chains is None else chains.momentum)
        restarts = chains is not None and chains.restart_prob > 0
        negatives, contrasted = sample_negatives(field, start, objective, chain, counted, chains, restarts)
        values = contrastive_divergence(field, objective, targets.clamp(min=0), negatives)
        share = contrasted.sum() / counted.sum().clamp(min=1)
        return masked_mean(values, contrasted, num_items * share.clamp(min=torch.finfo(share.dtype).tiny))


def attach_refinement(causal_lm, freeze_lm: bool = True, **options) -> NanoEBMForRefinement:
    """Gives an existing language model the free-energy refinement over its last states.

    The non-linear terms start at zero, so that system 2 begins as the language model itself; training learns them.

    Args:
        causal_lm: a transformers causal LM (its modules are taken over, not copied), or a path or Hub id of one.
        freeze_lm: train the refinement only; the language model stays bit-identical.
        options: fields of `NanoEBMConfig`; for a path the others go to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        TypeError: the argument is neither a plain causal LM nor a path to one, or an option is not known.
        ValueError: the LM's logits are more than its output embedding on the last states.
    """
    causal_lm, fields = open_causal_lm(causal_lm, options)
    if isinstance(causal_lm, NanoEBMPreTrainedModel):
        raise TypeError("attach_refinement got a nanoEBM model, which refines already; use it as it is.")
    check_causal_lm(causal_lm)
    model = NanoEBMForRefinement(NanoEBMConfig(text_config=causal_lm.config, freeze_lm=freeze_lm, **fields), causal_lm)
    head = causal_lm.get_output_embeddings().weight
    dtype = head.dtype if head.dtype.is_floating_point else torch.get_default_dtype()
    for part in (model.energy, model.step_sizes, model.chains):
        if part is not None:
            part.to(head.device, dtype)
    model.config.dtype = dtype
    model.generation_config = causal_lm.generation_config
    model.set_thinking_defaults()
    return model.train(causal_lm.training)


NanoEBMForRefinement.register_for_auto_class("AutoModelForCausalLM")
