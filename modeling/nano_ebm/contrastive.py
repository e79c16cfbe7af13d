"""Contrastive terms: the energy of the true token against that of refined predictions, and against the batch's other tokens.

    contrastive divergence     L = F(onehot of the token) - F(p~),     p~ from k Langevin steps, held constant

Both energies carry gradient. With the linear energy and p~ = softmax(z_0), F(p~) = -log sum exp(z_0), so that L is the
cross-entropy itself, value and gradient; what the chains add is where they move. A constant added to a position's energies
cancels, so they cannot drift.

Chains of the persistent forms are displacements z~ - z_0: what a chain has learnt is carried to other contexts, and a buffer of
``(n_persistent, vocab)`` serves batches of every shape.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .free_energy import FreeEnergyField, Objective
from .refinement import StepRule, centre


class NegativeChains(nn.Module):
    """Stored displacements and velocities, ``(n_persistent, vocab)``; checkpointed with the model."""

    displacement: Tensor
    velocity: Tensor

    def __init__(self, num_chains: int, vocab_size: int, momentum: float, restart_prob: float):
        super().__init__()
        self.momentum, self.restart_prob = momentum, restart_prob
        self.register_buffer("displacement", torch.zeros(num_chains, vocab_size))
        self.register_buffer("velocity", torch.zeros(num_chains, vocab_size))

    def draw(self, counted: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(chains, places): different chains for different counted positions, as many as there are of the scarcer.

        Args:
            counted: boolean ``(positions)``.
        """
        device = counted.device
        places = counted.nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator, device=device)]
        chains = torch.randperm(len(self.displacement), generator=generator, device=device)
        count = min(len(places), len(chains))
        return chains[:count], places[:count]

    @torch.no_grad()
    def restart(self, chains: Tensor, generator: torch.Generator | None) -> None:
        """Sends each of ``chains`` back to its start with probability ``restart_prob``."""
        kept = torch.rand(len(chains), 1, generator=generator, device=chains.device) >= self.restart_prob
        self.displacement[chains] *= kept
        self.velocity[chains] *= kept


@dataclass
class LangevinChain:
    """How negatives are sampled: k steps of ``rule``, with momentum where that is positive."""

    rule: StepRule
    momentum: float = 0.0

    @torch.no_grad()
    def run(self, energy_field: FreeEnergyField, objective: Objective, logits: Tensor, velocity: Tensor):
        """(z~, velocity) after the steps, both ``(batch, query, vocab)``."""
        alpha = self.rule.step_sizes[0].to(logits.dtype)
        for _ in range(self.rule.steps):
            before = self.rule.with_noise(logits, alpha)
            velocity = self.momentum * velocity + centre(
                before - logits + self.rule.move(energy_field, objective, before, alpha)
            )
            logits = logits + velocity
        return logits, velocity


def sample_negatives(
    energy_field: FreeEnergyField,
    start: Tensor,
    objective: Objective,
    chain: LangevinChain,
    counted: Tensor,
    chains: NegativeChains | None = None,
    restarts: bool = False,
) -> tuple[Tensor, Tensor]:
    """(z~ ``(batch, query, vocab)``, the positions ``(batch, query)`` it is valid at); stored chains are moved on.

    Args:
        start: z_0.
        counted: positions to contrast, boolean ``(batch, query)``.
        chains: None = every chain begins at the prediction (cd).
    """
    origin = centre(start.detach())
    if chains is None:
        return chain.run(energy_field, objective, origin, torch.zeros_like(origin))[0], counted
    generator = chain.rule.generator
    drawn, places = chains.draw(counted.flatten(), generator)
    if restarts:
        chains.restart(drawn, generator)
    moved = torch.zeros_like(origin).flatten(0, 1)
    velocity = torch.zeros_like(moved)
    moved[places], velocity[places] = chains.displacement[drawn].to(moved), chains.velocity[drawn].to(moved)
    velocity = velocity.view_as(origin)
    logits, velocity = chain.run(energy_field, objective, origin + moved.view_as(origin), velocity)
    chains.displacement[drawn] = (logits - origin).flatten(0, 1)[places].to(chains.displacement)
    chains.velocity[drawn] = velocity.flatten(0, 1)[places].to(chains.velocity)
    valid = torch.zeros_like(counted).flatten()
    valid[places] = True
    return logits, valid.view_as(counted)


def contrastive_divergence(
    energy_field: FreeEnergyField, objective: Objective, targets: Tensor, negatives: Tensor
) -> Tensor:
    """F(onehot of the target) - F(p~), ``(batch, query)``, nats; gradients flow through both energies, none through p~.

    Args:
        targets: ``(batch, query)``, inside the vocabulary.
        negatives: z~, ``(batch, query, vocab)``.
    """
    rows = F.embedding(targets, energy_field.readout)
    if objective.own_field:
        positive = energy_field.potential(rows)
    else:
        positive = -(rows * energy_field.pull(rows)).sum(-1)
    if energy_field.bias is not None:
        positive = positive - energy_field.bias[targets]
    return positive - replace(objective, candidates=None).energy(energy_field, negatives.detach())


def in_batch_info_nce(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy of each target among the targets of the whole batch, with their multiplicity, ``(batch, query)``, nats.

        -log exp(z_t[y_t]) / sum_{counted positions s} exp(z_t[y_s])

    Args:
        logits: ``(batch, query, vocab)``.
        counted: positions whose targets are candidates, boolean ``(batch, query)``.
    """
    counts = torch.bincount(targets[counted], minlength=logits.shape[-1]).to(logits)
    total = torch.logsumexp(logits + counts.log(), -1)
    return total - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
