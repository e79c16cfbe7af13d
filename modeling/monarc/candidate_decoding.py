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

from .candidate_sampling import sample_two_level
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


@dataclass
class CandidateSet:
    """Distinct candidates of one step.

    Attributes:
        tokens: ``(batch, width)``, width being the largest number of distinct candidates in a row.
        log_weights: log of the multiplicity (mode "sample") or the processed score of each, ``(batch, width)``; -inf marks
            the padding of shorter rows, where ``tokens`` repeats the first candidate.
    """

    tokens: Tensor
    log_weights: Tensor


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
            model_kwargs.setdefault("output_energies", False)
            return super()._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
            )
        _check_request(generation_config, model_kwargs, extra_energy, synced_gpus)
        prefill = self._prefill(input_ids, generation_config, model_kwargs)
        _check_filled(prefill.past_key_values)
        prefix = SharedPrefix(self, prefill, model_kwargs.get("attention_mask"), model_kwargs["position_ids"])
        del prefill  # its logits may be large
        record = {name: [] for name in _recorded_fields(generation_config)}
        unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        while unfinished.any():
            logits = prefix.logits().to(input_ids.device)
            scores = logits_processor(input_ids, logits.clone()) if logits_processor else logits
            candidates = draw_candidates(
                scores,
                generation_config.num_candidates,
                generation_config.candidate_mode if generation_config.do_sample else "topk",
                *((~unfinished, generation_config._pad_token_tensor) if pads else ()),
            )
            step = {"scores": scores, "logits": logits, "hidden_states": prefix.hidden_states}
            next_tokens, energies = self._choose(
                input_ids, prefix, logits, candidates, generation_config.do_sample, extra_energy
            )
            if record:
                counts = candidates.log_weights.isfinite().sum(1, keepdim=True)
                step |= {"energies": energies * unfinished[:, None], "candidate_counts": counts * unfinished[:, None]}
            for name, values in record.items():
                values.append(step[name])
            input_ids = torch.cat([input_ids, next_tokens], 1)
            unfinished = unfinished & ~stopping_criteria(input_ids, tuple(record["scores"]) if "scores" in record else None)
            if streamer is not None:
                streamer.put(next_tokens[:, 0].cpu())
        if streamer is not None:
            streamer.end()
        cache = model_kwargs["past_key_values"]
        cache.crop(-1)
        return _output(input_ids, record, cache) if generation_config.return_dict_in_generate else input_ids

    def _choose(self, input_ids, prefix, logits, candidates, do_sample, extra_energy):
        """Scores the candidates, keeps one of them in ``prefix`` and returns (token, energy), ``(batch, 1)`` each."""
        log_probs = logits.gather(1, candidates.tokens) - torch.logsumexp(logits, -1, keepdim=True)
        energies = prefix.branch(candidates.tokens, log_probs).to(log_probs)
        log_weights = candidates.log_weights - energies
        if extra_energy is not None:
            log_weights = log_weights - _checked_extra_energy(extra_energy(input_ids, candidates.tokens), candidates)
            _check_choice(log_weights)
        chosen = choose_candidate(log_weights, do_sample)
        prefix.keep(chosen.squeeze(1))
        return candidates.tokens.gather(1, chosen), energies.gather(1, chosen)


# --------------------------------------------------------------------------------------------------------- one step


def draw_candidates(
    scores: Tensor, num_candidates: int, mode: str, finished: Tensor | None = None, pad_token: Tensor | None = None
) -> CandidateSet:
    """The distinct candidates of one step, in as few columns as the rows of the batch need.

    Args:
        scores: processed logits, ``(batch, vocab)``.
        mode: ``"sample"``: draws from softmax(scores) with replacement; ``"topk"``: the highest scores.
        finished: rows whose only candidate is ``pad_token``, boolean ``(batch,)``.
    """
    if mode == "sample":
        tokens, log_weights = _collapse(sample_two_level(torch.softmax(scores, -1), num_candidates))
    else:
        log_weights, tokens = scores.topk(min(num_candidates, scores.shape[-1]))
    if finished is not None:
        tokens = torch.where(finished.unsqueeze(1), pad_token.to(tokens), tokens)
        only_first = torch.zeros_like(log_weights).index_fill_(1, torch.arange(1, log_weights.shape[1], device=scores.device), -torch.inf)
        log_weights = torch.where(finished.unsqueeze(1), only_first, log_weights)
    taken = log_weights > -torch.inf
    if scores.device.type != "xla":  # there a fixed width is worth more than fewer columns
        width = int(taken.sum(1).max())
        tokens, log_weights, taken = tokens[:, :width], log_weights[:, :width], taken[:, :width]
    return CandidateSet(torch.where(taken, tokens, tokens[:, :1]), log_weights)


def _collapse(drawn):
    """Repeated draws merged, ``(batch, K)`` each: distinct tokens first, ascending, and the logs of their numbers (else -inf)."""
    drawn = drawn.sort(1).values
    slot = torch.nn.functional.pad((drawn[:, 1:] != drawn[:, :-1]).long().cumsum(1), (1, 0))
    tokens = drawn[:, :1].expand_as(drawn).scatter(1, slot, drawn)
    counts = torch.zeros(drawn.shape, device=drawn.device).scatter_add_(1, slot, torch.ones_like(drawn, dtype=torch.float))
    return tokens, counts.log()


def choice_weights(log_weights: Tensor) -> Tensor:
    """Probability of each candidate to be emitted, from log weight - E, ``(batch, width)``."""
    return torch.softmax(log_weights, -1)


def choose_candidate(log_weights: Tensor, do_sample: bool) -> Tensor:
    """Column of the candidate to emit, drawn from `choice_weights` or their argmax, ``(batch, 1)``."""
    if do_sample:
        return torch.multinomial(choice_weights(log_weights), 1)
    return log_weights.argmax(-1, keepdim=True)


# ---------------------------------------------------------------------------------------------- requests and results


def _check_options(config, mode):
    count = config.num_candidates
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"num_candidates must be an integer of at least 1, got {count!r}; 1 is the language model itself.")
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
        raise ValueError(f"use_cache={config.use_cache}, but candidates share one key-value cache; leave use_cache=True, {remedy}")
    if config.output_attentions:
        raise ValueError(f"output_attentions=True is not available when candidates are resampled; leave it out, {remedy}")
    if synced_gpus:
        raise ValueError(f"weights sharded over processes (FSDP, ZeRO-3) are not supported here; gather the model first, {remedy}")
    cache = model_kwargs.get("past_key_values")
    if type(cache) is not DynamicCache or cache.offloading or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise ValueError(
            f"candidates branch from a DynamicCache with full attention on the model's device, got {type(cache).__name__} "
            f"(cache_implementation={config.cache_implementation!r}); leave cache_implementation unset, {remedy}"
        )


def _check_filled(cache):
    if cache is None or cache.get_seq_length() == 0:
        raise ValueError(
            "the prompt left no keys and values in the cache, as happens with gradient checkpointing in training mode; call "
            "model.eval() before generate()."
        )


def _check_alone(extra_energy):
    if extra_energy is not None:
        raise ValueError(
            "extra_energy acts on the choice among candidates, and num_candidates=1 leaves none; pass num_candidates >= 2."
        )


def _checked_extra_energy(energies, candidates):
    shape = tuple(candidates.tokens.shape)
    if not isinstance(energies, Tensor) or energies.shape != shape:
        got = tuple(energies.shape) if isinstance(energies, Tensor) else type(energies).__name__
        raise ValueError(f"extra_energy must return one value in nats per candidate, a tensor (batch, width) = {shape}, got {got}.")
    return energies.to(candidates.log_weights.device)


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
