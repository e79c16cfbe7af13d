"""Generation from the energy-based model: K candidates from the LM, one of them chosen by energy, one forward pass per token.

With p the processed distribution of the language model (temperature, top-k, top-p, ... applied) and E the energies, a step
draws candidates y_1..y_K and emits one of them:

    mode "sample"   y_k ~ p with replacement;          P(y_j) ~ exp(-E(y_j))          (sampling-importance-resampling)
    mode "topk"     the K likeliest tokens of p;       P(y_j) ~ p(y_j) exp(-E(y_j))   (the ELM restricted to them)
    greedy          the K likeliest tokens of p;       argmax  log p(y_j) - E(y_j)

"sample" tends to the exact law p exp(-E) / Z as K grows. Repeated draws are scored once and weighted by their number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode

from .candidate_set import choose_candidate, draw_candidates
from .shared_prefix import SharedPrefix


DEFAULTS = {"num_candidates": 8, "candidate_mode": "sample"}
CANDIDATE_MODES = ("sample", "topk")
RESAMPLING_MODES = (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)


@dataclass
class CandidateDecodingOutput(GenerateDecoderOnlyOutput):
    """Output of `generate(..., return_dict_in_generate=True)` with more than one candidate; see `GenerateDecoderOnlyOutput`.

    Attributes:
        scores, logits: one ``(batch, vocab)`` per token: processed and raw logits of the language model.
        energies: E of the emitted tokens, without `extra_energy`, ``(batch, new_tokens)``, nats; 0 for padding.
        candidate_counts: distinct candidates that each token was chosen from, ``(batch, new_tokens)``; 0 for padding.
        past_key_values: of ``sequences`` without the last token, as after transformers' own loop.
    """

    energies: Tensor | None = None
    candidate_counts: Tensor | None = None


class CandidateDecoding:
    """The part of `MonArcForCausalLM` behind `generate`; ``super()`` leads to `transformers.GenerationMixin`."""

    def set_candidate_defaults(self) -> None:
        """Gives ``generation_config`` the fields ``num_candidates`` and ``candidate_mode`` where it lacks them."""
        self.generation_config._from_model_config = False  # True would drop these fields when the saved file is read
        for name, value in DEFAULTS.items():
            if not hasattr(self.generation_config, name):
                setattr(self.generation_config, name, value)

    def adjust_generation_fn(self, *args, **kwargs):
        super().adjust_generation_fn(*args, **kwargs)  # replaces generation_config by the loaded one
        self.set_candidate_defaults()

    def generate(self, *args, extra_energy=None, **kwargs):
        """`GenerationMixin.generate`, resampling candidates by energy (see the module's docstring).

        Two more fields of the generation config, which are keyword arguments as well:

        * ``num_candidates``: K; 1 = the language model itself, token for token.
        * ``candidate_mode``: ``"sample"`` or ``"topk"``; used when ``do_sample=True``.

        Args:
            extra_energy: callable (tokens so far ``(batch, length)``, candidates ``(batch, width)``) -> ``(batch, width)``
                nats, added to E: a reward r steers generation as ``-r / temperature``. +inf forbids a candidate.

        Raises:
            ValueError: a field out of range; another search than sampling or greedy with K > 1; a cache that cannot branch.
        """
        if extra_energy is not None:
            kwargs["extra_energy"] = extra_energy
        return super().generate(*args, **kwargs)

    def _validate_model_kwargs(self, model_kwargs):
        super()._validate_model_kwargs({key: value for key, value in model_kwargs.items() if key != "extra_energy"})

    def _prepare_generation_config(self, generation_config=None, **kwargs):
        self.set_candidate_defaults()
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        _check_options(generation_config, generation_config.get_generation_mode())
        return generation_config, model_kwargs

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        _check_options(generation_config, generation_mode)  # knows of an assistant model as well
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        extra_energy=None,
        **model_kwargs,
    ):
        """The decoding loop of `generate`: as in transformers, with a choice by energy between distribution and token."""
        if generation_config.num_candidates == 1:
            _check_alone(extra_energy)
            loop = {"synced_gpus": synced_gpus, "streamer": streamer, "output_energies": False} | model_kwargs
            return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **loop)
        _check_request(generation_config, model_kwargs, extra_energy, synced_gpus)
        prefill = self._prefill(input_ids, generation_config, model_kwargs)
        cache = _checked_cache(prefill.past_key_values)
        prefix = SharedPrefix(self, prefill, model_kwargs.get("attention_mask"), model_kwargs["position_ids"])
        del prefill  # its logits may be large
        record = {name: [] for name in _recorded_fields(generation_config)}
        pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        while unfinished.any():
            finished = ~unfinished if pads else None
            step = self._candidate_step(input_ids, prefix, logits_processor, generation_config, finished, extra_energy)
            for name, values in record.items():
                values.append(step[name])
            input_ids = torch.cat([input_ids, step["tokens"]], 1)
            scores = tuple(record["scores"]) if "scores" in record else None
            unfinished = unfinished & ~stopping_criteria(input_ids, scores)
            if streamer is not None:
                streamer.put(step["tokens"][:, 0].cpu())
        if streamer is not None:
            streamer.end()
        cache.crop(-1)
        return _output(input_ids, record, cache) if generation_config.return_dict_in_generate else input_ids

    def _candidate_step(self, input_ids, prefix, logits_processor, config, finished, extra_energy):
        """Draws candidates, scores them in one trunk pass and keeps one of them in ``prefix``.

        Returns the values of one step by name: "tokens" ``(batch, 1)`` and the fields of `CandidateDecodingOutput`.
        """
        logits, hidden_states = prefix.logits().to(input_ids.device), prefix.hidden_states
        scores = logits_processor(input_ids, logits.clone()) if logits_processor else logits
        mode = config.candidate_mode if config.do_sample else "topk"
        candidates = draw_candidates(scores, config.num_candidates, mode, finished, config._pad_token_tensor)
        log_probs = logits.gather(1, candidates.tokens) - torch.logsumexp(logits, -1, keepdim=True)
        energies = prefix.branch(candidates.tokens, log_probs).to(log_probs)
        log_weights = candidates.log_weights - energies
        if extra_energy is not None:
            log_weights = log_weights - _checked_extra_energy(extra_energy(input_ids, candidates.tokens), energies)
            _check_choice(log_weights)
        chosen = choose_candidate(log_weights, config.do_sample)
        prefix.keep(chosen.squeeze(1))
        step = {"energies": energies.gather(1, chosen), "candidate_counts": candidates.counts()}
        if finished is not None:
            step = {name: values.masked_fill(finished.unsqueeze(1), 0) for name, values in step.items()}
        tokens = candidates.tokens.gather(1, chosen)
        return step | {"tokens": tokens, "scores": scores, "logits": logits, "hidden_states": hidden_states}


# ---------------------------------------------------------------------------------------------- requests and results


def _check_options(config, mode):
    count = config.num_candidates
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(
            f"num_candidates must be an integer of at least 1, got {count!r}; 1 is the language model itself."
        )
    if config.candidate_mode not in CANDIDATE_MODES:
        raise ValueError(f"candidate_mode must be one of {CANDIDATE_MODES}, got {config.candidate_mode!r}.")
    if count > 1 and mode not in RESAMPLING_MODES:
        raise ValueError(
            f"num_candidates={count} resamples by energy, which goes with sampling and greedy search, not with {mode.value}; "
            f"pass num_candidates=1 for {mode.value} with the language model alone."
        )


def _check_request(config, model_kwargs, extra_energy, synced_gpus):
    """Refuses what the candidate loop cannot do, before any work."""
    remedy = f"or pass num_candidates=1 (got {config.num_candidates}) for the language model alone."
    if extra_energy is not None and not callable(extra_energy):
        raise TypeError(
            f"extra_energy must be a callable (input_ids, candidates) -> nats, got {type(extra_energy).__name__}."
        )
    if not config.use_cache:
        raise ValueError(
            f"use_cache={config.use_cache}, but candidates share one key-value cache; leave use_cache=True, {remedy}"
        )
    if config.output_attentions:
        raise ValueError(
            f"output_attentions=True is not available when candidates are resampled; leave it out, {remedy}"
        )
    if synced_gpus:
        raise ValueError(
            f"weights sharded over processes (FSDP, ZeRO-3) are not supported here; gather the model first, {remedy}"
        )
    cache = model_kwargs.get("past_key_values")
    if (
        type(cache) is not DynamicCache
        or cache.offloading
        or any(type(layer) is not DynamicLayer for layer in cache.layers)
    ):
        raise ValueError(
            f"candidates branch from a DynamicCache with full attention on the model's device, got {type(cache).__name__} "
            f"(cache_implementation={config.cache_implementation!r}); leave cache_implementation unset, {remedy}"
        )


def _checked_cache(cache):
    if cache is None or cache.get_seq_length() == 0:
        raise ValueError(
            "the prompt left no keys and values in the cache, as happens with gradient checkpointing in training mode; call "
            "model.eval() before generate()."
        )
    return cache


def _check_alone(extra_energy):
    if extra_energy is not None:
        raise ValueError(
            "extra_energy acts on the choice among candidates, and num_candidates=1 leaves none; pass num_candidates >= 2."
        )


def _checked_extra_energy(extra, energies):
    shape = tuple(energies.shape)
    if not isinstance(extra, Tensor) or extra.shape != shape:
        got = tuple(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
        raise ValueError(
            f"extra_energy must return one value in nats per candidate, a tensor (batch, width) = {shape}, got {got}."
        )
    return extra.to(energies)


def _check_choice(log_weights):
    if not bool((log_weights > -torch.inf).any(1).all()):
        raise ValueError(
            "extra_energy forbids every candidate of a row (or returned NaN); return finite values, raise num_candidates, or "
            "forbid tokens before they are drawn (bad_words_ids, a logits processor)."
        )


def _recorded_fields(config):
    if not config.return_dict_in_generate:
        return ()
    optional = {name: getattr(config, f"output_{name}") for name in ("scores", "logits", "hidden_states")}
    return ("energies", "candidate_counts", *(name for name, wanted in optional.items() if wanted))


def _output(sequences, record, cache):
    joined = {name: torch.cat(record.pop(name), 1) for name in ("energies", "candidate_counts")}
    stepwise = {name: tuple(values) for name, values in record.items()}
    return CandidateDecodingOutput(sequences=sequences, past_key_values=cache, **joined, **stepwise)
