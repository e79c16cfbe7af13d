"""The free energy at every position of a text, step by step: where thinking moves the prediction."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .figure_files import finish, new_figure, shown_text
from .prompt_refinement import checked_prompt_ids, evaluating, token_labels


@dataclass
class PositionEnergies:
    """F of the prediction made after each token; on the CPU.

    Attributes:
        labels: the tokens of the text.
        energies: F at the start and after each step, ``(steps + 1, seq)``, nats: column t is about the token at t + 1.
        prompt: the text.
    """

    labels: list[str]
    energies: Tensor
    prompt: str

    @property
    def falls(self) -> Tensor:
        """F minus F at the start, ``(steps + 1, seq)``, nats; negative where thinking lowers it."""
        return self.energies - self.energies[:1]


@torch.no_grad()
def position_energies(model, tokenizer, prompt: str, **thinking) -> PositionEnergies:
    """F of the prediction after every token of ``prompt`` at the start and after each step, nats.

    Args:
        thinking: see `hf_elm.plots.prompt_refinement.refine_prompt`, which also says what is refused.
    """
    input_ids = checked_prompt_ids(model, tokenizer, prompt)
    thinking = {name: value for name, value in thinking.items() if value is not None}
    with evaluating(model):
        energies = model(input_ids, use_thinking=True, output_energies=True, **thinking).energies[:, 0]
    if len(energies) < 2:
        raise ValueError("think_steps=0 leaves no steps to draw; pass at least 1.")
    return PositionEnergies(token_labels(tokenizer, input_ids[0].tolist()), energies.cpu(), prompt)


def plot_position_energies(data: PositionEnergies, path=None):
    """Two heat maps tokens x steps, the change since system 1 and F itself; returns the Figure, written to ``path`` if given."""
    steps, count = len(data.energies), len(data.labels)
    figure = new_figure(min(max(6.0, 2.4 + 0.2 * count), 24.0), 2.8 + 2 * min(0.28 * steps, 3.0))
    upper, lower = figure.subplots(2, 1, sharex=True)
    falls = data.falls[1:]
    _draw_map(upper, falls, "cividis", "F − F at system 1 (nats)", first_step=1)
    _draw_map(lower, data.energies, "viridis", "free energy F (nats)")
    upper.set_title("change of F by thinking", fontsize=10)
    lower.set_title("F", fontsize=10)
    every = -(-count // 100)  # labels in the width that there is
    places = range(0, count, every)
    lower.set_xticks(
        list(places), [shown_text(data.labels[i]) for i in places], rotation=90, family="monospace", fontsize=8
    )
    lower.set_xlabel("prediction after the token")
    return finish(figure, path)


def _draw_map(ax, values, colours, label, first_step=0):
    steps, count = values.shape
    extent = (-0.5, count - 0.5, first_step + steps - 0.5, first_step - 0.5)
    image = ax.imshow(values.numpy(), aspect="auto", cmap=colours, interpolation="nearest", extent=extent)
    every = -(-steps // 10)
    ax.set_yticks(range(first_step, first_step + steps, every))
    ax.set_ylabel("step")
    ax.figure.colorbar(image, ax=ax, label=label, pad=0.01)
