"""A nanoEBM's numbers as HTML: predictions before and after thinking, and continuations coloured by the fall of F."""

from collections.abc import Sequence

from torch import Tensor

from .page_html import bar, cell, legend, note, table, token_flow
from .thinking import ThinkingToken


def prediction_table(labels: Sequence[str], probs: Tensor, energies: Tensor, taken: str | None = None) -> str:
    """The likeliest tokens before and after thinking with their probabilities, and F by steps.

    Args:
        labels: the tokens.
        probs: at the start and after each step, ``(steps + 1, tokens)``.
        energies: F, ``(steps + 1)``, nats.
        taken: label of the token that was drawn, if any.
    """
    steps = len(energies) - 1
    header = [("token", "code"), ("before (system 1)", "text"), (f"after {_steps(steps)}", "text"), ("change", "")]
    rows = []
    for label, before, after in zip(labels, probs[0].tolist(), probs[-1].tolist(), strict=True):
        shown = f"{after:.2%}{'  ✓ taken' if label == taken else ''}"
        cells = cell(label, "code") + bar(before, f"{before:.2%}") + bar(after, shown)
        rows.append((cells + cell(f"{100 * (after - before):+.2f} pp"), label == taken))
    return table(header, rows, "Probability of the next token") + note(energy_line(energies))


def energy_line(energies: Tensor) -> str:
    """F by steps in words."""
    falls = ", ".join(f"{value:+.4g}" for value in (energies[1:] - energies[0]).tolist())
    start = f"Free energy F of the prediction: {energies[0].item():.4f} nats at system 1"
    return f"{start}; change since then, step by step: {falls} nats." if falls else f"{start}."


def thinking_flow(tokens: Sequence[ThinkingToken], selected: int | None = None, prompt: str = "") -> str:
    """The continuation after its prompt, the darker the further thinking lowered F."""
    titles = [
        f"step {i}: {token.label}, F fell by {token.fall:.4g} nats, probability {token.prob_before:.2%} to {token.prob_after:.2%}"
        for i, token in enumerate(tokens, start=1)
    ]
    flow = token_flow([token.label for token in tokens], [-token.fall for token in tokens], titles, selected, prompt)
    return flow + legend("the stronger, the further thinking lowered F", "")


def token_panel(tokens: Sequence[ThinkingToken], index: int) -> str:
    """The prediction that token ``index`` was drawn from."""
    token = tokens[index]
    words = f"Token {index + 1} of {len(tokens)}: {token.label}, {token.prob_before:.2%} before thinking, {token.prob_after:.2%} after."
    return note(words) + prediction_table(token.labels, token.probs, token.energies, token.label)


def plain_flow(tokens: Sequence[ThinkingToken], prompt: str = "") -> str:
    """A continuation without thinking, its probabilities pointed at."""
    titles = [f"{token.label}: probability {token.prob_before:.2%}" for token in tokens]
    return token_flow([token.label for token in tokens], [0.0] * len(tokens), titles, prompt=prompt)


def _steps(count):
    return f"{count} step{'s' * (count != 1)}"
