"""`TokenTrainer`: a transformers `Trainer` in which a target token is the unit of every loss, metric and count."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from .checkpoint_folders import last_usable_checkpoint, staged, why_unusable, written_whole
from .finite_guard import FiniteGuard, NonFiniteError
from .run_records import MetricsFile, MetricWindow, peak_memory_mib


class TokenTrainer(Trainer):
    """Base of the package's trainers; what it adds to `Trainer`:

    * Loss and metrics are sums over target tokens divided by the number of target tokens of the whole optimizer step
      (``num_items_in_batch``), so that 8x1, 4x2 (gradient accumulation) and two processes are the same step.
    * The model's own scalars are logged as means over steps and ranks, and in evaluation over target tokens, with
      ``tokens_per_second`` (target tokens, all ranks) and ``peak_memory_mib`` (largest rank). Nothing waits for the device
      between logs. ``state.num_input_tokens_seen`` counts the target tokens trained on, across resumed runs.
    * A non-finite loss or gradient norm raises `NonFiniteError` before anything bad is saved.
    * A checkpoint is written whole or not at all, and refused at resume when it is not whole.
    * Every log is a line of ``metrics.jsonl``.

    Subclasses say what a target is (`counted_labels`), what else the model's forward gets (`forward_arguments`) and which of
    its outputs are logged (`output_metrics`). The arguments need ``stop_on_nonfinite`` and ``metrics_file``.
    """

    loss_is_scaled_for_ga = True
    watched = ("loss",)  # of output_metrics: must stay finite; in the order in which they are blamed

    def __init__(self, model, args, **kwargs):
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process (torch.nn.DataParallel) are not supported; start one process per GPU with "
                f"torchrun --nproc_per_node {args.n_gpu}, or choose one with CUDA_VISIBLE_DEVICES=0."
            )
        super().__init__(model=model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self.train_window, self.eval_window = MetricWindow(), MetricWindow()
        self.finite_guard = FiniteGuard()
        self.micro_step = 0  # batches since the last optimizer step, or since the evaluation began
        self._tokens_before_window = 0
        self._wants_logits = False
        if args.metrics_file:
            self.add_callback(MetricsFile(os.path.join(args.output_dir, args.metrics_file)))

    # ------------------------------------------------------------------------------------------- for subclasses

    def counted_labels(self, inputs: Mapping[str, Any]) -> Tensor:
        """Labels ``(batch, seq)`` with -100 wherever the model counts no target; position 0 is never counted."""
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

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self.micro_step = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss on ``inputs``; its metrics go to the window of the mode (training or evaluation)."""
        tokens = self.counted_labels(inputs)[..., 1:].ne(-100).sum()
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

    def _rank_scale(self):
        return self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1

    # --------------------------------------------------------------------------------------------- finite values

    def _watch(self, values):
        if self.args.stop_on_nonfinite:
            self.finite_guard.watch(self.state.global_step + 1, values)

    def stop_if_nonfinite(self) -> None:
        """Raises `NonFiniteError` if a watched value since the last call was not finite; collective over ranks."""
        bad = self.finite_guard.first_bad(self.accelerator) if self.args.stop_on_nonfinite else None
        if bad is not None:
            raise NonFiniteError(*bad, last_usable_checkpoint(self.args.output_dir))

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        loss_is_scaled = (
            self.accelerator.mixed_precision == "fp16"
        )  # then infinite gradients are met by skipping the step
        if grad_norm is not None and not loss_is_scaled:
            self._watch({"grad_norm": grad_norm})
        if self._checks_every_step():
            self.stop_if_nonfinite()
        return grad_norm

    def _checks_every_step(self):
        """Where it costs nothing: no device to wait for, no other rank to ask."""
        return self.args.device.type == "cpu" and self.accelerator.num_processes == 1

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or self.finite_guard.is_full():
            self.stop_if_nonfinite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # --------------------------------------------------------------------------------------------------- logging

    def log(self, logs, start_time=None):
        if "loss" in logs and self.train_window.steps:
            logs.update(self._window_metrics())
        super().log(logs, start_time)

    def _window_metrics(self):
        window, ranks = self.train_window, self.accelerator.num_processes
        metrics = {name: total / (window.steps * ranks) for name, total in window.sums(self.accelerator).items()}
        tokens = self._count_tokens()
        metrics["tokens_per_second"] = tokens / max(window.seconds(), 1e-9)
        memory = peak_memory_mib(self.args.device)
        if memory is not None:
            memory = torch.tensor([memory], device=self.args.device)
            metrics["peak_memory_mib"] = self.accelerator.gather(memory).max().item()
        window.clear()
        self._tokens_before_window += tokens
        return metrics

    def _count_tokens(self):
        """Brings ``state.num_input_tokens_seen`` up to date; returns the tokens of the window. Collective."""
        tokens = self.train_window.tokens(self.accelerator)
        if self.args.include_num_input_tokens_seen == "no":  # else transformers keeps that count itself
            self.state.num_input_tokens_seen = self._tokens_before_window + tokens
        return tokens

    def _init_training_state(self, *args, **kwargs):
        progress = super()._init_training_state(*args, **kwargs)
        self.train_window.clear()
        self._tokens_before_window = self.state.num_input_tokens_seen
        return progress

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """As transformers', with ``<prefix>_loss`` and the model's scalars averaged over target tokens, not over batches."""
        self.eval_window.clear()
        self.micro_step = 0
        with self.train_window.clock_stopped():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        tokens = max(self.eval_window.tokens(self.accelerator), 1)
        sums = self.eval_window.sums(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": total / tokens for name, total in sums.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._without_repeated_rows(inputs)
        self._wants_logits = not prediction_loss_only
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _without_repeated_rows(self, inputs):
        """The last batch of several ranks is filled up with rows already seen: their labels become -100."""
        labels, state = inputs.get("labels"), self.accelerator.gradient_state
        filled_up = self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0
        if labels is None or not filled_up:
            return inputs
        row = self.accelerator.process_index * len(labels) + torch.arange(len(labels), device=labels.device)
        return {**inputs, "labels": labels.masked_fill((row >= state.remainder).unsqueeze(1), -100)}

    # ---------------------------------------------------------------------------------- training and checkpoints

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As transformers', after checking that the checkpoint to resume from is whole.

        ``resume_from_checkpoint=True`` takes the last whole one below ``output_dir`` and passes over broken ones.

        Raises:
            ValueError: the given checkpoint is not whole, or there is none.
            NonFiniteError, CheckpointSaveError: see `TokenTrainer`.
        """
        result = super().train(resume_from_checkpoint=self._usable_checkpoint(resume_from_checkpoint), **kwargs)
        self.stop_if_nonfinite()
        return result

    def _usable_checkpoint(self, resume_from_checkpoint):
        if not resume_from_checkpoint:
            return None
        last = last_usable_checkpoint(self.args.output_dir)
        if resume_from_checkpoint is True:
            if last is None:
                raise ValueError(
                    f"resume_from_checkpoint=True, but {self.args.output_dir} holds no whole checkpoint; start without it."
                )
            return last
        reason = why_unusable(resume_from_checkpoint)
        if reason is not None:
            remedy = f"; the last whole checkpoint in output_dir is {last}" if last else ""
            raise ValueError(f'resume_from_checkpoint="{resume_from_checkpoint}" cannot be used: {reason}{remedy}.')
        return resume_from_checkpoint

    def _save_checkpoint(self, model, trial):
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        with self.train_window.clock_stopped(), contextlib.ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(written_whole(folder))
            self.accelerator.wait_for_everyone()  # a folder of that name has been set aside
            self._count_tokens()
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with staged(output_dir or self.args.output_dir) as staging:
            super()._save(staging, state_dict)
