"""The last tokens before a prediction, as the energy's units see them beside the state.

Shapes: batch, seq = tokens of this call, keys = tokens so far, query = kept positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


EPS = 1e-6  # of a mean square; fresh rows of the readout have 4e-4


def normed_rows(token_rows: Tensor) -> Tensor:
    """Rows of the readout scaled to a mean square of 1, so that they count beside normed states, ``(batch, seq, hidden)``."""
    return F.rms_norm(token_rows, token_rows.shape[-1:], eps=EPS)


def recent_rows(rows: Tensor, count: int, layout, kept: slice | Tensor) -> Tensor:
    """The rows of the tokens at and before each kept position, latest first, ``(batch, query, count * hidden)``.

    Zero where there is no token, or one of another document, or padding; and, as in the associative memory, at the first token
    of a document.

    Args:
        rows: of all tokens so far, ``(batch, keys, hidden)``.
        layout: `AttentionLayout` of this call.
        kept: positions of this call, ``(query)`` of ``seq``.
    """
    keys, seq, mask = rows.shape[1], layout.position_ids.shape[1], layout.memory_mask
    rows = F.pad(rows[:, 1:], (0, 0, count, 0))  # token j at count - 1 + j; the first is left out
    shifted = []
    for back in range(count):
        first = count - 1 + keys - seq - back
        part = rows[:, first : first + seq][:, kept]
        if mask is not None:
            own = torch.arange(keys - seq - back, keys - back, device=rows.device).clamp(min=0)[kept]
            seen = mask[:, 0, kept].gather(-1, own[None, :, None].expand(mask.shape[0], -1, 1))
            part = part * seen.to(part.dtype)
        shifted.append(part)
    return torch.cat(shifted, -1)
