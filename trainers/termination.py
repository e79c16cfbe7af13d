"""What a training run does when it is asked to end (SIGTERM): it finishes the step, saves a checkpoint and exits."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from transformers import TrainerCallback


EXIT_STATUS = 128 + signal.SIGTERM  # 143, as shells report a process that SIGTERM ended
CHECK_INTERVAL = 10  # steps between two questions to the other ranks, where asking waits for a device


class TrainingTerminated(SystemExit):
    """SIGTERM ended the training after a checkpoint was saved; the process exits with status 143."""

    def __init__(self):
        super().__init__(EXIT_STATUS)


class TerminationWatch(TrainerCallback):
    """Turns SIGTERM into a checkpoint at the end of the optimizer step and the end of the training.

    transformers' ``enable_jit_checkpoint`` may save between reading the batches of a step and training on them, on each rank at
    a step of its own; this saves between steps, on all ranks at the same one. A second SIGTERM ends the process at once.

    Args:
        any_rank: whether a condition holds on any rank; collective.
        interval: optimizer steps between two calls of ``any_rank``.
    """

    def __init__(self, any_rank: Callable[[bool], bool], interval: int = 1):
        self.any_rank, self.interval = any_rank, interval
        self.received = False  # SIGTERM came to this process
        self.stopping = False  # and all ranks know

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handles SIGTERM while it lasts; elsewhere than in the main thread signals are left alone."""
        self.received = self.stopping = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def handle(number, frame):
            self.received = True
            signal.signal(signal.SIGTERM, before)

        signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.interval == 0 and self.any_rank(self.received):
            self.stopping = control.should_save = control.should_training_stop = True


def announce(checkpoint: str | None, step: int) -> None:
    """One line on stderr: which checkpoint a terminated run left."""
    where = checkpoint or "no checkpoint"
    sys.stderr.write(
        f"SIGTERM at step {step}: saved {where}; exit status {EXIT_STATUS}. Go on with resume=true "
        "(resume_from_checkpoint=True).\n"
    )
