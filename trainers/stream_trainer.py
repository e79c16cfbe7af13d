"""`StreamTrainer`: a transformers `Trainer` that resumes a stream where it stood."""

import os

from transformers import Trainer, TrainerCallback

from .resumable_stream import is_resumable, resumable_loader
from .stream_state import read_stream_state, write_stream_state


class StreamTrainer(Trainer):
    """What it adds to `Trainer`: training data that is a stream (see `resumable_stream.is_resumable`) is read without an end, each
    rank its own part, and its place is part of the checkpoint. A resumed run goes on with the very next row; what it reads
    again does not depend on how far the run had come. Other data is read as `Trainer` reads it.

    With ``ignore_data_skip`` a resumed run begins the stream again.
    """

    _stream_loader = None  # of the current run
    _stream_state: dict | None = None  # to go on from

    def get_train_dataloader(self):
        if not is_resumable(self.train_dataset):
            return super().get_train_dataloader()
        if self.get_tp_size() > 1:
            raise ValueError(
                f"tensor_parallel_size={self.get_tp_size()}: the ranks of a tensor-parallel group need the same rows, which a stream "
                "split by rank does not give; write the rows by `hf-elm prepare` and train from those."
            )
        self._stream_loader = resumable_loader(
            self.train_dataset,
            self._train_batch_size,
            self._get_collator_with_removed_columns(self.data_collator, description="Training"),
            self.args,
            self._stream_state,
        )
        return self._stream_loader

    def train(self, resume_from_checkpoint=None, **kwargs):
        self._stream_loader = self._stream_state = None
        if resume_from_checkpoint and is_resumable(self.train_dataset) and not self.args.ignore_data_skip:
            batch_size = self.args.train_batch_size
            self._stream_state = read_stream_state(resume_from_checkpoint, self.args, batch_size)
        if is_resumable(self.train_dataset):
            self.add_callback(_StreamEpoch)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.pop_callback(_StreamEpoch)

    def _init_training_state(self, *args, **kwargs):
        epochs_trained, steps_to_skip = super()._init_training_state(*args, **kwargs)
        return (epochs_trained, steps_to_skip) if self._stream_loader is None else (0, 0)  # the loader is in place

    def _run_epoch(self, *args, **kwargs):
        if (
            self.state.global_step >= self.state.max_steps
        ):  # resumed from the last checkpoint: Trainer would add a step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def save_stream_state(self, folder: str | os.PathLike) -> None:
        """Writes this rank's place in the stream to a checkpoint, where there is a stream."""
        if self._stream_loader is not None:
            write_stream_state(folder, self._stream_loader, self.args)


class _StreamEpoch(TrainerCallback):
    """A stream has no epochs: ``epoch`` is the share of ``max_steps``, which `Trainer` counts from 0 again in a resumed run."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps
