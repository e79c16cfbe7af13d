"""Soft tokens: predictions as inputs of the trunk, causally fed back beside the tokens, or in their place as published."""

import contextlib

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class FedBackTrunk:
    """The trunk run again on tokens plus the predictions made at them.

    Position t gets embedding(x_t) + feedback(e_t) with e_t = W' p_t its own expected next token: it knows nothing that it has
    not predicted itself, and attends to earlier positions in the same state of refinement. Run k keeps keys and values of its
    own in the cache.

    Args:
        trunk: with a ``feedback`` layer.
        embeds: token embeddings, ``(batch, seq, hidden)``.
        layout: of this call.
        cache: or None.
        first_cache_layer: of the first run.
    """

    def __init__(self, trunk, embeds: Tensor, layout, cache, first_cache_layer: int):
        self.trunk, self.embeds, self.layout, self.cache = trunk, embeds, layout, cache
        self.first_cache_layer = first_cache_layer

    def hidden(self, index: int, expected: Tensor) -> Tensor:
        """States of run ``index`` after feeding back ``expected`` embeddings, both ``(batch, seq, hidden)``."""
        first = self.first_cache_layer + index * len(self.trunk.blocks)
        return self.trunk(self.embeds + self.trunk.feedback(expected), self.layout, self.cache, first)[-1]


def published_soft_move(model, layout, objective, rule, logits: Tensor, alpha: Tensor) -> Tensor:
    """The published step with soft tokens: p_t stands at position t in the place of x_t, and J is differentiated through it.

        z <- z - alpha d/dz  mean <p, E(trunk(W_e' p))>

    Position t thereby sees its own prediction of x_{t+1} where x_t should stand: kept to compare with, not to use.

    Args:
        model: a `NanoEBMForRefinement` with its own trunk.
        logits: z of all positions, ``(batch, seq, vocab)``.
    """
    training = torch.is_grad_enabled() and model.training
    outside = contextlib.nullcontext() if not torch.is_inference_mode_enabled() else torch.inference_mode(False)
    kernel = (
        sdpa_kernel(SDPBackend.MATH) if training else contextlib.nullcontext()
    )  # fast ones have no second derivative
    with outside, torch.enable_grad(), kernel:
        z = logits if training and logits.requires_grad else logits.clone().requires_grad_()
        probs = objective.log_probs(z).exp()
        soft = probs.to(model.trunk.token_embedding.weight.dtype) @ model.trunk.token_embedding.weight
        energies = -model.readout()(model.trunk(soft, layout)[-1])
        gradient = torch.autograd.grad((probs * energies).sum() / rule.divisor, z, create_graph=training)[0]
    return -alpha * gradient
