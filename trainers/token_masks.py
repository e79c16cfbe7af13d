"""Masks for masked language modelling that depend on a seed and the row alone, not on batches, ranks or padding."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


GAMMA, MIX_ONE, MIX_TWO = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
IGNORED = -100


@dataclass(frozen=True)
class MaskRule:
    """Which tokens are predicted, and what stands in their place (BERT, Devlin et al. 2019, section 3.1).

    Every token that is neither special nor padding is chosen with ``probability``, independently. Of the chosen,
    ``mask_share`` become the mask token, ``random_share`` an ordinary token drawn uniformly, and the rest stay.

    The draws are those of SplitMix64 (Steele, Lea, Flood 2014) at counters that belong to the token's place in its row, with a
    state hashed from the seed and the row's tokens. The same row therefore gets the same mask whatever else is in its batch,
    however it is padded, and on whichever rank or device it is; another seed gives an independent one.

    Args:
        mask_token_id: what masked tokens become.
        special_ids: tokens that are never predicted.
        ordinary_ids: tokens that may stand in a random place.
        probability, mask_share, random_share: see above.
    """

    mask_token_id: int
    special_ids: Tensor
    ordinary_ids: Tensor
    probability: float = 0.3
    mask_share: float = 0.8
    random_share: float = 0.1

    @classmethod
    def of(cls, tokenizer, device: torch.device | str = "cpu", **shares: float) -> "MaskRule":
        """The rule of a tokenizer, for batches on ``device``.

        Raises:
            ValueError: it has no mask token, or nothing but special tokens.
        """
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask_token, so that nothing can be masked; take one made for encoders, such as "
                "bert-base-uncased or build_tokenizer(kind, texts, encoder=True)."
            )
        special = sorted({*tokenizer.all_special_ids})
        ordinary = sorted({*tokenizer.get_vocab().values()} - {*special})
        if not ordinary:
            raise ValueError(
                "the tokenizer has special tokens only; masked language modelling needs others to predict."
            )
        tables = (torch.tensor(ids, device=device) for ids in (special, ordinary))
        return cls(tokenizer.mask_token_id, *tables, **shares)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        """What the model sees and what it predicts, both int64 ``(batch, seq)``; labels are -100 where nothing is predicted.

        Args:
            input_ids: tokens, ``(batch, seq)``.
            attention_mask: 1 = token, 0 = padding, on either side; None = all tokens.
            seed: 63 bits, see `mask_seed`.
        """
        is_token = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        place = is_token.cumsum(1) - 1
        chosen, replacement, choice = self._draws(input_ids, is_token, place, seed)
        predicted = is_token.bool() & ~torch.isin(input_ids, self.special_ids)
        predicted &= _uniform(chosen) < self.probability
        kind = _uniform(replacement)
        seen = torch.where(predicted & (kind < self.mask_share), self.mask_token_id, input_ids)
        is_random = predicted & (kind >= self.mask_share) & (kind < self.mask_share + self.random_share)
        seen = torch.where(is_random, self.ordinary_ids[_shifted(choice, 33) % len(self.ordinary_ids)], seen)
        return seen, input_ids.masked_fill(~predicted, IGNORED)

    @staticmethod
    def _draws(input_ids, is_token, place, seed):
        """Three independent 64-bit numbers per token."""
        digests = _mixed(_mixed(input_ids + 1) + (place + 1) * GAMMA)
        state = _mixed((digests * is_token).sum(1, keepdim=True) + seed)
        return (_mixed(state + (3 * place + number) * GAMMA) for number in (1, 2, 3))


def mask_seed(*parts: int | str) -> int:
    """A 63-bit seed; different for any two different ``parts``, but for chance."""
    digest = hashlib.sha256("/".join(map(str, ("masks", *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _mixed(z: Tensor) -> Tensor:
    """The output function of SplitMix64, on int64 that wraps around."""
    z = (z ^ _shifted(z, 30)) * MIX_ONE
    z = (z ^ _shifted(z, 27)) * MIX_TWO
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(bits: Tensor) -> Tensor:
    """Multiples of 2**-24 in [0, 1), float32."""
    return _shifted(bits, 40).float() / 2**24
