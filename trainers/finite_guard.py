"""Stops a run at the first loss or gradient norm that is not finite, and says which and when."""

import math

import torch
from torch import Tensor


class NonFiniteError(FloatingPointError):
    """A loss term or the gradient norm was inf or nan.

    Attributes:
        step: optimizer step, counted from 1, at which it was first seen.
        term: its name in the logs.
        value: ``inf``, ``-inf`` or ``nan``.
    """

    def __init__(self, step: int, term: str, value: float, kept: str | None):
        self.step, self.term, self.value = step, term, value
        last = f"The last good checkpoint is {kept}." if kept else "No checkpoint had been saved yet."
        super().__init__(
            f"{term} = {value} at step {step}: training stopped, and nothing was saved from that step on. {last} "
            "Lower learning_rate or energy_learning_rate, raise warmup_steps, lower max_grad_norm, or set the model's "
            "energy_bound; then resume with resume_from_checkpoint."
        )


class FiniteGuard:
    """Collects scalars on their device and looks at them only when `first_bad` is called: no synchronisation in between."""

    def __init__(self):
        self.terms: list[str] = []
        self._seen: list[tuple[int, int]] = []  # (step, index into terms) of each value
        self._values: list[Tensor] = []

    def watch(self, step: int, values: dict[str, Tensor | float]) -> None:
        """Remembers ``values`` of optimizer step ``step``; of several bad ones the first in order will be named."""
        for name, value in values.items():
            if name not in self.terms:
                self.terms.append(name)
            self._seen.append((step, self.terms.index(name)))
            value = (
                value.full_tensor() if hasattr(value, "full_tensor") else torch.as_tensor(value)
            )  # sharded: a DTensor
            self._values.append(value.detach().float().reshape(()))

    def is_full(self) -> bool:
        """Whether so many values wait that it is time to look, whatever the logging interval."""
        return len(self._values) >= 4096

    def first_bad(self, accelerator) -> tuple[int, str, float] | None:
        """(step, term, value) of the first non-finite value since the last call, over all ranks; collective.

        Of several at the same step, on any rank, it is the one that was first watched: a cause, not its consequences.
        """
        report = torch.tensor([math.inf, 0.0, 0.0], device=accelerator.device)
        if self._values:
            values = torch.stack([value.to(accelerator.device) for value in self._values]).cpu()
            bad = torch.nonzero(~torch.isfinite(values)).flatten().tolist()
            if bad:
                step, term = self._seen[bad[0]]
                report = torch.tensor([step, term, values[bad[0]]], device=accelerator.device)
        self._seen, self._values = [], []
        step, term, value = min(accelerator.gather(report).view(-1, 3).tolist(), key=lambda row: row[:2])
        return None if math.isinf(step) else (int(step), self.terms[int(term)], value)
