"""The refinement of the prediction after a prompt, with the free energy around it ready to be evaluated anywhere."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..continuation import prompt_ids


_ENTRIES_PER_CALL = 2**26  # points * vocabulary of one energy call: 256 MiB per intermediate in float32


@dataclass
class PromptRefinement:
    """The path that thinking takes from system 1 to system 2 after the last token of a prompt.

    Attributes:
        prompt: the text.
        field: `FreeEnergyField` at that token, one row with one query.
        objective: `Objective` of the refinement, with its candidates where ``think_topk`` left tokens out.
        logits: z at the start and after each step, centred over the candidates (0 for all other tokens), ``(steps + 1, vocab)``.
        energies: F of each of them as the model reports it, ``(steps + 1)``, nats.
        tokenizer: of the model.
    """

    prompt: str
    field: object
    objective: object
    logits: Tensor
    energies: Tensor
    tokenizer: object

    def energy(self, logits: Tensor) -> Tensor:
        """F at any points z ``(..., vocab)``, nats, ``(...)``; one batched call (several where the vocabulary is very large).

        The points stand side by side as queries of the one row, so that they share its memory slots instead of copying them.
        """
        points = logits.reshape(1, -1, logits.shape[-1])
        parts = points.split(max(1, _ENTRIES_PER_CALL // points.shape[-1]), 1)
        energies = [self.objective.energy(spread(self.field, part.shape[1]), part) for part in parts]
        return torch.cat(energies, 1).reshape(logits.shape[:-1])

    def log_probs(self, logits: Tensor | None = None) -> Tensor:
        """log p at points z ``(..., vocab)``, by default at those of the path; -inf outside the candidates."""
        points = self.logits if logits is None else logits
        return self.objective.log_probs(points.reshape(1, -1, points.shape[-1])).reshape(points.shape)

    def labels(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens as they are shown."""
        return token_labels(self.tokenizer, token_ids)


@torch.no_grad()
def refine_prompt(model, tokenizer, prompt: str, **thinking) -> PromptRefinement:
    """Thinks about the token after ``prompt`` and keeps the whole path.

    Args:
        model: `NanoEBMForRefinement`.
        prompt: text; at least one token, at most as many as the model has positions.
        thinking: ``think_steps``, ``think_lr``, ``think_topk``, ``think_max_move``, ``think_tolerance`` of the model's forward.

    Raises:
        TypeError: a model of another kind.
        ValueError: an empty or too long prompt, characters outside the vocabulary, no step, a thinking option out of range.
    """
    input_ids = checked_prompt_ids(model, tokenizer, prompt)
    thinking = {name: value for name, value in thinking.items() if value is not None}
    with evaluating(model):
        field = last_query(model.energy_field(input_ids))
        out = model(
            input_ids, use_thinking=True, output_energies=True, output_trajectory=True, logits_to_keep=1, **thinking
        )
    if len(out.energies) < 2:
        raise ValueError("think_steps=0 leaves no path to draw; pass at least 1.")
    objective, trajectory = model.objective(), out.trajectory[:, 0, -1]  # (steps + 1, vocab)
    allowed = trajectory[-1].isfinite()
    if not allowed.all():
        objective = replace(objective, candidates=allowed[None, None])
    logits = trajectory * objective.temperature  # the model reports logits as softmax takes them
    logits = logits - logits[:, allowed].mean(1, keepdim=True)
    logits = logits.masked_fill(~allowed, 0.0)
    return PromptRefinement(prompt, field, objective, logits, out.energies[:, 0, -1], tokenizer)


def checked_prompt_ids(model, tokenizer, prompt: str) -> Tensor:
    """Token ids of ``prompt`` on the model's device, ``(1, seq)``; see `refine_prompt` for what is refused."""
    if getattr(getattr(model, "config", None), "model_type", None) != "nano_ebm":
        raise TypeError(
            f"model must be a NanoEBMForRefinement, whose predictions are refined; got {type(model).__name__}."
        )
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"prompt={prompt!r} has no token after which to look; give some text.")
    return prompt_ids(prompt, tokenizer, model).to(model.device)


@contextlib.contextmanager
def evaluating(model):
    """The model without dropout; afterwards in the mode it was in."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


def last_query(field):
    """The field at the last position alone; the memory of the whole row stays."""
    return replace(
        field,
        hidden=field.hidden[:, -1:],
        unit_drive=None if field.unit_drive is None else field.unit_drive[:, -1:],
        query=None if field.query is None else field.query[:, :, -1:],
        mask=None if field.mask is None else field.mask[..., -1:, :],
        is_causal=False,  # the last position reads every slot
    )


def spread(field, points: int):
    """A field of one query as that of ``points`` equal queries; views, nothing is copied."""
    return replace(
        field,
        hidden=field.hidden.expand(-1, points, -1),
        unit_drive=None if field.unit_drive is None else field.unit_drive.expand(-1, points, -1),
        query=None if field.query is None else field.query.expand(-1, -1, points, -1),
    )


def token_labels(tokenizer, token_ids: Sequence[int]) -> list[str]:
    """Each token's text as Python would write it (``'\\n'``, ``' the'``); the vocabulary's own name for bytes of no whole character."""
    labels = []
    for token in map(int, token_ids):
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        name = tokenizer.convert_ids_to_tokens(token) if not text or "\ufffd" in text else None
        labels.append(repr(text) if name is None else str(name))
    return labels
