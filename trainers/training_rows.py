"""From whatever dataset a user has to rows of token ids."""

from collections.abc import Callable

import datasets
from transformers import AutoTokenizer

from .packing import iter_packed_rows, pack_rows
from .resumable_stream import rank_part
from .tokenization import tokenize_corpus


def training_and_evaluation_rows(
    train_dataset, eval_dataset, tokenizer, args, make_training_rows=None, make_evaluation_rows=None
) -> tuple:
    """Both datasets of a trainer through `training_rows`, the main process first; ``eval_dataset`` may be a dict of datasets.

    Of a stream to train on each process gets its own part, see `resumable_stream`.
    """
    if isinstance(train_dataset, datasets.IterableDataset):
        train_dataset = rank_part(train_dataset, args.process_index, args.world_size)
    with args.main_process_first(desc="tokenising and packing"):
        train_rows = training_rows(train_dataset, tokenizer, args, "train_dataset", make_training_rows)
        if not isinstance(eval_dataset, dict):
            return train_rows, training_rows(eval_dataset, tokenizer, args, "eval_dataset", make_evaluation_rows)
        return train_rows, {
            name: training_rows(rows, tokenizer, args, f'eval_dataset["{name}"]', make_evaluation_rows)
            for name, rows in eval_dataset.items()
        }


def saved_tokenizer(path: str):
    """The tokenizer saved with the model at ``path``; None where there is none, which matters for datasets of text only."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError):
        return None


def training_rows(dataset, tokenizer, args, name: str, make_rows: Callable | None = None):
    """``dataset`` with a column of token ids: as it is when it has ``input_ids``, else tokenised and packed from its text.

    Args:
        dataset: a `datasets` dataset (streaming or not), a list of dicts, any torch dataset of tokenised rows, or None.
        tokenizer: needed for text.
        args: ``text_column``, ``max_length``, ``packing``, ``packing_strategy``, ``reset_position_ids``, ``seed``.
        name: of the argument, for messages.
        make_rows: ``(dataset, tokenizer, args) -> rows`` of a dataset of text; None = packed, or one document each, as ``args``
            say.

    Raises:
        ValueError: no rows, neither ids nor text, or text without a tokenizer.
    """
    if isinstance(dataset, list):
        dataset = datasets.Dataset.from_list(dataset)
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"{name} is empty; it needs at least one row.")
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        return dataset
    columns = dataset.column_names or list(next(iter(dataset), {}))  # a stream may not know them before it is read
    if "input_ids" in columns:
        return dataset
    if args.text_column not in columns:
        raise ValueError(
            f'{name} has neither "input_ids" nor the text column "{args.text_column}"; it has {sorted(columns)}. Set text_column.'
        )
    if tokenizer is None:
        raise ValueError(f'{name} holds text (column "{args.text_column}"); pass the tokenizer as processing_class=.')
    if make_rows is None:
        make_rows = _packed_rows if args.packing else _document_rows
    rows = make_rows(dataset, tokenizer, args)
    if isinstance(rows, datasets.Dataset) and len(rows) == 0:
        raise ValueError(f"{name} gives no rows: no document long enough for one among its {len(dataset)} texts.")
    return rows


def _packed_rows(dataset, tokenizer, args):
    pack = pack_rows if isinstance(dataset, datasets.Dataset) else iter_packed_rows
    return pack(
        dataset,
        tokenizer,
        args.max_length,
        text_column=args.text_column,
        reset_position_ids=args.reset_position_ids,
        strategy=args.packing_strategy,
        seed=args.seed,
    )


def _document_rows(dataset, tokenizer, args):
    """One document per row, cut at ``max_length`` tokens; documents of less than two have no target and are left out."""
    documents = tokenize_corpus(dataset, tokenizer, args.text_column)
    documents = documents.select_columns(["input_ids"]).filter(lambda row: len(row["input_ids"]) >= 2)
    return documents.map(lambda row: {"input_ids": row["input_ids"][: args.max_length]})
