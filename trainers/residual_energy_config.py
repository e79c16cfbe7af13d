"""Arguments of `ResidualEnergyTrainer`."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .argument_checks import give_floor, read_numbers, require
from .experiment_trackers import require_trackers


FIELDS_OF_THE_MODEL = ("energy_loss", "energy_loss_weight", "num_negatives", "negative_fraction")


@dataclass
class ResidualEnergyConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus what the training of a residual energy needs.

    Defaults that differ from transformers' are those of the published MonArc runs (AdamW with betas .9 and .95, weight decay
    0.1, cosine to a tenth of the peak), apart from clipping, weight decay of matrices only and a moderate learning rate.
    "None = the model's own" fields leave ``model.config`` as it is; given, they are written to it and saved with the model.

    Args:
        energy_loss: ``"direct"``, ``"nce"`` or ``"rank"``; None = the model's own.
        energy_loss_weight: factor of the energy loss beside the LM's cross-entropy; None = the model's own.
        num_negatives: tokens drawn from the LM per position; None = the model's own.
        negative_fraction: share of positions whose negatives are scored in a step, in (0, 1]; evaluation scores all of them.
            None = the model's own.
        freeze_lm: train the energy only and leave the LM bit-identical; None = the model's own.
        energy_learning_rate: peak learning rate of the energy's parameters; None = ``learning_rate``. The schedule is shared.
        decay_all_parameters: weight decay on norms, biases and embeddings too, as in the original code.
        text_column: column of raw text; it is tokenised when the dataset has no ``input_ids``.
        max_length: tokens per row, for datasets of raw text. Longer documents go on in the next row (packing) or are cut.
        packing: join documents into full rows with ``segment_ids``; False = one document per row, padded per batch.
        packing_strategy: ``"wrapped"`` (the stream of all documents, cut into rows) or ``"greedy"`` (documents stay whole
            where they fit).
        reset_position_ids: count positions from 0 in each packed document.
        stop_on_nonfinite: raise `NonFiniteError` when a loss or the gradient norm is not finite. Checked before each
            optimizer step in one CPU process, elsewhere at each log, evaluation and save: no step waits for the device.
        metrics_file: JSON lines, one per log, below ``output_dir``; None = none.
        curves: draw ``curves.png`` below ``output_dir`` at the end of the training, where matplotlib is installed.
        learning_rate: peak learning rate.
        weight_decay: of matrices other than embeddings (see ``decay_all_parameters``).
        adam_beta2: second-moment decay of Adam.
        lr_scheduler_type: any of transformers' schedules. ``"cosine_with_min_lr"`` and ``"cosine_warmup_with_min_lr"`` get a
            floor of a tenth of the peak unless ``lr_scheduler_kwargs`` says otherwise.
        logging_nan_inf_filter: must stay False while ``stop_on_nonfinite``: it hides what the latter looks for.
        logging_steps: optimizer steps per log line; every metric is the mean over them.
        metric_for_best_model: any logged metric; ``"elm_nll_bound"`` counts as lower is better, as losses do.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    energy_loss: str | None = field(
        default=None, metadata={"help": '"direct", "nce" or "rank"; None = the model\'s own.'}
    )
    energy_loss_weight: float | None = field(
        default=None, metadata={"help": "Factor of the energy loss; None = the model's own."}
    )
    num_negatives: int | None = field(
        default=None, metadata={"help": "Negatives per position; None = the model's own."}
    )
    negative_fraction: float | None = field(
        default=None, metadata={"help": "Share of positions with negatives, in (0, 1]; None = the model's own."}
    )
    freeze_lm: bool | None = field(default=None, metadata={"help": "Train the energy only; None = the model's own."})
    energy_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the energy's parameters; None = learning_rate."}
    )
    decay_all_parameters: bool = field(
        default=False, metadata={"help": "Weight decay on norms, biases and embeddings too."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of raw text."})
    max_length: int = field(default=1024, metadata={"help": "Tokens per row, for datasets of raw text."})
    packing: bool = field(default=True, metadata={"help": "Join documents into full rows with segment_ids."})
    packing_strategy: str = field(default="wrapped", metadata={"help": '"wrapped" or "greedy".'})
    reset_position_ids: bool = field(default=False, metadata={"help": "Count positions from 0 in each document."})
    stop_on_nonfinite: bool = field(default=True, metadata={"help": "Stop when a loss or the gradient is not finite."})
    metrics_file: str | None = field(
        default="metrics.jsonl", metadata={"help": "JSON lines, one per log, below output_dir; None = none."}
    )
    curves: bool = field(default=True, metadata={"help": "Draw curves.png at the end of the training."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of matrices other than embeddings."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second-moment decay of Adam."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Any of transformers' schedules."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Replace non-finite losses in the logs."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps per log line."})

    def __post_init__(self):
        read_numbers(self)
        self._check_fields()
        give_floor(self)
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("nll_bound"):
            self.greater_is_better = False
        super().__post_init__()
        require_trackers(self.report_to)

    def _check_fields(self):
        positive_int = "an integer of at least 1"
        rules = {
            "energy_loss": (self.energy_loss in (None, "direct", "nce", "rank"), '"direct", "nce" or "rank"'),
            "energy_loss_weight": (
                self.energy_loss_weight is None or self.energy_loss_weight >= 0,
                "zero or positive",
            ),
            "num_negatives": (self.num_negatives is None or _is_count(self.num_negatives), positive_int),
            "negative_fraction": (self.negative_fraction is None or 0 < self.negative_fraction <= 1, "in (0, 1]"),
            "energy_learning_rate": (
                self.energy_learning_rate is None or self.energy_learning_rate >= 0,
                "zero or positive, or None for learning_rate",
            ),
            "learning_rate": (self.learning_rate >= 0, "zero or positive"),
            "lr_scheduler_kwargs": (
                not isinstance(self.lr_scheduler_kwargs, str) or self.lr_scheduler_kwargs.lstrip().startswith("{"),
                "a mapping, for example {min_lr_rate: 0.1}",
            ),
            "per_device_train_batch_size": (_is_count(self.per_device_train_batch_size), positive_int),
            "per_device_eval_batch_size": (_is_count(self.per_device_eval_batch_size), positive_int),
            "gradient_accumulation_steps": (_is_count(self.gradient_accumulation_steps), positive_int),
            "seed": (self.seed >= 0, "zero or positive"),
            "max_length": (_is_count(self.max_length) and self.max_length >= 2, "an integer of at least 2"),
            "packing_strategy": (self.packing_strategy in ("wrapped", "greedy"), '"wrapped" or "greedy"'),
            "label_smoothing_factor": (
                self.label_smoothing_factor == 0,
                "0: smoothed targets have no likelihood, and the energy is trained on the model's own samples",
            ),
            "logging_nan_inf_filter": (
                not (self.logging_nan_inf_filter and self.stop_on_nonfinite),
                "False with stop_on_nonfinite=True: the filter hides the values that should stop the run",
            ),
        }
        require(self, rules)


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
