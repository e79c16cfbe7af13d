"""Scores of documents as rows of a table: log-likelihoods under every distribution of a model, energies, bits/byte.

MonArc: its LM (``lm``), the energy-based model (``elm``, with both ends where log Z is not summed whole) and the energy E.
nanoEBM: before (``s1``) and after thinking (``s2``). Any other causal LM: ``lm``. Of each distribution, over the counted tokens:

    <name>_log_prob        log p(document), nats; the first token, which has nothing before it, is left out
    <name>_nats_per_token  -log p / tokens
    <name>_bits_per_byte   -log p / (log 2 * UTF-8 bytes)

With an interval, ``elm_log_prob_lower <= elm_log_prob <= elm_log_prob_upper``, and likewise for the other two, whose lower ends come
from the upper end of log p. Energies: lower is likelier; ``energy`` is their sum, ``energy_per_token`` their mean, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from .continuation_scores import ContinuationScorer, TokenEnergyScorer, scorer_of
from .document_scores import PART_TOKENS, DocumentScore, DocumentScorer, parts


Row = dict[str, Any]
NO_LOG_Z = "none"
COUNTS = ("num_tokens", "num_bytes", "num_unknown_tokens")
QUANTITIES = ("log_prob", "nats_per_token", "bits_per_byte")
ENERGIES = ("energy", "energy_per_token")
OPPOSITE = {"_lower": "_upper", "_upper": "_lower", "": ""}


def score_texts(
    model,
    tokenizer,
    texts: Iterable[str],
    *,
    window: int | None = None,
    tokens: bool = False,
    progress: bool = True,
    **scoring,
) -> list[Row]:
    """One row per text: ``num_tokens``, ``num_bytes``, ``num_unknown_tokens`` and the scores above, None where nothing is counted.

    Args:
        model: MonArc, nanoEBM or any other causal LM.
        window: tokens that the model sees at once (see `DocumentScorer`), best the length of the rows that it was trained on
            (`hf_elm.trained_windows.trained_window`); None = its positions.
        tokens: with the lists of `token_columns` for every token.
        scoring: of `make_scorer`.
    """
    documents = DocumentScorer(make_scorer(model, **scoring), tokenizer, window)
    ids = [documents.token_ids(text) for text in texts]
    rows: list[Row] = []
    total = sum(max(len(each) - 1, 0) for each in ids)
    with tqdm(total=total, desc="Scoring", unit="token", disable=not progress, delay=1.0) as bar:
        for part in parts([len(each) for each in ids], PART_TOKENS):
            found = documents.scores(ids[part], lambda _, count: bar.update(count))
            rows += [score_row(score, documents, tokens) for score in found]
    return rows


def make_scorer(
    model, batch_size: int = 8, think_steps: int | None = None, method: str = "auto", **energy_options: Any
) -> ContinuationScorer:
    """The scorer of ``model``.

    Args:
        batch_size: windows per forward pass.
        think_steps: nanoEBM: refinement steps; None = as configured.
        method: MonArc: how log Z is found, as of `hf_elm.evaluation.evaluate_elm`, or ``"none"``: the LM and the energies alone, in
            two passes whatever the vocabulary.
        energy_options: MonArc: ``num_samples``, ``exact_top``, ``max_rows``, ``seed`` of `EnergyScorer`.
    """
    if not hasattr(model, "score_candidates"):
        return scorer_of(model, batch_size, think_steps)
    if method == NO_LOG_Z:
        return TokenEnergyScorer(model, batch_size)
    return scorer_of(model, batch_size, method=method, **energy_options)


def score_columns(scorer: ContinuationScorer, tokens: bool = False) -> dict[str, str]:
    """Columns of the rows of ``scorer``, in order, and what they hold (see `scored_tables.write_table`)."""
    columns = dict.fromkeys(COUNTS, "int")
    for name, end in _distributions(scorer):
        columns |= {f"{name}_{quantity}{end}": "float" for quantity in QUANTITIES}
    columns |= dict.fromkeys(ENERGIES if _has_energies(scorer) else (), "float")
    return columns | (token_columns(scorer) if tokens else {})


def token_columns(scorer: ContinuationScorer) -> dict[str, str]:
    """Columns of lists with an entry per token, None where it is not counted; ``token_ids`` and ``token_texts`` have them all."""
    columns = {"token_ids": "ints", "token_texts": "texts"}
    columns |= {f"token_{name}_log_probs{end}": "floats" for name, end in _distributions(scorer)}
    return columns | ({"token_energies": "floats"} if _has_energies(scorer) else {})


def score_row(score: DocumentScore, documents: DocumentScorer, tokens: bool = False) -> Row:
    """The row of one document, ready for JSON but for infinities."""
    scorer = documents.scorer
    row: Row = dict.fromkeys(score_columns(scorer))
    row |= zip(COUNTS, (score.num_tokens, score.num_bytes, score.num_unknown), strict=True)
    if score.num_tokens:
        for name, end in _distributions(scorer):
            log_prob, cost = score.log_prob(f"{name}{end}"), -score.log_prob(f"{name}{OPPOSITE[end]}")
            row[f"{name}_log_prob{end}"] = log_prob
            row[f"{name}_nats_per_token{end}"] = cost / score.num_tokens
            row[f"{name}_bits_per_byte{end}"] = cost / math.log(2) / score.num_bytes if score.num_bytes else None
        if score.energies is not None:
            row["energy"] = score.energies.sum().item()
            row["energy_per_token"] = row["energy"] / score.num_tokens
    return row | (_token_lists(score, documents) if tokens else {})


def _token_lists(score: DocumentScore, documents: DocumentScorer) -> Row:
    ids, tokenizer = score.token_ids, documents.tokenizer
    row: Row = {name: [None] * len(ids) for name in token_columns(documents.scorer)}
    texts = {token: tokenizer.decode([token]) for token in set(ids)}
    row |= {"token_ids": ids, "token_texts": [texts[token] for token in ids]}
    for name, end in _distributions(documents.scorer):
        if f"{name}{end}" in score.log_probs:
            row[f"token_{name}_log_probs{end}"] = _counted(score.log_probs[f"{name}{end}"], score.counted)
    if score.energies is not None:
        row["token_energies"] = _counted(score.energies, score.counted)
    return row


def _counted(values: Tensor, counted: Tensor) -> list[float | None]:
    return [value if kept else None for value, kept in zip(values.tolist(), counted.tolist(), strict=True)]


def _distributions(scorer: ContinuationScorer) -> list[tuple[str, str]]:
    """(name, end) of every distribution: ("elm", "") and, with an interval, ("elm", "_lower"), ("elm", "_upper")."""
    own = [(name, "") for name in scorer.columns]
    return own + ([(scorer.columns[-1], "_lower"), (scorer.columns[-1], "_upper")] if scorer.interval else [])


def _has_energies(scorer: ContinuationScorer) -> bool:
    return hasattr(scorer.model, "score_candidates")
