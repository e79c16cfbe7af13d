"""`TokenTrainer`: a `RecordedTrainer` in which a target token is the unit of every loss, metric and count."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .recorded_trainer import RecordedTrainer


class TokenTrainer(RecordedTrainer):
    """Base of the trainers of token predictors; what it adds to `RecordedTrainer`:

    * Loss and metrics are sums over target tokens divided by the number of target tokens of the whole optimizer step
      (``num_items_in_batch``), so that 8x1, 4x2 (gradient accumulation) and two processes are the same step.
    * The model's own scalars are logged as means over steps and ranks, and in evaluation over target tokens, with
      ``tokens_per_second`` of target tokens. ``state.num_input_tokens_seen`` counts the target tokens trained on.

    Subclasses say what a target is (`counted_labels`), what else the model's forward gets (`forward_arguments`) and which of
    its outputs are logged (`output_metrics`), and whether the model shifts labels itself (``shifts_labels``). The arguments need ``stop_on_nonfinite``,
    ``metrics_file`` and ``curves``.
    """

    shifts_labels = True  # labels[t] is predicted from the tokens before t, so that position 0 has no prediction
    watched = ("loss",)  # of output_metrics: must stay finite; in the order in which they are blamed

    def __init__(self, model, args, **kwargs):
        super().__init__(model, args, **kwargs)
        self._loss_shifts_labels = self.shifts_labels  # how transformers counts items
        self._wants_logits = False

    # ------------------------------------------------------------------------------------------- for subclasses

    def counted_labels(self, inputs: Mapping[str, Any]) -> Tensor:
        """Labels ``(batch, seq)`` with -100 wherever the model counts no target; with ``shifts_labels``, position 0 never counts."""
        return inputs["labels"]

    def forward_arguments(self, training: bool, wants_logits: bool) -> dict[str, Any]:
        """Arguments of the model's forward beside the batch."""
        return {}

    def output_metrics(self, outputs, num_items: Tensor) -> dict[str, Tensor]:
        """Scalars to log, each a sum over the batch's targets divided by ``num_items``."""
        return {}

    # ----------------------------------------------------------------------------------------------------- loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Number of target tokens of an optimizer step, over ranks unless ``average_tokens_across_devices`` is off."""
        missing = [sorted(batch) for batch in batch_samples if batch.get("labels") is None]
        if missing:
            raise ValueError(f"every batch needs labels (batch, seq), got one with the keys {missing[0]}.")
        counted = [{"labels": self.counted_labels(batch)} for batch in batch_samples]
        items = super()._get_num_items_in_batch(counted, device)
        return items.clamp(min=1) if torch.is_tensor(items) else items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss on ``inputs``; its metrics go to the window of the mode (training or evaluation)."""
        counted = self.counted_labels(inputs)
        tokens = (counted[..., 1:] if self.shifts_labels else counted).ne(-100).sum()
        extra = self.forward_arguments(model.training, self._wants_logits and not model.training)
        outputs = model(**inputs, **extra, num_items_in_batch=num_items_in_batch)
        self.micro_step += 1
        metrics = self.output_metrics(outputs, num_items_in_batch)
        # Divided by the targets of all ranks, but gradients and logged losses are averaged over ranks: make it their sum.
        loss = outputs.loss * self._rank_scale()
        if model.training:
            metrics = {name: value * self._rank_scale() for name, value in metrics.items()}
            self.train_window.add(metrics, tokens, finished_step=self.accelerator.sync_gradients)
            self._watch({name: metrics[name] for name in self.watched if name in metrics} | {"loss": loss})
        else:
            metrics = {"loss": outputs.loss, **metrics}
            self.eval_window.add({name: value * num_items_in_batch for name, value in metrics.items()}, tokens)
        return (loss, outputs) if return_outputs else loss

    # ------------------------------------------------------------------------------------------------ evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._without_repeated_rows(inputs)
        self._wants_logits = not prediction_loss_only
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
