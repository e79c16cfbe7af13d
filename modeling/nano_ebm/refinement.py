"""Refinement: the steps from the start z_0 = W h down the energy, position by position."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .free_energy import FreeEnergyField, Objective


class StepSizes(nn.Module):
    """One learnable step size alpha per refinement step; steps beyond the last use the last.

    alpha = sigmoid(raw) in the mirror geometry, so that no training leaves (0, 1]; exp(raw) in the logits'.
    """

    def __init__(self, steps: int, initial: float, geometry: str, learnable: bool):
        super().__init__()
        self.initial, self.bounded = initial, geometry == "mirror"
        self.raw = nn.Parameter(torch.empty(max(steps, 1)), requires_grad=learnable)

    def initial_raw(self) -> Tensor:
        """Value of ``raw`` at the start, ``(steps)``; alpha = 1 is met up to float32 rounding."""
        initial = torch.full(self.raw.shape, self.initial, dtype=torch.float64)
        raw = torch.logit(initial).clamp(max=16.0) if self.bounded else initial.log()
        return raw.to(torch.float32)

    def forward(self) -> Tensor:
        """alpha of each step, ``(steps)``, at least float32."""
        raw = self.raw.to(torch.promote_types(self.raw.dtype, torch.float32))
        return raw.sigmoid() if self.bounded else raw.exp()


@dataclass
class StepRule:
    """How a position moves.

    Attributes:
        step_sizes: alpha of each step, ``(>= 1)``; the last one serves the steps beyond.
        steps: how many.
        mirror: step in the mirror geometry; else along the gradient in the logits.
        divisor: of the gradient in the logits' geometry; the number of positions where the energy is a mean over the batch.
        max_move: furthest that a centred logit may be from its start; 0 = no limit.
        tolerance: smallest change of energy to go on for, nats; 0 = never stop.
        stop_together: all positions stop when the mean energy changes by less twice in a row.
        noise: temperature of the Langevin noise, a number or ``(batch, 1, 1)``; 0 = none.
        generator: of the noise.
    """

    step_sizes: Tensor
    steps: int
    mirror: bool = True
    divisor: int = 1
    max_move: float = 0.0
    tolerance: float = 0.0
    stop_together: bool = False
    noise: float | Tensor = 0.0
    generator: torch.Generator | None = None

    def with_noise(self, logits: Tensor, alpha: Tensor) -> Tensor:
        """z + sqrt(2 alpha T) xi."""
        if not torch.is_tensor(self.noise) and self.noise == 0:
            return logits
        scale = (2 * alpha.detach() * self.noise) ** 0.5
        xi = torch.randn(logits.shape, generator=self.generator, device=logits.device, dtype=logits.dtype)
        return logits + scale * xi

    def advance(self, energy_field: FreeEnergyField, objective: Objective, logits: Tensor, alpha: Tensor) -> Tensor:
        """z after one step, ``(batch, query, vocab)``."""
        if self.mirror:
            return torch.lerp(logits, objective.mirror_end(energy_field, logits), alpha)
        return logits + self.move(energy_field, objective, logits, alpha)

    def move(self, energy_field: FreeEnergyField, objective: Objective, logits: Tensor, alpha: Tensor) -> Tensor:
        """The change of z by one step, ``(batch, query, vocab)``."""
        if self.mirror:
            return alpha * objective.mirror_move(energy_field, logits)
        return -alpha / self.divisor * objective.gradient(energy_field, logits)


@dataclass
class Refinement:
    """Result of `refine`.

    Attributes:
        path: z at the start and after each step, each ``(batch, query, vocab)``, up to a constant over the vocabulary, on which
            neither probabilities nor energies depend.
        energies: objective of each of them, ``(batch, query)``; empty unless asked for or needed.
    """

    path: list[Tensor] = field(default_factory=list)
    energies: list[Tensor] = field(default_factory=list)

    @property
    def logits(self) -> list[Tensor]:
        """The path centred, but for the start, which is as it was."""
        return [self.path[0], *map(centre, self.path[1:])]

    @property
    def last(self) -> Tensor:
        """The end of `logits`."""
        return centre(self.path[-1]) if len(self.path) > 1 else self.path[0]


def refine(
    energy_field: FreeEnergyField,
    start: Tensor,
    objective: Objective,
    rule: StepRule,
    move_at: Callable[[Tensor, int, Tensor], Tensor] | None = None,
    output_energies: bool = False,
) -> Refinement:
    """Follows ``rule`` from ``start``.

    Args:
        start: z_0, ``(batch, query, vocab)``.
        move_at: (logits, step index, alpha) -> move, in the place of ``rule.move``; for fields that change with the step.
        output_energies: compute the energies; they are measured in ``energy_field``.
    """
    wants_energies = output_energies or rule.tolerance > 0
    energy_field = energy_field.prepared()
    result = Refinement([start])
    if wants_energies:
        result.energies.append(objective.energy(energy_field, start))
    active = calm = None
    if rule.tolerance:
        active = torch.ones_like(start[..., :1], dtype=torch.bool)
        calm = torch.zeros((), dtype=torch.long, device=start.device)
    origin = centre(start) if rule.max_move else None
    step_sizes, logits = rule.step_sizes.to(start.dtype).unbind(), start
    for index in range(rule.steps):
        alpha = step_sizes[min(index, len(step_sizes) - 1)]
        before = rule.with_noise(logits, alpha)
        if move_at is None:
            proposal = rule.advance(energy_field, objective, before, alpha)
        else:
            proposal = before + move_at(before, index, alpha)
        if rule.max_move:
            base = centre(before)
            proposal = _shortened(base, centre(proposal) - base, origin, rule.max_move, objective.candidates)
        logits = torch.where(active, proposal, logits) if rule.tolerance else proposal
        result.path.append(logits)
        if wants_energies:
            result.energies.append(objective.energy(energy_field, logits))
        if rule.tolerance:
            active, calm = _still_active(result.energies, active, calm, rule)
    return result


def centre(logits: Tensor) -> Tensor:
    """z minus its mean over the vocabulary: the same distribution."""
    return logits - logits.mean(-1, keepdim=True)


def _shortened(base, move, origin, max_move, candidates):
    """base + s move with the largest s in [0, 1] that keeps every (candidate's) logit within ``max_move`` of ``origin``.

    Every point on the way of a mirror step has a lower energy than its beginning, so a shortened step still descends; clamping
    logits one by one would lose that.
    """
    room = max_move - move.sign() * (base - origin)
    share = room / move.abs().clamp(min=torch.finfo(move.dtype).tiny)
    if candidates is not None:
        share = share.masked_fill(~candidates, torch.inf)
    return base + share.amin(-1, keepdim=True).clamp(0.0, 1.0) * move


def _still_active(energies, active, calm, rule):
    """Which positions go on, ``(batch, query, 1)``, and how many times in a row the mean has been calm."""
    change = (energies[-1] - energies[-2]).detach()
    if not rule.stop_together:
        return active & (change.abs() >= rule.tolerance).unsqueeze(-1), calm
    calm = torch.where(change.mean().abs() < rule.tolerance, calm + 1, torch.zeros_like(calm))
    return active & (calm < 2), calm
