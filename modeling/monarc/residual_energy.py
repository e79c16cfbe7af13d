"""Residual energies of tokens and the losses that train them.

Sign: E is an energy, lower is likelier; p(x_t | x_<t) = p_LM(x_t | x_<t) exp(-E(x_t)) / Z. (The MonArc code calls E "arc".)
Every head starts at E = 0, so that a freshly wrapped language model is exactly that language model.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


ENERGY_LOSSES = ("direct", "nce", "rank")


class BilinearEnergyHead(nn.Module):
    """Energy of a token from the state before it, its own state and its LM log-probability.

        E_t = <W_p a + c_p + u_p l, W_t b + c_t + u_t l> / sqrt(hidden)      a = LN(h_{t-1}), b = LN(h_t), l = log p_LM(x_t)

    (MonArc's "arc" head.) W_p, c_p, u_p and u_t start at zero, W_t does not, so that E = 0 and W_p receives gradient.
    ``log_prob_features=False`` leaves the two terms in l out.
    """

    def __init__(self, hidden_size: int, norm_eps: float = 1e-5, log_prob_features: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.previous_proj = _zero_initialised(nn.Linear(hidden_size, hidden_size))
        self.token_proj = nn.Linear(hidden_size, hidden_size)
        self.previous_log_prob = (
            _zero_initialised(nn.Linear(1, hidden_size, bias=False)) if log_prob_features else None
        )
        self.token_log_prob = _zero_initialised(nn.Linear(1, hidden_size, bias=False)) if log_prob_features else None

    def forward(self, previous: Tensor, token: Tensor, log_probs: Tensor) -> Tensor:
        """``previous`` and ``token`` states ``(..., hidden)`` (broadcast), ``log_probs`` ``(...)`` -> energies ``(...)``, nats.

        The energies are summed in the dtype of ``log_probs``, which is float32 in a model of lower precision.
        """
        weight = self.previous_proj.weight
        left = self.previous_proj(self.norm(previous.to(weight.dtype)))
        right = self.token_proj(self.norm(token.to(weight.dtype)))
        if self.previous_log_prob is not None:
            feature = log_probs.detach().unsqueeze(-1).to(weight.dtype)
            left = left + self.previous_log_prob(feature)
            right = right + self.token_log_prob(feature)
        return (left * right).sum(-1, dtype=log_probs.dtype) / math.sqrt(left.shape[-1])


class LinearEnergyHead(nn.Module):
    """E_t = <w, LN(h_t)> + b, zero at the start; it sees neither the previous state nor the LM log-probability."""

    def __init__(self, hidden_size: int, norm_eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.proj = _zero_initialised(nn.Linear(hidden_size, 1))

    def forward(self, previous: Tensor, token: Tensor, log_probs: Tensor) -> Tensor:
        """As `BilinearEnergyHead`; ``previous`` and the values of ``log_probs`` are ignored."""
        return self.proj(self.norm(token.to(self.proj.weight.dtype))).squeeze(-1).to(log_probs.dtype)


def _zero_initialised(linear):
    linear._monarc_init = "zeros"
    return linear


def clamp_energy(energies: Tensor, bound: float | None) -> Tensor:
    """bound * tanh(E / bound), so that |E| < bound and exp(-E) stays in (exp(-bound), exp(bound)); None leaves E as it is."""
    if bound is None:
        return energies
    return bound * torch.tanh(energies / bound)


def energy_loss_terms(energies: Tensor, negative_energies: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Per-position energy loss, split into a data term and a term in the negatives, nats.

    With E the token's energy and E_1..E_K those of tokens drawn from p_LM:

        direct   E + mean_k exp(-E_k) - 1     unbiased estimate of an upper bound of E + log Z, since log Z <= Z - 1;
                                              with the LM's own NLL it bounds the ELM's exact NLL, with equality at Z = 1
        nce      softplus(E) + mean_k softplus(-E_k)          noise-contrastive, optimum E = log p_LM - log q, Z = 1
        rank     E + log[(exp(-E) + sum_k exp(-E_k)) / (K+1)] ranking NCE (Ma and Collins 2018); its Z is free

    Args:
        energies: ``(batch, seq)``.
        negative_energies: ``(batch, K, seq)``.

    Returns:
        two tensors ``(batch, seq)``, to be summed: the second is the one that exists only where negatives were scored.
    """
    if form == "direct":
        return energies, torch.exp(-negative_energies).mean(1) - 1.0
    if form == "nce":
        return F.softplus(energies), F.softplus(-negative_energies).mean(1)
    if form == "rank":
        scores = -torch.cat([energies.unsqueeze(1), negative_energies], 1)
        return torch.zeros_like(energies), energies + torch.logsumexp(scores, 1) - math.log(scores.shape[1])
    raise ValueError(f'energy_loss must be one of {ENERGY_LOSSES}, got "{form}".')
