"""The models of this package in EleutherAI's lm-evaluation-harness, under the name ``hf_elm``.

Importing this module registers the name. The harness's own command line does not know it, so either of

    python -m hf_elm.harness --model hf_elm --model_args pretrained=runs/first,half=elm --tasks library_cloze
    hf-elm eval checkpoint=runs/first tasks=library_cloze half=both

MonArc: ``half=lm`` is the language model inside, ``half=elm`` the energy-based model, whose log-likelihoods are exact where the
vocabulary allows and otherwise the middle of an interval; ``half=elm_lower`` and ``half=elm_upper`` are its ends. nanoEBM:
``half=lm`` (or s1) is system 1, ``half=elm`` (or s2) system 2. Log-likelihoods in nats.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .continuation_batch import continuation_pieces
from .continuation_scores import ContinuationScore, ContinuationScorer, EnergyScorer, Pair, scorer_of
from .harness_choice import ChosenGeneration
from .harness_generation import MAX_NEW_TOKENS, generate_texts, generation_request, request_key, seed_of
from .saved_models import load_checkpoint
from .text_scores import TextScorer


try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(f'the package {error.name} is missing; install it with pip install "hf_elm[eval]".') from error


TASKS_FOLDER = Path(__file__).resolve().parent / "harness_tasks"
HALVES = {"lm": 0, "s1": 0, "elm": 1, "s2": 1}  # -> place in the scorer's columns
AUTO_BATCH = 16


class ScoredRequests:
    """A model, its tokenizer, and every score it has given: shared by the halves, so that each row is run once."""

    def __init__(self, model, tokenizer, scorer: ContinuationScorer):
        self.model, self.tokenizer, self.scorer = model, tokenizer, scorer
        self._scores: dict[Pair, ContinuationScore] = {}

    def scores(self, pairs: list[Pair], progress: bool = True) -> list[ContinuationScore]:
        """Scores in the order of ``pairs``; those not known yet are computed, the longest rows first."""
        keys = [(tuple(context), tuple(continuation)) for context, continuation in pairs]
        missing = sorted(set(keys) - self._scores.keys(), key=lambda key: (-len(key[0]) - len(key[1]), key))
        found = self.scorer.scores((list(context), list(continuation)) for context, continuation in missing)
        bar = tqdm(found, total=len(missing), desc="log-likelihoods", disable=not progress, delay=1.0)
        for key, score in zip(missing, bar, strict=True):
            self._scores[key] = score
        return [self._scores[key] for key in keys]


def limit_rows(scorer, max_length: int | None) -> None:
    """Has ``scorer`` see at most ``max_length`` tokens at once; None = as many as the model has positions.

    Raises:
        ValueError: fewer than 2 tokens, or more than the positions.
    """
    if max_length is None:
        return
    most = scorer.positions
    if max_length < 2 or (most is not None and max_length > most):
        upper = "" if most is None else f" and at most the model's {most} positions"
        raise ValueError(f"max_length must be at least 2{upper}, got {max_length}.")
    scorer.positions = max_length


class HarnessModel(TemplateLM):
    """One half of a saved MonArc or nanoEBM model as the harness's language model.

    Args:
        pretrained: folder that a run or save_pretrained wrote, or a Hub id; or what another `HarnessModel` has loaded
            (its ``requests``), which costs nothing.
        half: lm or elm (nanoEBM: also s1, s2; MonArc without exact Z: also elm_lower, elm_upper).
        batch_size: rows per forward pass; the results do not depend on it.
        device, dtype: as in ``hf-elm evaluate``.
        method, num_samples, exact_top, max_rows, seed: how log Z is found, see `hf_elm.evaluation.evaluate_elm`.
        think_steps: nanoEBM's refinement steps; None = as configured.
        num_candidates: MonArc's candidates per generated token; None = as saved. ``half=lm`` generates with 1.
        choose: how one of ``choose_from`` sampled generations is chosen, by the half's own probabilities (see
            `hf_elm.sample_choice`): likelihood, energy, vote or consistency; None = as the task asks, greedy mostly.
        choose_from: generations to choose from.
        answer_pattern: regular expression of an answer, for vote and consistency; None = the whole generation.
        max_gen_toks: new tokens where a task does not say.
        max_length: tokens that the model sees at once, at most its positions; None: these. A model that was trained on much
            shorter rows than it has positions may be better at their length.
        prefix_token_id: stands before texts that have no context; None = the tokenizer's bos, else eos token.

    Raises:
        ValueError: an argument out of range or that does not concern the model, a tokenizer without a start token.
    """

    def __init__(
        self,
        pretrained: str | ScoredRequests,
        half: str = "elm",
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        method: str = "auto",
        num_samples: int = 64,
        exact_top: int | None = None,
        max_rows: int = 64,
        seed: int = 0,
        think_steps: int | None = None,
        num_candidates: int | None = None,
        choose: str | None = None,
        choose_from: int = 16,
        answer_pattern: str | None = None,
        max_gen_toks: int = MAX_NEW_TOKENS,
        max_length: int | None = None,
        prefix_token_id: int | None = None,
    ):
        super().__init__()
        if isinstance(pretrained, ScoredRequests):
            self.requests = pretrained
        else:
            model, tokenizer = load_checkpoint(pretrained, device, dtype)
            options = {"method": method, "num_samples": num_samples, "exact_top": exact_top, "max_rows": max_rows}
            size = AUTO_BATCH if str(batch_size).startswith("auto") else int(batch_size)
            scorer = scorer_of(model, size, think_steps, **options, seed=seed)
            limit_rows(scorer, max_length)
            self.requests = ScoredRequests(model, tokenizer, scorer)
        self.seed, self.max_gen_toks, self.num_candidates = seed, max_gen_toks, num_candidates
        self.chosen = ChosenGeneration(choose, choose_from, answer_pattern) if choose is not None else None
        self.tokenizer, self.model = self.requests.tokenizer, self.requests.model
        self.half, self.column = half, column_of(self.requests.scorer, half)
        self._prefix = _prefix_token(self.tokenizer, prefix_token_id)
        self._begins = _begins_with_bos(self.tokenizer)
        self._device = self.model.device

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self._prefix

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def max_length(self) -> int | None:
        return self.requests.scorer.positions

    @property
    def batch_size(self) -> int:
        return self.requests.scorer.batch_size

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results: the half and how its numbers were found."""
        return {"half": self.half, "column": self.column, **self.requests.scorer.describe()}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        ids = self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]
        begins = self._begins if add_special_tokens is None else add_special_tokens and self._begins
        return [self.tokenizer.bos_token_id, *ids] if begins and ids[:1] != [self.tokenizer.bos_token_id] else ids

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        pieces = [  # of no token: certain
            continuation_pieces(context, continuation, self.max_length) if continuation else []
            for _, context, continuation in requests
        ]
        scores = iter(self.requests.scores([pair for pairs in pieces for pair in pairs], progress=not disable_tqdm))
        results = []
        for (arguments, _, _), pairs in zip(requests, pieces, strict=True):
            found = [next(scores) for _ in pairs]
            log_prob = sum(score.total(self.column) for score in found)
            results.append((float(log_prob), all(score.greedy[self.column] for score in found)))
            self.cache_hook.add_partial("loglikelihood", arguments, results[-1])
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, nats: windows as wide as the positions, each token predicted once."""
        windows = [self._windows(request.args[0]) for request in requests]
        pairs = [pair for text in windows for pair in text]
        scores = iter(self.requests.scores(pairs, progress=not disable_tqdm))
        results = []
        for request, text in zip(requests, windows, strict=True):
            results.append(sum(next(scores).total(self.column) for _ in text))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def _windows(self, text: str) -> list[Pair]:
        """(context, continuation) pairs of a text; the prefix token stands before its first token."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        room = max(len(ids), 1) if self.max_length is None else self.max_length - 1  # the last token has a place too
        windows = get_rolling_token_windows(ids, self._prefix, room, context_len=1)
        return [(list(context), list(scored)) for context, scored in map(make_disjoint_window, windows)]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Continuations by energy decoding or thinking (``half=lm``: by the language model), greedy unless a task samples."""
        groups: dict[str, list[int]] = {}
        asked = [generation_request(request.args[1], self.max_gen_toks) for request in requests]
        contexts = [self.tok_encode(request.args[0]) or [self._prefix] for request in requests]
        for i in sorted(range(len(requests)), key=lambda i: (len(contexts[i]), i)):
            groups.setdefault(request_key(asked[i]), []).append(i)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="generation", disable=disable_tqdm, delay=1.0) as bar:
            for places in groups.values():
                size = 1 if asked[places[0]]["options"]["do_sample"] else self.batch_size
                for start in range(0, len(places), size):
                    chosen = places[start : start + size]
                    found = self._generated([contexts[i] for i in chosen], asked[chosen[0]])
                    texts |= dict(zip(chosen, found, strict=True))
                    for i in chosen:
                        self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    bar.update(len(chosen))
        return [texts[i] for i in range(len(requests))]

    def _generated(self, contexts, request):
        scorer, plain = self.requests.scorer, HALVES.get(self.half, 1) == 0
        if isinstance(scorer, EnergyScorer):
            fixed = {"num_candidates": 1 if plain else self.num_candidates}
        else:
            fixed = {"use_thinking": not plain, "think_steps": None if plain else scorer.think_steps}
        fixed = {name: value for name, value in fixed.items() if value is not None}
        if self.chosen is not None:
            texts, seeds = TextScorer(scorer, self.tokenizer), [seed_of(self.seed, each, request) for each in contexts]
            pairs = zip(contexts, seeds, strict=True)
            return [self.chosen.text(texts, self.column, each, request, seed, **fixed) for each, seed in pairs]
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.seed, contexts[0], request))
            return generate_texts(self.model, self.tokenizer, contexts, request, self.max_length, **fixed)


def column_of(scorer: ContinuationScorer, half: str) -> str:
    """The scorer's column that ``half`` names.

    Raises:
        ValueError: no such half of this model.
    """
    if half in scorer.columns or half in (scorer.interval or ()):
        return half
    if half in HALVES and HALVES[half] < len(scorer.columns) and half in ("lm", "elm"):
        return scorer.columns[HALVES[half]]
    known = sorted({"lm", "elm", *scorer.columns, *(scorer.interval or ())})
    both = " Both in one table: `hf-elm eval half=both`." if half == "both" else ""
    raise ValueError(f'half must be one of {", ".join(known)} for this model, got "{half}".{both}')


def _prefix_token(tokenizer, given):
    """The token before a text's first one; 0 is a token like any other."""
    for token in (given, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has neither a bos nor an eos token to put before a text; pass prefix_token_id.")


def _begins_with_bos(tokenizer) -> bool:
    ids = tokenizer("a", verbose=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def main() -> None:
    """The harness's own command line, with ``hf_elm`` among its models and our tasks among its tasks."""
    from lm_eval.__main__ import cli_evaluate

    if "--include_path" not in sys.argv and len(sys.argv) > 2:
        sys.argv += ["--include_path", str(TASKS_FOLDER)]
    cli_evaluate()


if __name__ == "__main__":  # this module under its own name, registered once
    importlib.import_module("hf_elm.harness").main()
else:
    register_model("hf_elm")(HarnessModel)
