"""Arguments of `RetrievalTrainer`."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .argument_checks import give_floor, read_numbers, require
from .experiment_trackers import require_trackers


LOSSES = ("orthogonal_projection", "info_nce")


@dataclass
class RetrievalConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus what the fine-tuning of an embedding model for retrieval needs.

    The defaults are those that the M2-BERT retrieval models are described with: AdamW at 5e-6, one epoch, 32 negatives per query,
    the orthogonal projection loss, one query per batch.

    Args:
        retrieval_loss: ``"orthogonal_projection"`` (a term per pair: batches may be as small as one query) or ``"info_nce"`` (also
            called multiple negatives ranking; wants many negatives at once, all in memory together).
        absolute_cosine: the orthogonal projection loss with 1 - cos and |cos| in place of their squares.
        in_batch_negatives: the documents of a batch's other queries are negatives too. With ``"info_nce"`` a query is then compared
            with its own batch alone: accumulating over small batches is not the same as one large one, and a large one holds the
            activations of (1 + negatives) documents per query.
        similarity_scale: factor of the cosines in ``"info_nce"`` (inverse temperature).
        matryoshka_dims: the loss is the mean over embeddings cut to each of these sizes and normalised again, e.g. [768, 256, 64];
            None = the whole embedding.
        negatives_per_query: negatives of a query in a batch; missing ones are drawn from the other documents.
        documents_per_forward: encode at most so many documents at once, and encode them once more in the backward pass instead of
            keeping their activations: a query with 32 documents of 32k tokens then needs the memory of one. None = all at once.
        max_length: tokens of a document; the rest is cut off.
        max_query_length: tokens of a query; None = max_length.
        query_prompt, document_prompt: text put before every query and every document.
        stop_on_nonfinite: raise `NonFiniteError` when a loss or the gradient norm is not finite.
        metrics_file: JSON lines, one per log, below ``output_dir``; None = none.
        curves: draw ``curves.png`` below ``output_dir`` at the end of the training, where matplotlib is installed.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the queries.
        per_device_train_batch_size, per_device_eval_batch_size: queries per batch, each with its documents.
        logging_nan_inf_filter: must stay False while ``stop_on_nonfinite``: it hides what the latter looks for.
        logging_steps: optimizer steps per log line; every metric is the mean over them.
        remove_unused_columns: must stay False; batches hold text encoded on the fly.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    retrieval_loss: str = field(
        default="orthogonal_projection", metadata={"help": '"orthogonal_projection" or "info_nce".'}
    )
    absolute_cosine: bool = field(default=False, metadata={"help": "1 - cos and |cos| in place of their squares."})
    in_batch_negatives: bool = field(default=False, metadata={"help": "Other queries' documents are negatives too."})
    similarity_scale: float = field(default=20.0, metadata={"help": 'Factor of the cosines in "info_nce".'})
    matryoshka_dims: list[int] | None = field(default=None, metadata={"help": "Sizes the embedding is cut to."})
    negatives_per_query: int = field(default=32, metadata={"help": "Negatives of a query in a batch."})
    documents_per_forward: int | None = field(
        default=None, metadata={"help": "Documents encoded at once; None = all."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens of a document."})
    max_query_length: int | None = field(default=None, metadata={"help": "Tokens of a query; None = max_length."})
    query_prompt: str = field(default="", metadata={"help": "Text put before every query."})
    document_prompt: str = field(default="", metadata={"help": "Text put before every document."})
    stop_on_nonfinite: bool = field(default=True, metadata={"help": "Stop when a loss or the gradient is not finite."})
    metrics_file: str | None = field(
        default="metrics.jsonl", metadata={"help": "JSON lines, one per log, below output_dir; None = none."}
    )
    curves: bool = field(default=True, metadata={"help": "Draw curves.png at the end of the training."})
    learning_rate: float = field(default=5e-6, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the queries."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Queries per batch."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "Queries per batch of the evaluation."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Replace non-finite losses in the logs."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps per log line."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})

    def __post_init__(self):
        read_numbers(self)
        self._check_fields()
        give_floor(self)
        super().__post_init__()
        require_trackers(self.report_to)

    def _check_fields(self):
        dims = self.matryoshka_dims
        needs_negatives = self.retrieval_loss == "info_nce" and not self.in_batch_negatives
        rules = {
            "retrieval_loss": (self.retrieval_loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            "absolute_cosine": (
                not self.absolute_cosine or self.retrieval_loss == "orthogonal_projection",
                'False with retrieval_loss="info_nce", which has no such variant',
            ),
            "similarity_scale": (self.similarity_scale > 0, "above 0"),
            "matryoshka_dims": (
                dims is None or (isinstance(dims, list) and len(dims) > 0 and all(_is_int(d, 1) for d in dims)),
                "a list of positive integers such as [768, 256, 64], or None",
            ),
            "negatives_per_query": (
                _is_int(self.negatives_per_query, 1 if needs_negatives else 0),
                'at least 1 with retrieval_loss="info_nce", unless in_batch_negatives' if needs_negatives else "0 or more",
            ),
            "documents_per_forward": (
                self.documents_per_forward is None or _is_int(self.documents_per_forward, 1),
                "a positive integer, or None for all at once",
            ),
            "max_length": (_is_int(self.max_length, 1), "a positive integer"),
            "max_query_length": (
                self.max_query_length is None or _is_int(self.max_query_length, 1),
                "a positive integer, or None for max_length",
            ),
            "remove_unused_columns": (not self.remove_unused_columns, "False: batches are made of texts"),
            "logging_nan_inf_filter": (
                not (self.logging_nan_inf_filter and self.stop_on_nonfinite),
                "False with stop_on_nonfinite=True: the filter hides the values that should stop the run",
            ),
        }  # fmt: skip
        require(self, rules)


def _is_int(value, at_least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least
