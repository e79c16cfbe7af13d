"""Generation for evaluation tasks: greedy or sampled continuations that end at a stop string."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from .continuation_batch import ContinuationBatch


MAX_NEW_TOKENS = 256
_IGNORED = {"until", "max_gen_toks", "max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k"}


class StopStrings(StoppingCriteria):
    """A row is finished once its new text holds one of the stop strings."""

    def __init__(self, tokenizer, strings: list[str], prompt_length: int):
        self.tokenizer, self.strings, self.prompt_length = tokenizer, strings, prompt_length

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :], skip_special_tokens=True)
        found = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def cut_at(text: str, strings: list[str]) -> str:
    """``text`` before the first of the stop strings."""
    places = [place for string in strings if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text


def generation_request(arguments: dict[str, Any] | None, max_new_tokens: int = MAX_NEW_TOKENS) -> dict[str, Any]:
    """A task's generation arguments as ``until`` (a list), ``max_new_tokens`` and options of ``generate``.

    ``temperature=0`` means greedy, as in the harness.
    """
    given = dict(arguments or {})
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else [string for string in until if string]
    length = given.get("max_gen_toks", given.get("max_new_tokens", max_new_tokens))
    temperature = given.get("temperature")
    samples = bool(given.get("do_sample", temperature is not None and temperature > 0)) and temperature != 0
    options = {name: value for name, value in given.items() if name not in _IGNORED}
    options["do_sample"] = samples
    if samples:
        names = ("temperature", "top_p", "top_k")
        options |= {name: given[name] for name in names if given.get(name) is not None}
    return {"until": until, "max_new_tokens": int(length), "options": options}


def request_key(request: dict[str, Any]) -> str:
    """Requests of equal key can be generated together."""
    return json.dumps(request, sort_keys=True, default=str)


def generate_texts(model, tokenizer, contexts: list[list[int]], request: dict, positions: int | None, **fixed):
    """One continuation per context of token ids, cut before the first stop string.

    Contexts are cut from the left, so that the new tokens fit into the positions; at most half of the positions are for them.

    Args:
        request: as made by `generation_request`.
        fixed: options of ``generate`` that win, such as ``num_candidates=1``.
    """
    new_tokens = request["max_new_tokens"]
    if positions is not None:
        new_tokens = max(1, min(new_tokens, positions // 2))
        contexts = [context[-(positions - new_tokens) :] for context in contexts]
    batch = ContinuationBatch.of([([], context) for context in contexts], model.device)
    stop = StopStrings(tokenizer, request["until"], batch.input_ids.shape[1])
    output = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=new_tokens,
        stopping_criteria=StoppingCriteriaList([stop] if request["until"] else []),
        **request["options"] | fixed,
    )
    texts = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [cut_at(text, request["until"]) for text in texts]


def seed_of(seed: int, context: list[int], request: dict) -> int:
    """Seed of one sampled continuation: the same whatever else is asked."""
    text = f"{seed} {context} {request_key(request)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
