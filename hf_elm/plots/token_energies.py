"""The energies of the likeliest tokens before and after thinking."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .figure_files import finish, own_axes, shown_text
from .prompt_refinement import PromptRefinement, refine_prompt
from .refinement_trajectory import likeliest_tokens


@dataclass
class TokenEnergies:
    """-E = z of chosen tokens, relative to the mean over the vocabulary (with ``think_topk``: over the candidates); on the CPU.

    Attributes:
        labels: the tokens.
        before, after: -E at system 1 and after the last step, ``(tokens)``, nats; higher is likelier.
        probs_before, probs_after: probabilities, ``(tokens)``.
        steps: refinement steps between the two.
        prompt: the text before the prediction.
    """

    labels: list[str]
    before: Tensor
    after: Tensor
    probs_before: Tensor
    probs_after: Tensor
    steps: int
    prompt: str


def token_energies(model, tokenizer, prompt: str, *, num_tokens: int = 10, **thinking) -> TokenEnergies:
    """-E of the ``num_tokens`` tokens that are likeliest before or after thinking, nats.

    Args:
        thinking: see `refine_prompt`, which also says what is refused.
    """
    return token_energies_of(refine_prompt(model, tokenizer, prompt, **thinking), num_tokens=num_tokens)


@torch.no_grad()
def token_energies_of(refinement: PromptRefinement, *, num_tokens: int = 10) -> TokenEnergies:
    """`token_energies` of a refinement at hand."""
    ends = refinement.logits[[0, -1]]
    probs = refinement.log_probs(ends).exp()
    tokens = likeliest_tokens(probs, num_tokens)
    values, probs = ends[:, tokens].cpu(), probs[:, tokens].cpu()
    labels = refinement.labels(tokens.tolist())
    return TokenEnergies(labels, *values, *probs, steps=len(refinement.logits) - 1, prompt=refinement.prompt)


def plot_token_energies(data: TokenEnergies, ax=None, path=None):
    """Two bars per token with its probability at their ends; returns the Figure, written to ``path`` if given."""
    count = len(data.labels)
    figure, ax = own_axes(ax, 7.5, 1.6 + 0.42 * count)
    places = range(count)
    ends = ((-0.2, data.before, data.probs_before, "#56B4E9", "system 1"),)
    ends += ((0.2, data.after, data.probs_after, "#D55E00", f"after {data.steps} step{'s' * (data.steps > 1)}"),)
    for shift, values, probs, colour, label in ends:
        bars = ax.barh([place + shift for place in places], values.tolist(), height=0.38, color=colour, label=label)
        ax.bar_label(bars, [f"{p:.1%}" for p in probs.tolist()], padding=3, fontsize=8)
    ax.set_yticks(list(places), [shown_text(label) for label in data.labels], family="monospace")
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel("−E relative to the mean over the candidate tokens (nats); at the bars: probability")
    prompt = data.prompt if len(data.prompt) <= 48 else f"…{data.prompt[-47:]}"
    ax.set_title(shown_text(f"Token energies after {prompt!r}"), fontsize=11)
    ax.legend(fontsize=8, loc="lower right", framealpha=0.9)
    return finish(figure, path)
