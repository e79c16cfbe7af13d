"""Saved models scored on languages that they have not seen, and the corpus of languages by which they come to know such rows."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from . import run_folder
from .in_context_evaluation import InContextResult, evaluate_in_context
from .in_context_languages import PARTS, LanguageSettings, languages
from .in_context_predictors import RowTokens, model_distributions
from .in_context_run import LANGUAGES_FILE, check_think_steps, ngram_predictions, unseen_problems


CORPUS_SETTINGS = f".{LANGUAGES_FILE}"  # hidden, so that the corpus consists of its tables alone


def score_checkpoint(
    checkpoint: str, settings: LanguageSettings, *, languages: int = 100, think_steps: Sequence[int] | None = None,
    seed: int = 0, device: str | None = None, dtype: str | None = None, batch_size: int = 16, progress: bool = True,
) -> InContextResult:  # fmt: skip
    """`evaluate_in_context` of a saved model, MonArc, nanoEBM or any other causal LM, beside n-grams of the rows.

    Args:
        languages: of the test part, each with one row.
        think_steps: refinement steps at which a nanoEBM is scored; None is 1, 2 and 8.

    Raises:
        FileNotFoundError, ValueError: a checkpoint that cannot be used for rows of these languages.
    """
    from .model_comparison import load_causal

    for name, value in (("languages", languages), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")
    steps = check_think_steps(think_steps)
    model, tokenizer = load_causal(checkpoint, device, dtype)
    problems = unseen_problems(settings, languages, seed)
    rows = [row for _, row in problems]
    tokens = RowTokens(tokenizer, rows, settings)
    found = model_distributions(model, tokens, think_steps=steps, batch_size=batch_size, progress=progress)
    facts = {name: {"parameters": model.num_parameters()} for name in found}
    predictions = ngram_predictions(rows, settings) | found
    return evaluate_in_context(problems, predictions, settings, baseline=next(iter(found)), facts=facts)


def write_corpus(
    folder: str | Path, settings: LanguageSettings, train_languages: int = 20_000, test_languages: int = 100, seed: int = 0
) -> None:  # fmt: skip
    """Rows of languages as ``train.jsonl`` and ``test.jsonl`` in a new folder, for ``data.corpus``; a row is a document.

    The languages of the two files differ, by `Automaton.part`; those of test.jsonl are what `score_checkpoint` scores with the
    same seed. The settings lie beside the files, hidden.

    Raises:
        FileExistsError: ``folder`` is not empty.
        ValueError: a count below 1, settings that allow too few languages.
    """
    counts = dict(zip(PARTS, (train_languages, test_languages), strict=True))
    for part, count in counts.items():
        if count < 1:
            raise ValueError(f"{part}_languages must be at least 1, got {count!r}.")
    with run_folder.new_folder(folder, "write") as out:
        for part, count in counts.items():
            rows = (json.dumps({"text": row}) for _, row in itertools.islice(languages(settings, part, seed), count))
            run_folder.write_atomically(out / f"{part}.jsonl", "\n".join(rows) + "\n")
        run_folder.write_json(out / CORPUS_SETTINGS, settings.to_dict())


def languages_of_checkpoint(checkpoint: str) -> dict[str, Any]:
    """Fields of `LanguageSettings` by which a model was trained: as its folder says, or the corpus of its run; {} where neither tells.

    Raises:
        ValueError: a file of settings that is damaged.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return {}
    for recipe in (folder / run_folder.RECIPE, folder.resolve().parent / run_folder.RECIPE):
        corpus = _corpus_of(recipe)
        if corpus is not None and (corpus / CORPUS_SETTINGS).is_file():
            return _read(corpus / CORPUS_SETTINGS)
    return _read(folder / LANGUAGES_FILE) if (folder / LANGUAGES_FILE).is_file() else {}


def _corpus_of(recipe: Path) -> Path | None:
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):  # none there, or none of ours
        return None
    data = content.get("data") if isinstance(content, dict) else None
    corpus = data.get("corpus") if isinstance(data, dict) else None
    return Path(corpus).expanduser() if isinstance(corpus, str) else None


def _read(path: Path) -> dict[str, Any]:
    names = {item.name for item in fields(LanguageSettings)}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict) or set(found) - names:
        raise ValueError(
            f"{path} is damaged: it holds no settings of languages ({found}); remove it and give them as keys."
        )
    return found
