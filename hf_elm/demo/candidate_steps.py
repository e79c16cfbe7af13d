"""A continuation by the energy-based model, token by token, with the candidates that each token was chosen from.

With p the language model's distribution at a temperature, a step draws y_1..y_K ~ p and emits one of them, P(y_j) ~ exp(-E(y_j)):
what `MonArcForCausalLM.generate` does (`modeling.monarc.candidate_decoding`), with the same random numbers for the same seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .. import log_z_bounds as bounds
from ..continuation import prompt_ids
from ..evaluation import AUTO_EXACT_VOCAB
from ..modeling.monarc.candidate_set import choice_weights, choose_candidate, draw_candidates
from ..modeling.monarc.shared_prefix import SharedPrefix
from ..plots.prompt_refinement import token_labels
from ..token_log_probs import max_positions
from .request_limits import MAX_PROMPT, checked_number, checked_text, room_for
from .shared_model import RandomStream, SharedModel


@dataclass
class CandidateStep:
    """One generated token and the distinct candidates of its step, the most probable first.

    Attributes:
        token_ids, labels: of the candidates.
        draws: how often each was drawn; they sum to K.
        log_probs: log p_LM of each, before the temperature, nats.
        energies: E of each, nats.
        probabilities: of being taken, draws * exp(-E) normalised; they sum to 1.
        taken: index of the emitted one.
        log_z_lower, log_z_upper: log E_{y~p}[exp(-E(y))] with p at the temperature, nats: equal where it was summed over the
            vocabulary, else bounds from the K draws (in expectation); the upper one is infinite for K = 1.
        text: of the continuation so far.
    """

    token_ids: list[int]
    labels: list[str]
    draws: list[int]
    log_probs: list[float]
    energies: list[float]
    probabilities: list[float]
    taken: int
    log_z_lower: float
    log_z_upper: float
    text: str = ""

    @property
    def token_id(self) -> int:
        return self.token_ids[self.taken]

    @property
    def label(self) -> str:
        return self.labels[self.taken]

    @property
    def energy(self) -> float:
        """E of the emitted token, nats."""
        return self.energies[self.taken]

    @property
    def is_exact(self) -> bool:
        """Whether log Z was summed over the whole vocabulary."""
        return self.log_z_lower == self.log_z_upper


@torch.no_grad()
def candidate_steps(
    shared: SharedModel,
    prompt: str,
    num_candidates: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Iterator[CandidateStep]:
    """The tokens that follow ``prompt``, one at a time, up to ``max_new_tokens``, the end token or the model's last position.

    The model is locked for one step at a time, so that the requests of several visitors advance together.

    Args:
        shared: of a `MonArcForCausalLM`.
        num_candidates: K; 1 = the language model alone, with the energy of what it drew.

    Raises:
        ValueError: a number out of its range, a prompt that is too long or holds characters that the tokenizer lacks.
    """
    num_candidates = checked_number("number of candidates", num_candidates)
    temperature = checked_number("temperature", temperature)
    max_new_tokens = checked_number("new tokens", max_new_tokens)
    model, tokenizer = shared.model, shared.tokenizer
    text = checked_text("prompt", prompt, MAX_PROMPT, empty=True)
    input_ids = prompt_ids(text, tokenizer, model).to(shared.device)
    stream = RandomStream(checked_number("seed", seed), shared.device)
    with shared.lock:
        prefix = _prefix(model, input_ids)
    emitted: list[int] = []
    for _ in range(room_for(input_ids.shape[1], max_new_tokens, max_positions(model))):
        with shared.lock, stream.active():
            step = _step(model, tokenizer, prefix, num_candidates, temperature)
        if step.token_id == tokenizer.eos_token_id:
            return
        emitted.append(step.token_id)
        step.text = tokenizer.decode(emitted, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield step


def _prefix(model, input_ids):
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    prefill = model(
        input_ids, position_ids=positions, past_key_values=DynamicCache(config=model.lm.config), use_cache=True,
        output_energies=False, logits_to_keep=1,
    )  # fmt: skip
    return SharedPrefix(model, prefill, None, positions)


def _step(model, tokenizer, prefix, num_candidates, temperature):
    """Draws, scores and keeps; of a small vocabulary every token is scored, which gives Z itself."""
    logits = prefix.logits()
    scores = logits / temperature
    drawn = draw_candidates(scores, num_candidates, "sample")
    log_probs = logits.log_softmax(-1)
    whole = logits.shape[-1] <= AUTO_EXACT_VOCAB
    rows = torch.arange(logits.shape[-1], device=logits.device).unsqueeze(0) if whole else drawn.tokens
    scored = prefix.branch(rows, log_probs.gather(1, rows)).to(log_probs)
    energies = scored.gather(1, drawn.tokens) if whole else scored
    log_weights = drawn.log_weights - energies
    chosen = choose_candidate(log_weights, do_sample=True)
    prefix.keep((drawn.tokens.gather(1, chosen) if whole else chosen).squeeze(1))
    draws = drawn.log_weights[0].exp().round().long()
    if whole:
        lower = upper = bounds.exact_log_z(scores.log_softmax(-1), scored).item()
    else:
        lower, upper = _bounds(energies[0].repeat_interleave(draws))
    order = choice_weights(log_weights)[0].argsort(descending=True, stable=True)
    tokens = drawn.tokens[0, order].tolist()
    return CandidateStep(
        token_ids=tokens,
        labels=token_labels(tokenizer, tokens),
        draws=draws[order].tolist(),
        log_probs=log_probs[0, tokens].tolist(),
        energies=energies[0, order].tolist(),
        probabilities=choice_weights(log_weights)[0, order].tolist(),
        taken=order.tolist().index(chosen.item()),
        log_z_lower=lower,
        log_z_upper=upper,
    )


def _bounds(energies):
    """Bounds on log Z from the energies of K draws, ``(K,)``."""
    lower = bounds.jensen_lower(energies).item()
    upper = bounds.fenchel_leave_one_out_upper(energies).item() if len(energies) > 1 else float("inf")
    return lower, upper
