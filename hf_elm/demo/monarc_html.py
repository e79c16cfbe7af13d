"""A MonArc model's numbers as HTML: the candidates of a step, the tokens of a text in colours, totals."""

import math
from collections.abc import Sequence

from .candidate_steps import CandidateStep
from .page_html import bar, cell, legend, note, table, token_flow
from .token_scores import TokenScores


def step_flow(steps: Sequence[CandidateStep], selected: int | None = None, prompt: str = "") -> str:
    """The continuation after its prompt, coloured by the energies of its tokens."""
    titles = [
        f"step {i}: {step.label}, E {step.energy:+.3f} nats, log p_LM {step.log_probs[step.taken]:.3f} nats"
        for i, step in enumerate(steps, start=1)
    ]
    flow = token_flow([step.label for step in steps], [step.energy for step in steps], titles, selected, prompt)
    return flow + legend("E below 0 (lower is likelier)", "E above 0")


def candidate_table(steps: Sequence[CandidateStep], index: int) -> str:
    """The candidates of step ``index``, the most probable first, and log Z."""
    step = steps[index]
    header = [
        ("candidate", "code"),
        ("draws", ""),
        ("log p_LM (nats)", ""),
        ("energy E (nats)", ""),
        ("probability of being taken", "text"),
    ]
    columns = (step.labels, step.draws, step.log_probs, step.energies, step.probabilities)
    rows = []
    for i, (label, draws, log_prob, energy, prob) in enumerate(zip(*columns, strict=True)):
        taken = i == step.taken
        cells = cell(label, "code") + cell(str(draws)) + cell(f"{log_prob:.3f}") + cell(f"{energy:+.3f}")
        rows.append((cells + bar(prob, f"{prob:.1%}{'  ✓ taken' if taken else ''}"), taken))
    count = sum(step.draws)
    caption = f"Step {index + 1} of {len(steps)}: {count} draws from the language model, one taken by energy"
    return table(header, rows, caption) + note(f"{_log_z(step)} Probability = draws · exp(−E), normalised.")


def _log_z(step):
    if step.is_exact:
        return f"log Z = {step.log_z_lower:+.4f} nats, summed over the whole vocabulary."
    if math.isinf(step.log_z_upper):
        return f"log Z is at least {step.log_z_lower:+.4f} nats in expectation; 2 draws would bound it from above too."
    return f"log Z between {step.log_z_lower:+.4f} and {step.log_z_upper:+.4f} nats (bounds in expectation, from the draws)."


# --------------------------------------------------------------------------------------------------- scores of a text


def score_flow(scores: TokenScores, colour: str = "gain") -> str:
    """The text, its tokens coloured by ``colour``: gain, energies or lm; the first token is not scored.

    Blue is always the likelier side: a positive gain, a negative energy.
    """
    values = {"gain": -scores.gain, "energies": scores.energies, "lm": -scores.lm}[colour].tolist()
    columns = (scores.labels, scores.lm.tolist(), scores.energies.tolist(), scores.gain.tolist())
    titles = [
        f"{label}: log p_LM {lm:.3f}, E {energy:+.3f}, gain {gain:+.3f} (nats)"
        for label, lm, energy, gain in zip(*columns, strict=True)
    ]
    titles[0] = "the first token is not scored"
    words = {
        "gain": ("gain above 0: likelier by its energy", "below 0: less likely"),
        "energies": ("E below 0", "E above 0"),
        "lm": ("", "the stronger, the less likely under the language model"),
    }[colour]
    return token_flow(scores.labels, values, titles) + legend(*words)


def score_totals(scores: TokenScores) -> str:
    """Likelihoods of the text in nats/token and bits/byte; the energy-based one exact or as an interval."""
    ends = {"energy-based model": "elm_lower"}
    if not scores.is_exact:  # a lower log p is a higher NLL
        ends = {"energy-based model, at least": "elm_upper", "energy-based model, at most": "elm_lower"}
    rows = [
        (cell(name, "text") + cell(f"{scores.nll(column):.4f}") + cell(f"{scores.bits_per_byte(column):.4f}"), False)
        for name, column in {"language model": "lm", **ends}.items()
    ]
    header = [("−log p per token", "text"), ("nats/token", ""), ("bits/byte", "")]
    gains = sorted({round(scores.nll("lm") - scores.nll(column), 4) + 0.0 for column in ends.values()})
    gain = " to ".join(f"{value:+.4f}" for value in gains)
    energy = scores.energies.sum().item() / scores.num_scored
    how = "log Z exact" if scores.is_exact else "log Z bounded in expectation by samples"
    details = f"Gain {gain} nats/token; mean energy {energy:+.4f} nats; {how}."
    caption = f"{scores.num_scored:,} tokens scored ({scores.num_bytes:,} bytes), the first one given"
    if scores.window is not None:
        caption += f"; read in windows of {scores.window:,} tokens, as in training, that overlap by half"
    return table(header, rows, caption) + note(details)


def score_table(scores: TokenScores) -> str:
    """One line per scored token."""
    header = [("", ""), ("token", "code"), ("log p_LM", ""), ("energy E", ""), ("log Z", ""), ("gain", "")]
    columns = zip(
        scores.lm.tolist(), scores.energies.tolist(), scores.log_z.tolist(), scores.gain.tolist(), strict=True
    )
    rows = [
        (
            cell(str(i)) + cell(label, "code") + cell(f"{lm:.4f}")
            + "".join(cell(f"{value:+.4f}") for value in others), False,
        )
        for i, (label, (lm, *others)) in enumerate(zip(scores.labels, columns, strict=True))
        if i
    ]  # fmt: skip
    return table(header, rows, "Nats; gain = −E − log Z = log p − log p_LM")
