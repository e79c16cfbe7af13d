"""What ``hf-elm rerank`` does once its arguments are checked: score lists in parts, keep each part, measure at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .model_comparison import load_causal
from .model_fingerprint import model_fingerprint, sha256
from .nbest_lists import NBestList
from .partial_rows import PartialRows
from .reranking import RankingRule, open_swaps, reranked, scored_candidates
from .reranking_measures import RerankingMeasures, measure
from .text_scores import ENERGY, TextScorer, scorer_by
from .trained_windows import common_window


BATCHES_PER_PART = 16  # what an interruption loses at most
COMBINED = "combined"


def rerank_file(
    lists: list[NBestList],
    output: Path,
    checkpoint: str,
    *,
    by: str | None = None,
    weight: float = 1.0,
    normalize: str = "none",
    suffix: str = "",
    window: int | None = None,
    batch_size: int = 8,
    think_steps: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    **energy_options: Any,
) -> RerankingMeasures | None:
    """Writes the lists in their new orders to ``output``, or continues the run that began to; what `measure` finds.

    Args:
        checkpoint: folder or Hub id of a MonArc, nanoEBM or any other causal LM.
        by, batch_size, think_steps, energy_options: of `scorer_by`.
        weight, normalize: of `RankingRule`.
        suffix: of `TextScorer`.
        window: tokens that the model sees at once; None = the rows that it was trained on, see `hf_elm.trained_windows`.

    Raises:
        FileExistsError: the rows that are there belong to other lists or settings.
        ValueError: see `scorer_by`, `RankingRule` and `TextScorer.pairs`; a list is named by file and line.
    """
    model, tokenizer = load_causal(checkpoint, device, dtype)
    scorer, column = scorer_by(model, by, batch_size, think_steps, **energy_options)
    rule = RankingRule(column, weight, normalize)
    chosen = common_window([checkpoint], window)
    texts = TextScorer(scorer, tokenizer, suffix, chosen.tokens)
    _check(lists, texts, rule)
    partial = PartialRows(output, _settings(lists, texts, rule))
    if partial.done:
        sys.stderr.write(f"continuing after {partial.done} of {len(lists)} lists, from {partial.folder}\n")
    try:
        with tqdm(total=len(lists), initial=partial.done, desc="Reranking", unit="list", disable=not progress) as bar:
            for part in _parts(lists, partial.done, BATCHES_PER_PART * batch_size):
                partial.append(rerank_lists(part, texts, rule))
                bar.update(len(part))
    except KeyboardInterrupt:
        rest = f"{partial.done} of {len(lists)} lists are done and kept in {partial.folder}"
        sys.stderr.write(f"\n{rest}; the same command continues.\n")
        raise
    found = _measured(partial, texts, rule)
    if found is not None and texts.window is not None:
        found.notes.append(f"at most {texts.window:,} tokens seen at once: {chosen.origin}")
    partial.finish()  # last: an interruption of the measuring loses nothing
    return found


def _settings(lists: list[NBestList], texts: TextScorer, rule: RankingRule) -> dict[str, Any]:
    """Whatever decides the rows, with digests in the place of lists and weights."""
    return {
        "lists": len(lists),
        "lists_sha256": sha256(json.dumps(vars(each)).encode() for each in lists),
        **model_fingerprint(texts.scorer.model, texts.tokenizer),
        **vars(rule),
        "suffix": texts.suffix,
        "window": texts.window,
        "scoring": texts.scorer.describe(),
    }


def rerank_lists(lists: list[NBestList], texts: TextScorer, rule: RankingRule) -> list[dict[str, Any]]:
    """One row per list, ready for JSON: its candidates by ``rule``, best first, each with the scores that are known.

    A row has ``id``, ``context``, ``best`` (the first text), ``candidates``, ``reference`` or ``label`` where given, and where
    scores are intervals ``open_swaps`` and ``first_place_open`` (see `reranking.open_swaps`).
    """
    rows = []
    scores = texts.scores((each.context, each.texts) for each in lists)
    for nbest, found in zip(lists, scores, strict=True):
        ordered = reranked(scored_candidates(nbest, found), rule)
        candidates = [{"score": each.value(rule)} | each.to_dict() for each in ordered]
        row = {"id": nbest.id, "context": nbest.context, "best": ordered[0].text, "candidates": candidates}
        judged = {"reference": nbest.reference, "label": nbest.label}
        row |= {name: value for name, value in judged.items() if value is not None}
        if rule.by in texts.scorer.columns and texts.scorer.interval:
            row["open_swaps"], row["first_place_open"] = open_swaps(ordered, rule)
        rows.append(row)
    return rows


def _check(lists: list[NBestList], texts: TextScorer, rule: RankingRule) -> None:
    """What cannot be scored is found before hours are spent."""
    for nbest in tqdm(lists, desc="Reading", unit="list", leave=False, delay=1.0):
        if rule.weight < 1 and nbest.first_pass is None:
            raise ValueError(
                f"{nbest.origin}: weight={rule.weight} needs a score of the first pass with every candidate; or give weight=1."
            )
        try:
            texts.pairs(nbest.context, nbest.texts)
        except ValueError as error:
            raise ValueError(f"{nbest.origin}: {error}") from None


def _parts(lists: list[NBestList], start: int, texts_per_part: int) -> Iterator[list[NBestList]]:
    part, count = [], 0
    for each in lists[start:]:
        part.append(each)
        count += len(each.texts)
        if count >= texts_per_part:
            yield part
            part, count = [], 0
    if part:
        yield part


def _measured(partial: PartialRows, texts: TextScorer, rule: RankingRule) -> RerankingMeasures | None:
    """Measures of the written rows, for every column by itself and for the rule."""
    by = [column for column in texts.scorer.columns if column != rule.by]
    by += [ENERGY] if rule.by == "elm" else []
    rules = {column: RankingRule(column, normalize=rule.normalize) for column in by}
    rules[rule.by] = RankingRule(rule.by, normalize=rule.normalize)
    if rule.weight < 1:
        rules[COMBINED] = rule
    found = measure(partial.rows(), rules)
    if found is not None and rule.weight < 1:
        found.notes.append(f"{COMBINED}: {rule.weight:g} {rule.by} + {1 - rule.weight:g} first pass")
    if texts.scorer.interval and rule.by in texts.scorer.columns:
        swaps = [(row["open_swaps"], row["first_place_open"]) for row in partial.rows()]
        found = found or RerankingMeasures(0, 0)
        found.open_swaps, found.open_lists = sum(n for n, _ in swaps), sum(first for _, first in swaps)
    return found
