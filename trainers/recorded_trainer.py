"""`RecordedTrainer`: a transformers `Trainer` whose runs are finite, recorded, and saved whole."""

import contextlib
import os

import torch
from transformers.utils import logging

from .card_writer import write_card
from .checkpoint_folders import (
    broken_checkpoints,
    clear_leftovers,
    last_usable_checkpoint,
    require_writable,
    staged,
    why_unusable,
    write_file_list,
    written_whole,
)
from .curves_picture import write_curves_picture
from .finite_guard import FiniteGuard, NonFiniteError
from .peft_adapters import with_adapters
from .run_records import MetricsFile, MetricWindow, peak_memory_mib
from .stream_trainer import StreamTrainer
from .termination import CHECK_INTERVAL, TerminationWatch, TrainingTerminated, announce


logger = logging.get_logger(__name__)


class RecordedTrainer(StreamTrainer):
    """Base of the package's trainers, whatever they learn from; what it adds to `Trainer`:

    * Metrics that ``compute_loss`` puts into ``train_window`` and ``eval_window`` are logged as means over steps and ranks, with
      ``tokens_per_second`` (all ranks) and ``peak_memory_mib`` (largest rank). Nothing waits for the device between logs.
      ``state.num_input_tokens_seen`` counts the window's tokens, across resumed runs.
    * A non-finite loss or gradient norm raises `NonFiniteError` before anything bad is saved.
    * A checkpoint is written whole or not at all, and refused at resume when it is not whole.
    * SIGTERM saves a checkpoint after the step at hand and exits with status 143, see `termination`.
    * A stream is resumed where it stood, see `StreamTrainer`.
    * Every log is a line of ``metrics.jsonl``, and at the end they are a picture, ``curves.png``.
    * ``peft_config`` trains PEFT adapters, and `modules_trained_whole` beside them, instead of the weights: see `with_adapters`.

    Subclasses write ``compute_loss``, whose loss they divide by the items of the whole optimizer step, and `evaluation_metrics`.
    The arguments need ``stop_on_nonfinite``, ``metrics_file`` and ``curves``.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, model, args, peft_config=None, **kwargs):
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process (torch.nn.DataParallel) are not supported; start one process per GPU with "
                f"torchrun --nproc_per_node {args.n_gpu}, or choose one with CUDA_VISIBLE_DEVICES=0."
            )
        if peft_config is not None:
            whole = self.modules_trained_whole(model)
            model = with_adapters(model, peft_config, whole, adapts_lm=getattr(args, "freeze_lm", None) is False)
        super().__init__(model=model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self.train_window, self.eval_window = MetricWindow(), MetricWindow()
        self.finite_guard = FiniteGuard()
        self.micro_step = 0  # batches since the last optimizer step, or since the evaluation began
        self._tokens_before_window = 0
        self.termination = TerminationWatch(self._any_rank, 1 if args.device.type == "cpu" else CHECK_INTERVAL)
        self.add_callback(self.termination)
        if args.metrics_file:
            self.add_callback(MetricsFile(os.path.join(args.output_dir, args.metrics_file)))

    def modules_trained_whole(self, model) -> list[str]:
        """Names of the modules that are trained in full beside PEFT adapters, unless ``modules_to_save`` says otherwise."""
        return []

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self.micro_step = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _any_rank(self, condition: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return condition
        return bool(self.accelerator.reduce(torch.tensor(int(condition), device=self.args.device), "sum").item())

    def _rank_scale(self):
        # Losses are divided by the items of all ranks, but gradients are averaged over ranks: this makes it their sum.
        return self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1

    def _data_rank(self):
        """Which share of the rows is this process's: tensor-parallel ranks have the same rows, and need the same negatives."""
        return self.args.process_index // self.get_tp_size()

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
        """As transformers', with `evaluation_metrics` in place of means over batches."""
        self.eval_window.clear()
        self.micro_step = 0
        with self.train_window.clock_stopped():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self.evaluation_metrics()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def evaluation_metrics(self) -> dict[str, float]:
        """What ``eval_window`` gathered, per token; collective over ranks."""
        tokens = max(self.eval_window.tokens(self.accelerator), 1)
        return {name: total / tokens for name, total in self.eval_window.sums(self.accelerator).items()}

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

        ``resume_from_checkpoint=True`` takes the last whole one below ``output_dir`` and passes over broken ones, each with a warning.

        Raises:
            ValueError: the given checkpoint is not whole, or there is none; a stream cannot go on from it.
            PermissionError: output_dir cannot be written.
            NonFiniteError, CheckpointSaveError, TrainingTerminated: see `RecordedTrainer`.
        """
        if self.args.should_save:
            require_writable(self.args.output_dir)
            clear_leftovers(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        checkpoint = self._usable_checkpoint(resume_from_checkpoint)
        with self.termination.watching():
            result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self.stop_if_nonfinite()
        if self.termination.stopping:
            if self.is_world_process_zero():
                announce(last_usable_checkpoint(self.args.output_dir), self.state.global_step)
            raise TrainingTerminated
        if self.args.curves and self.is_world_process_zero():
            write_curves_picture(self.state.log_history, self.args.output_dir)
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
            self._warn_of_broken_checkpoints(last)
            return last
        reason = why_unusable(resume_from_checkpoint)
        if reason is not None:
            remedy = f"; the last whole checkpoint in output_dir is {last}" if last else ""
            raise ValueError(f'resume_from_checkpoint="{resume_from_checkpoint}" cannot be used: {reason}{remedy}.')
        return resume_from_checkpoint

    def _warn_of_broken_checkpoints(self, last):
        if self.is_world_process_zero():
            for folder, reason in broken_checkpoints(self.args.output_dir, newer_than=last):
                logger.warning("%s is passed over: %s. Resuming from %s.", folder, reason, last)

    def _save_checkpoint(self, model, trial):
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        with self.train_window.clock_stopped(), contextlib.ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(written_whole(folder))
            self.accelerator.wait_for_everyone()  # a folder of that name has been set aside
            self._count_tokens()
            self.save_stream_state(folder)
            self.accelerator.wait_for_everyone()  # before trainer_state.json, which says that all is there
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_file_list(folder)

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with staged(output_dir or self.args.output_dir) as staging:
            super()._save(staging, state_dict)

    def create_model_card(self, *args, **kwargs):
        """As transformers', with this package's card for its own models; a README.md that the user wrote or edited is kept."""
        if args or not self.is_world_process_zero() or not write_card(self, **kwargs):
            super().create_model_card(*args, **kwargs)
