"""One run of evaluation tasks over both halves of a model: the harness's results side by side, with paired differences."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .continuation_scores import scorer_of
from .document_totals import Estimate, ratio_estimate
from .harness import TASKS_FOLDER, HarnessModel, ScoredRequests, column_of, limit_rows
from .model_fingerprint import file_states
from .saved_models import load_checkpoint
from .task_results import TaskResults


ALL_HALVES = "both"
ENVIRONMENT = ("pretty_env_info", "transformers_version", "lm_eval_version", "upper_git_hash")


def evaluate_tasks(
    checkpoint: str,
    tasks: list[str],
    *,
    half: str = ALL_HALVES,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 8,
    think_steps: int | None = None,
    num_candidates: int | None = None,
    max_gen_toks: int = 256,
    max_length: int | None = None,
    choose: str | None = None,
    choose_from: int = 16,
    answer_pattern: str | None = None,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: str | None = None,
    use_cache: str | None = None,
    include_path: str | None = None,
    bootstrap_iters: int = 1000,
    seed: int = 0,
    **energy_options: Any,
) -> TaskResults:
    """The harness's results for one half of the model or for both, the model being loaded once and every row run once.

    Where Z is not summed whole, tasks of whole texts (perplexity) are also given at both ends of the interval, and of each
    multiple-choice task it is said how many answers the interval leaves open.

    Args:
        checkpoint: folder that a run or save_pretrained wrote, or a Hub id.
        tasks: names of the harness's tasks, groups and tags, or of those shipped with this package.
        half: see `HarnessModel`; ``"both"``: the language model and the energy-based model, or systems 1 and 2.
        max_length: see `HarnessModel`.
        choose, choose_from, answer_pattern: how generations are chosen, see `HarnessModel`.
        limit: documents per task, or below 1 their share.
        use_cache: beginning of the harness's cache files; their names also tell model, half and settings.
        energy_options: ``method``, ``num_samples``, ``exact_top``, ``max_rows`` of a MonArc model.

    Raises:
        ValueError: no such task, or a setting out of range.
    """
    manager = task_manager(tasks, include_path)
    model, tokenizer = load_checkpoint(checkpoint, device, dtype)
    scorer = scorer_of(model, batch_size, think_steps, seed=seed, **energy_options)
    limit_rows(scorer, max_length)
    requests = ScoredRequests(model, tokenizer, scorer)
    columns = list(scorer.columns) if half == ALL_HALVES else [column_of(scorer, half)]
    choice = {"choose": choose, "choose_from": choose_from, "answer_pattern": answer_pattern}
    run = _Run(requests, manager, seed, num_candidates, max_gen_toks, bootstrap_iters, use_cache)
    run.model_options |= choice
    run.options = {"limit": limit, "num_fewshot": num_fewshot, "gen_kwargs": gen_kwargs}
    run.fingerprint = _fingerprint(
        checkpoint, scorer, dtype, seed, num_candidates, max_gen_toks, max_length, *choice.values()
    )
    results = {column: run(column, tasks) for column in columns}
    undecided: dict[str, dict[str, int]] = {}
    if scorer.interval and scorer.columns[-1] in columns:
        found = results[scorer.columns[-1]]
        undecided = _undecided(found, requests, scorer)
        rolling = [name for name, each in found["configs"].items() if each["output_type"] == "loglikelihood_rolling"]
        results |= {end: run(end, rolling) for end in scorer.interval if rolling}
    differences = _differences(*(results[column] for column in columns)) if len(columns) == 2 else {}
    samples = {column: found.pop("samples", {}) for column, found in results.items()}
    return TaskResults(
        checkpoint=checkpoint,
        results=results,
        differences=differences,
        undecided=undecided,
        scoring=scorer.describe(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        samples=samples,
    )


def task_manager(tasks: list[str], include_path: str | None = None):
    """The harness's index of tasks; its own thousands are read only where a name is not one of ours.

    Raises:
        ValueError: a name that is no task, group or tag; the nearest ones are named.
    """
    from lm_eval.tasks import TaskManager

    folders = [str(TASKS_FOLDER), *([include_path] if include_path else [])]
    own = TaskManager(include_path=folders, include_defaults=False)
    if all(own.match_tasks([name]) for name in tasks):
        return own
    manager = TaskManager(include_path=folders)
    for name in tasks:
        if not manager.match_tasks([name]) and not Path(name).is_file():
            near = difflib.get_close_matches(name, [*own.all_tasks, *manager.all_tasks], n=3, cutoff=0.0)
            raise ValueError(f'tasks: "{name}" is no task of the harness or of this package; near: {", ".join(near)}.')
    return manager


class _Run:
    """Runs tasks on one column."""

    options: dict[str, Any]
    fingerprint: str
    environment: dict[str, Any]

    def __init__(self, requests, manager, seed, num_candidates, max_gen_toks, bootstrap_iters, use_cache):
        self.requests, self.manager, self.bootstrap_iters, self.use_cache = (
            requests,
            manager,
            bootstrap_iters,
            use_cache,
        )
        self.environment = {}
        self.model_options = {"seed": seed, "num_candidates": num_candidates, "max_gen_toks": max_gen_toks}

    def __call__(self, column: str, tasks: list[str]) -> dict[str, Any]:
        from lm_eval import evaluator

        cache = None if self.use_cache is None else f"{self.use_cache}_{self.fingerprint}_{column}"
        logger, describe = logging.getLogger("lm_eval"), evaluator.add_env_info
        level = logger.level
        logger.setLevel(logging.ERROR)
        if self.environment:  # the harness asks the system by subprocesses, seconds for each column
            evaluator.add_env_info = lambda results: results.update(self.environment)
        try:
            results = evaluator.simple_evaluate(
                model=HarnessModel(self.requests, half=column, **self.model_options),
                tasks=tasks,
                task_manager=self.manager,
                use_cache=cache,
                bootstrap_iters=self.bootstrap_iters,
                log_samples=True,
                **self.options,
            )
        finally:
            evaluator.add_env_info = describe
            logger.setLevel(level)
        self.environment = {name: results[name] for name in ENVIRONMENT if name in results}
        return results


def _fingerprint(checkpoint, scorer, *settings) -> str:
    """Changes with whatever changes the results: weights' files, dtype, think_steps, how log Z is found, decoding."""
    state = file_states(checkpoint)
    text = json.dumps([str(Path(checkpoint).absolute()), state, scorer.describe(), [str(each) for each in settings]])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _undecided(found, requests, scorer) -> dict[str, dict[str, int]]:
    """Of each multiple-choice task: questions, and those whose likeliest choice is not above the others for certain."""
    counts = {}
    ends = [HarnessModel(requests, half=end) for end in scorer.interval]
    for task, config in found["configs"].items():
        if config["output_type"] != "multiple_choice":
            continue
        samples = found["samples"][task]
        arguments = [SimpleNamespace(args=each) for sample in samples for each in sample["arguments"]]
        lower, upper = (iter(end.loglikelihood(arguments, disable_tqdm=True)) for end in ends)
        open_ = 0
        for sample in samples:
            low, high = (torch.tensor([next(end)[0] for _ in sample["arguments"]]) for end in (lower, upper))
            best = int(((low + high) / 2).argmax())
            high[best] = -math.inf
            open_ += bool(low[best] < high.max())
        counts[task] = {"questions": len(samples), "undecided": open_}
    return counts


def _differences(first, second) -> dict[str, dict[str, Estimate]]:
    """Second minus first column of each metric, paired by document; sums over documents only where they are additive."""
    differences: dict[str, dict[str, Estimate]] = {}
    for task, samples in first["samples"].items():
        others = {(sample["doc_id"], sample["filter"]): sample for sample in second["samples"][task]}
        values: dict[str, list[tuple[float, float]]] = {}
        for sample in samples:
            other = others[(sample["doc_id"], sample["filter"])]
            for metric in sample["metrics"]:
                if (pair := _paired(metric, sample[metric], other[metric])) is not None:
                    values.setdefault(f"{metric},{sample['filter']}", []).append(pair)
        differences[task] = {
            name: ratio_estimate(*torch.tensor(pairs, dtype=torch.float64).unbind(1)) for name, pairs in values.items()
        }
    return differences


def _paired(metric, before, after) -> tuple[float, float] | None:
    """(difference, weight) of one document; None for metrics that are no means."""
    if isinstance(before, tuple | list):
        if metric != "bits_per_byte":
            return None
        return (before[0] - after[0]) / math.log(2), float(before[1])
    try:
        return float(after) - float(before), 1.0
    except (TypeError, ValueError):
        return None
