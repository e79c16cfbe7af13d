"""Arguments of `MaskedLMTrainer`."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .argument_checks import give_floor, read_numbers, require
from .experiment_trackers import require_trackers


@dataclass
class MaskedLMConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus what masked language modelling needs.

    Defaults that differ from transformers' are those of the published M2-BERT runs (30 % masking, AdamW with betas .9 and .98 and
    eps 1e-6, 6 % warm-up, linear decay). Their weight decay of 1e-5 a step at the peak rate of 8e-4 is 0.0125 in units of
    the learning rate, as torch's AdamW takes it.

    Args:
        mlm_probability: share of the tokens that training predicts.
        eval_mlm_probability: share of the tokens that evaluation predicts; the published runs always evaluate at 0.15.
        mask_share: share of the predicted tokens that the model sees as the mask token.
        random_share: share of the predicted tokens that it sees as another token, drawn uniformly. The rest it sees as they are.
        variable_length_share: share of the training rows whose length is drawn uniformly from ``max_length / 16`` to
            ``max_length``; the others take as much of their document as fits. The published 2k run: 0.5.
        filter_learning_rate: peak learning rate of the networks that make the long convolutions' filters; None =
            ``learning_rate``. The original code means 1e-3 but loses it. The schedule is shared.
        filter_weight_decay: weight decay of these networks' parameters, biases included; None = as the others. Meant: 0.1.
        position_learning_rate: peak learning rate of the filters' positional features; None = ``learning_rate``. Meant: 1e-5.
        decay_all_parameters: weight decay on norms, biases, embeddings and positional features too.
        text_column: column of raw text; it is tokenised when the dataset has no ``input_ids``.
        max_length: tokens per row at most, for datasets of raw text; longer documents go on in the next row.
        stop_on_nonfinite: raise `NonFiniteError` when a loss or the gradient norm is not finite.
        metrics_file: JSON lines, one per log, below ``output_dir``; None = none.
        curves: draw ``curves.png`` below ``output_dir`` at the end of the training, where matplotlib is installed.
        learning_rate: peak learning rate.
        weight_decay: of matrices other than embeddings (see ``decay_all_parameters``).
        adam_beta2: second-moment decay of Adam.
        adam_epsilon: added to the root of the second moment.
        warmup_steps: below 1 a share of the training, else optimizer steps.
        lr_scheduler_type: any of transformers' schedules. ``"cosine_with_min_lr"`` and ``"cosine_warmup_with_min_lr"`` get a
            floor of a tenth of the peak unless ``lr_scheduler_kwargs`` says otherwise.
        logging_nan_inf_filter: must stay False while ``stop_on_nonfinite``: it hides what the latter looks for.
        logging_steps: optimizer steps per log line; every metric is the mean over them.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    mlm_probability: float = field(default=0.3, metadata={"help": "Share of the tokens that training predicts."})
    eval_mlm_probability: float = field(
        default=0.15, metadata={"help": "Share of the tokens that evaluation predicts."}
    )
    mask_share: float = field(default=0.8, metadata={"help": "Share of these that become the mask token."})
    random_share: float = field(default=0.1, metadata={"help": "Share of these that become a random token."})
    variable_length_share: float = field(default=0.0, metadata={"help": "Share of training rows of drawn length."})
    filter_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the filter networks; None = learning_rate."}
    )
    filter_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the filter networks; None = as the others."}
    )
    position_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the filters' positions; None = learning_rate."}
    )
    decay_all_parameters: bool = field(
        default=False, metadata={"help": "Weight decay on norms, biases, embeddings and positions too."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of raw text."})
    max_length: int = field(default=128, metadata={"help": "Tokens per row at most, for datasets of raw text."})
    stop_on_nonfinite: bool = field(default=True, metadata={"help": "Stop when a loss or the gradient is not finite."})
    metrics_file: str | None = field(
        default="metrics.jsonl", metadata={"help": "JSON lines, one per log, below output_dir; None = none."}
    )
    curves: bool = field(default=True, metadata={"help": "Draw curves.png at the end of the training."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.0125, metadata={"help": "Weight decay of matrices other than embeddings."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second-moment decay of Adam."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Added to the root of Adam's second moment."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Below 1 a share of the training, else steps."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Any of transformers' schedules."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Replace non-finite losses in the logs."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps per log line."})

    def __post_init__(self):
        read_numbers(self)
        self._check_fields()
        give_floor(self)
        super().__post_init__()
        require_trackers(self.report_to)

    def _check_fields(self):
        rules = {
            name: (0 < getattr(self, name) <= 1, "in (0, 1]") for name in ("mlm_probability", "eval_mlm_probability")
        }
        shares = ("mask_share", "random_share", "variable_length_share")
        rules |= {name: (0 <= getattr(self, name) <= 1, "in [0, 1]") for name in shares}
        own = ("filter_learning_rate", "filter_weight_decay", "position_learning_rate")
        rules |= {name: ((getattr(self, name) or 0) >= 0, "zero or positive, or None") for name in own}
        whole = isinstance(self.max_length, int) and not isinstance(self.max_length, bool)
        rules |= {
            "random_share": (
                self.random_share >= 0 and self.mask_share + self.random_share <= 1 + 1e-9,
                f"in [0, 1 - mask_share] = [0, {1 - self.mask_share:g}]",
            ),
            "learning_rate": (self.learning_rate >= 0, "zero or positive"),
            "seed": (self.seed >= 0, "zero or positive"),
            "max_length": (
                whole and self.max_length >= 3,
                "an integer of at least 3: a token between [CLS] and [SEP]",
            ),
            "label_smoothing_factor": (self.label_smoothing_factor == 0, "0: smoothed targets have no likelihood"),
            "logging_nan_inf_filter": (
                not (self.logging_nan_inf_filter and self.stop_on_nonfinite),
                "False with stop_on_nonfinite=True: the filter hides the values that should stop the run",
            ),
        }
        require(self, rules)
