"""Whether a run may train from prepared rows, and by which tokenizer."""

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from .families import find_family
from .trainers.prepared_rows import PreparedCorpus
from .trainers.tokenization import build_tokenizer


def prepared_tokenizer(settings: dict[str, Any], corpus: PreparedCorpus) -> PreTrainedTokenizerBase:
    """The tokenizer that made the rows of ``corpus``, after checking that the run's ``settings`` ask for such rows.

    Raises:
        ValueError: the run names another length, strategy, kind of rows or tokenizer; both values are named.
    """
    family, made_by = find_family(settings["family"]), corpus.settings
    if family.encoder != find_family(made_by["family"]).encoder:
        raise ValueError(
            f"data.corpus={settings['data']['corpus']} holds rows for family={made_by['family']}, which family={settings['family']} "
            "cannot train on; prepare the corpus for it."
        )
    keys = ("sequence_length",) if family.encoder else ("sequence_length", "strategy", "reset_position_ids")
    for section, names in (("data", keys), ("tokenizer", ("kind", "path", "vocab_size"))):
        for name in names:
            asked, made = _named(settings[section], name), _named(made_by[section], name)
            if asked != made and not (section == "tokenizer" and settings[section].get(name) is None):
                raise ValueError(
                    f"{section}.{name}={asked}, but the rows in data.corpus={settings['data']['corpus']} were made with {made}; give "
                    f"{section}.{name}={made}, or prepare the corpus anew."
                )
    tokenizer = build_tokenizer(corpus.tokenizer_folder, encoder=family.encoder)
    for name in ("base", "checkpoint"):
        if settings["model"].get(name) is not None:
            _require_same_tokens(f"model.{name}", settings["model"][name], tokenizer, family.encoder)
    return tokenizer


def _named(section, name):
    """A setting as a user writes it; the kind of a tokenizer is told by its path."""
    value = section.get(name)
    if name == "kind":
        return value or ("pretrained" if section.get("path") else "byte")
    return "null" if value is None else value


def prepared_part(corpus: PreparedCorpus, part: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The rows of ``part`` ("held_out", "train", "all") for a model that was saved with ``tokenizer``.

    Raises:
        ValueError: the rows were made by another tokenizer.
    """
    own = build_tokenizer(corpus.tokenizer_folder, encoder=find_family(corpus.settings["family"]).encoder)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the rows in {Path(corpus.tokenizer_folder).parent} ({corpus.name}) were prepared by another tokenizer ({len(own)} tokens) than the model's "
            f"({len(tokenizer)} tokens); evaluate on the text itself, or prepare it by the model's tokenizer."
        )
    if part != "all":
        return corpus.held_out if part == "held_out" else corpus.train
    return concatenate_datasets([corpus.train, corpus.held_out.select_columns(corpus.train.column_names)])


def _require_same_tokens(option, path, tokenizer, encoder):
    try:
        own = build_tokenizer(path, encoder=encoder)
    except ValueError:  # it comes without one
        return
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{option}={path} has another tokenizer than the prepared rows; prepare the corpus with tokenizer.path={path}."
        )
