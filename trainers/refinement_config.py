"""Arguments of `RefinementTrainer`."""

import importlib.util
import os
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.utils import logging

from .argument_checks import give_floor, read_numbers, require
from .experiment_trackers import require_trackers


logger = logging.get_logger(__name__)


@dataclass
class RefinementConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus what the training of a refined language model needs.

    How to think, and the weights of the losses, are fields of the model (`NanoEBMConfig`), saved with it.

    Args:
        system_one_steps: optimizer steps at the start that train system 1 alone, without thinking.
        decay_all_parameters: weight decay on norms, biases and embeddings too.
        text_column: column of raw text; it is tokenised when the dataset has no ``input_ids``.
        max_length: tokens per row, for datasets of raw text. Longer documents go on in the next row (packing) or are cut.
        packing: join documents into full rows with ``segment_ids``; False = one document per row, padded per batch.
        packing_strategy: ``"wrapped"`` (the stream of all documents, cut into rows) or ``"greedy"`` (documents stay whole
            where they fit).
        reset_position_ids: count positions from 0 in each packed document.
        stop_on_nonfinite: raise `NonFiniteError` when a loss or the gradient norm is not finite.
        metrics_file: JSON lines, one per log, below ``output_dir``; None = none.
        curves: draw ``curves.png`` below ``output_dir`` at the end of the training, where matplotlib is installed.
        wandb_project: log to this Weights & Biases project, where the package wandb is installed; elsewhere a warning says that
            ``metrics_file`` has it all. The other reporters are chosen by ``report_to``.
        learning_rate: peak learning rate.
        weight_decay: of matrices other than embeddings (see ``decay_all_parameters``).
        adam_beta2: second-moment decay of Adam.
        lr_scheduler_type: any of transformers' schedules. ``"cosine_with_min_lr"`` and ``"cosine_warmup_with_min_lr"`` get a
            floor of a tenth of the peak unless ``lr_scheduler_kwargs`` says otherwise.
        logging_nan_inf_filter: must stay False while ``stop_on_nonfinite``: it hides what the latter looks for.
        logging_steps: optimizer steps per log line; every metric is the mean over them.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    system_one_steps: int = field(default=0, metadata={"help": "Optimizer steps at the start without thinking."})
    decay_all_parameters: bool = field(
        default=False, metadata={"help": "Weight decay on norms, biases and embeddings too."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of raw text."})
    max_length: int = field(default=256, metadata={"help": "Tokens per row, for datasets of raw text."})
    packing: bool = field(default=True, metadata={"help": "Join documents into full rows with segment_ids."})
    packing_strategy: str = field(default="wrapped", metadata={"help": '"wrapped" or "greedy".'})
    reset_position_ids: bool = field(default=False, metadata={"help": "Count positions from 0 in each document."})
    stop_on_nonfinite: bool = field(default=True, metadata={"help": "Stop when a loss or the gradient is not finite."})
    metrics_file: str | None = field(
        default="metrics.jsonl", metadata={"help": "JSON lines, one per log, below output_dir; None = none."}
    )
    curves: bool = field(default=True, metadata={"help": "Draw curves.png at the end of the training."})
    wandb_project: str | None = field(default=None, metadata={"help": "Log to this Weights & Biases project."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of matrices other than embeddings."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second-moment decay of Adam."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Any of transformers' schedules."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Replace non-finite losses in the logs."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps per log line."})

    def __post_init__(self):
        read_numbers(self)
        self._check_fields()
        give_floor(self)
        if self.greater_is_better is None and "nll" in str(self.metric_for_best_model):
            self.greater_is_better = False
        if self.wandb_project is not None:
            self._report_to_wandb()
        super().__post_init__()
        require_trackers(self.report_to)

    def _report_to_wandb(self):
        if importlib.util.find_spec("wandb") is None:
            logger.warning(
                f"wandb_project={self.wandb_project!r}, but the package wandb is not installed; the logs go to {self.metrics_file}."
            )
            return
        os.environ["WANDB_PROJECT"] = self.wandb_project  # where transformers looks for it
        self.report_to = ["wandb"]

    def _check_fields(self):
        rules = {
            "system_one_steps": (_is_int(self.system_one_steps) and self.system_one_steps >= 0, "an integer, 0 for none"),
            "max_length": (_is_int(self.max_length) and self.max_length >= 2, "an integer of at least 2"),
            "packing_strategy": (self.packing_strategy in ("wrapped", "greedy"), '"wrapped" or "greedy"'),
            "label_smoothing_factor": (self.label_smoothing_factor == 0, "0: smoothed targets have no likelihood"),
            "logging_nan_inf_filter": (
                not (self.logging_nan_inf_filter and self.stop_on_nonfinite),
                "False with stop_on_nonfinite=True: the filter hides the values that should stop the run",
            ),
        }  # fmt: skip
        require(self, rules)


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)
