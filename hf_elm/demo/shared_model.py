"""One model for all visitors of a page: their requests take turns, and none sees the random numbers of another."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class SharedModel:
    """A loaded model, in evaluation mode, and what its requests must agree on.

    Attributes:
        lock: held while the model runs. `generate` and branching caches leave marks on the model meanwhile, so that two requests
            must not run at once.
    """

    model: torch.nn.Module
    tokenizer: object
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class RandomStream:
    """Random numbers of one request: those that ``torch.manual_seed(seed)`` would give it if it ran alone.

    Args:
        seed: in [0, 2**32).
        device: of the model; the CPU's numbers and, on CUDA, the device's are kept.
    """

    def __init__(self, seed: int, device: torch.device):
        self.seed = seed
        self.devices = [device] if device.type == "cuda" else []
        self._states = None

    @contextmanager
    def active(self):
        """The default generators draw from this stream; afterwards they are as they were before."""
        with torch.random.fork_rng(devices=self.devices):
            if self._states is None:
                torch.manual_seed(self.seed)
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self.devices, self._states[1], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield
            self._states = (torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self.devices])
