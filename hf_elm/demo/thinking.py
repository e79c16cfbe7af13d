"""A nanoEBM's thinking for a page: one prediction by steps with the landscape around it, and a continuation token by token."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ..continuation import prompt_ids
from ..plots.energy_landscape import EnergyLandscape, landscape_of
from ..plots.prompt_refinement import refine_prompt, token_labels
from ..plots.refinement_trajectory import RefinementTrajectory, likeliest_tokens, trajectory_of
from .request_limits import MAX_PROMPT, checked_number, checked_text, room_for
from .shared_model import RandomStream, SharedModel


GRID = 41  # points per side of the landscape


@dataclass
class ThinkingToken:
    """One generated token and the prediction that it was drawn from.

    Attributes:
        label: the token.
        energies: F of the prediction at the start and after each step, ``steps + 1``, nats.
        labels: the tokens that are likeliest anywhere on the way.
        probs: their probabilities at the start and after each step, ``(steps + 1, tokens)``.
        prob_before, prob_after: of the emitted token, without the temperature.
        text: of the continuation so far.
    """

    label: str
    energies: Tensor
    labels: list[str]
    probs: Tensor
    prob_before: float
    prob_after: float
    text: str = ""

    @property
    def fall(self) -> float:
        """How far thinking lowered F, nats; 0 without thinking."""
        return (self.energies[0] - self.energies[-1]).item()


@torch.no_grad()
def think_about(
    shared: SharedModel, prompt: str, think_steps: int, top_k: int = 0, num_tokens: int = 8, grid: int = GRID
) -> tuple[RefinementTrajectory, EnergyLandscape]:
    """The prediction after ``prompt`` by thinking steps, and the free energy around its path; nats.

    Args:
        shared: of a `NanoEBMForRefinement`.
        top_k: only the k likeliest tokens of system 1 keep probability; 0 = all.
        num_tokens: how many of the likeliest tokens to follow.
        grid: points per side of the landscape.

    Raises:
        ValueError: a number out of its range, an empty or too long prompt, characters that the tokenizer lacks.
    """
    steps, top_k = checked_number("thinking steps", think_steps), checked_number("top k", top_k)
    text = checked_text("prompt", prompt, MAX_PROMPT)
    with shared.lock:
        refinement = refine_prompt(shared.model, shared.tokenizer, text, think_steps=steps, think_topk=top_k)
        return trajectory_of(refinement, num_tokens=num_tokens), landscape_of(refinement, grid=grid)


@torch.no_grad()
def thinking_tokens(
    shared: SharedModel,
    prompt: str,
    think_steps: int,
    top_k: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    use_thinking: bool = True,
    num_tokens: int = 8,
) -> Iterator[ThinkingToken]:
    """The tokens that follow ``prompt``, each refined before it is drawn; the same as ``generate`` gives for the seed.

    Ends at ``max_new_tokens``, the end token or the model's last position. The model is locked for one token at a time.

    Args:
        use_thinking: False = system 1 alone.
        num_tokens: how many of the likeliest tokens to follow at each one.

    Raises:
        ValueError: see `think_about`.
    """
    thinking = {
        "use_thinking": use_thinking,
        "think_steps": checked_number("thinking steps", think_steps),
        "think_topk": checked_number("top k", top_k),
    }
    temperature, room = checked_number("temperature", temperature), checked_number("new tokens", max_new_tokens)
    model, tokenizer = shared.model, shared.tokenizer
    ids = prompt_ids(checked_text("prompt", prompt, MAX_PROMPT), tokenizer, model).to(shared.device)
    stream = RandomStream(checked_number("seed", seed), shared.device)
    cache = None if model.config.use_soft_tokens == "published" else DynamicCache(config=model.config)
    emitted: list[int] = []
    unread = ids
    for _ in range(room_for(ids.shape[1], room, model.max_positions())):
        with shared.lock, stream.active():
            out = model(
                unread, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1, output_energies=True,
                output_trajectory=True, **thinking,
            )  # fmt: skip
            drawn = torch.multinomial((out.logits[:, -1].float() / temperature).softmax(-1), 1)
        if drawn.item() == tokenizer.eos_token_id:
            return
        emitted.append(drawn.item())
        unread = drawn if cache is not None else torch.cat([unread, drawn], 1)
        token = _token(tokenizer, out, drawn.item(), num_tokens)
        token.text = tokenizer.decode(emitted, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield token


def _token(tokenizer, out, drawn, num_tokens):
    probs = out.trajectory[:, 0, -1].softmax(-1)  # (steps + 1, vocab)
    likeliest = likeliest_tokens(probs, num_tokens)
    return ThinkingToken(
        label=token_labels(tokenizer, [drawn])[0],
        energies=out.energies[:, 0, -1].cpu(),
        labels=token_labels(tokenizer, likeliest.tolist()),
        probs=probs[:, likeliest].cpu(),
        prob_before=probs[0, drawn].item(),
        prob_after=probs[-1, drawn].item(),
    )
