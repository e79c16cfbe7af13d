"""Spectra of the filters, remembered in evaluation while the weights stay as they are."""

import torch
from torch import Tensor

from .implicit_filter import ImplicitFilter
from .long_convolution import fft_length


class KernelSpectra:
    """The spectra of one layer's filters by row length, within a number of bytes; the least recently made go first.

    They are forgotten when any weight of the filters changes: each use compares the weights' addresses, versions and, on the
    CPU, norms (an edit through ``.data`` has no version). Copies and pickles of the model start empty.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.fingerprint, self.by_length = None, {}

    def __getstate__(self):
        return {"max_bytes": self.max_bytes, "fingerprint": None, "by_length": {}}

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return sum(s.nbytes for spectra in self.by_length.values() for s in spectra)

    def find(self, filters: list[ImplicitFilter], length: int) -> list[Tensor] | None:
        """The filters' spectra for rows of ``length``; None if they do not fit or the weights cannot be watched."""
        channels, real = filters[0].skip.shape[0], torch.promote_types(filters[0].skip.dtype, torch.float32)
        need = len(filters) * channels * (fft_length(length) // 2 + 1) * 2 * real.itemsize
        fingerprint = _fingerprint(filters) if need <= self.max_bytes else None
        if fingerprint is None:
            return None
        if fingerprint != self.fingerprint:
            self.clear()
            self.fingerprint = fingerprint
        if length not in self.by_length:
            while self.num_bytes + need > self.max_bytes:
                del self.by_length[next(iter(self.by_length))]
            every, size = slice(None), fft_length(length)
            self.by_length[length] = [torch.fft.rfft(filter(length).circular(every, size)) for filter in filters]
        return self.by_length[length]


def _fingerprint(filters):
    if any(
        type(filter) is not ImplicitFilter for filter in filters
    ):  # PEFT's wrapper chooses between two sets of weights
        return None
    tensors = [tensor for filter in filters for tensor in (*filter.parameters(), *filter.buffers())]
    if any(tensor.is_meta or tensor.is_inference() for tensor in tensors):
        return None
    marks = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)
    if tensors[0].device.type != "cpu":
        return marks
    return marks, tuple(torch.stack(torch._foreach_norm([tensor.float() for tensor in tensors])).tolist())
