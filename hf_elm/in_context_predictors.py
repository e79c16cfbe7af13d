"""Distributions of the next character of rows of strings: by counting n-grams in the row, and by language models.

Every predictor gives float64 ``(rows, places, characters)``: the probabilities, after each prefix of a row, of the characters of
`LanguageSettings.characters`. A model's sum to less than 1 where it believes in other tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .evaluation import AUTO_EXACT_VOCAB
from .in_context_languages import LanguageSettings
from .token_log_probs import evaluation_mode, max_positions, vocabulary_size


THINK_STEPS = (1, 2, 8)


def ngram_distributions(rows: Sequence[str], settings: LanguageSettings, order: int) -> np.ndarray:
    """Interpolated n-gram model of each row's own beginning, ``(rows, places, characters)``.

        p_n(s | h) = [c(h s) + T(h) p_{n-1}(s | h')] / [c(h) + T(h)]                   (Witten and Bell 1991)

    c counts the row so far, T(h) how many different characters have followed the n-1 characters h, h' is h without its first one,
    p_0 is uniform. A history never seen backs off whole.

    Raises:
        ValueError: ``order`` below 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order!r}.")
    return np.stack([_ngrams(row, settings.characters, order) for row in rows])


def _ngrams(row: str, characters: str, order: int) -> np.ndarray:
    size = len(characters)
    number = {character: index for index, character in enumerate(characters)}
    counts: dict[str, np.ndarray] = {}  # history -> how often each character followed
    found = np.empty((len(row), size))
    for place, character in enumerate(row):
        for length in range(min(order - 1, place) + 1):
            history = row[place - length : place]
            counts.setdefault(history, np.zeros(size))[number[character]] += 1
        found[place] = 1 / size
        for length in range(min(order - 1, place + 1) + 1):
            seen = counts.get(row[place + 1 - length : place + 1])
            if seen is None:
                break
            kinds = np.count_nonzero(seen)
            found[place] = (seen + kinds * found[place]) / (seen.sum() + kinds)
    return found


class RowTokens:
    """Rows as token ids, one token per character.

    Attributes:
        ids: int64 ``(rows, places)``.
        columns: the token of each of `LanguageSettings.characters`.

    Raises:
        ValueError: the tokenizer makes something else of the characters than one token of its own each.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[str], settings: LanguageSettings):
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        encoded = tokenizer([settings.characters, *rows], **options)["input_ids"]
        columns = encoded[0]
        fits = len(set(columns)) == len(settings.characters) == len(columns)
        if not fits or tokenizer.unk_token_id in columns or any(len(ids) != len(rows[0]) for ids in encoded[1:]):
            raise ValueError(
                f'the tokenizer does not read the characters "{settings.characters}" as one token each; train with '
                "tokenizer.kind=char or byte."
            )
        self.ids, self.columns = torch.tensor(encoded[1:]), torch.tensor(columns)


@torch.no_grad()
def model_distributions(
    model: PreTrainedModel,
    tokens: RowTokens,
    *,
    think_steps: Sequence[int] = THINK_STEPS,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Name -> ``(rows, places, characters)`` of what a model predicts.

    A plain language model has one name, "LM". MonArc: "LM" and "ELM", whose normaliser is the sum over the whole vocabulary.
    nanoEBM: "system 1", and "system 2, n steps" for each of ``think_steps``.

    Raises:
        ValueError: rows longer than the model's positions, tokens outside its vocabulary, a MonArc vocabulary above 512.
    """
    _check(model, tokens)
    parts: dict[str, list[np.ndarray]] = {}
    kind = getattr(model.config, "model_type", "")
    with evaluation_mode(model), tqdm(total=len(tokens.ids), unit="row", disable=not progress) as bar:
        for ids in tokens.ids.split(batch_size):
            for name, probs in _predictions(model, kind, ids.to(model.device), think_steps):
                parts.setdefault(name, []).append(probs[..., tokens.columns.to(probs.device)].cpu().numpy())
            bar.update(len(ids))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _check(model, tokens):
    vocabulary, positions = vocabulary_size(model), max_positions(model)
    if int(tokens.columns.max()) >= vocabulary:
        raise ValueError(
            f"the tokenizer has token {int(tokens.columns.max())}, the model only {vocabulary}: both must belong together."
        )
    is_monarc = model.config.model_type == "monarc"
    if positions is not None and tokens.ids.shape[1] + is_monarc > positions:  # see `_monarc_predictions`
        more = " and one more is scored" if is_monarc else ""
        raise ValueError(
            f"rows have {tokens.ids.shape[1]} characters{more}, but the model has {positions} positions; lower length."
        )
    if is_monarc and vocabulary > AUTO_EXACT_VOCAB:
        raise ValueError(
            f"the ELM's probabilities are exact sums over its vocabulary, here {vocabulary} tokens and {AUTO_EXACT_VOCAB} at most; "
            "train with tokenizer.kind=char."
        )


def _predictions(model, kind, ids, think_steps) -> Iterator[tuple[str, Tensor]]:
    """(name, probabilities over the vocabulary, float64 ``(batch, places, vocab)``)."""
    if kind == "monarc":
        yield from _monarc_predictions(model, ids)
    elif kind == "nano_ebm" and model.config.use_thinking:
        options = {"output_trajectory": True, "output_energies": False}
        trajectory = model(input_ids=ids, think_steps=max(think_steps), **options).trajectory
        yield "system 1", trajectory[0].double().softmax(-1)
        for steps in think_steps:
            yield f"system 2, {steps} step{'' if steps == 1 else 's'}", trajectory[steps].double().softmax(-1)
    else:
        yield "LM", model(input_ids=ids).logits.double().softmax(-1)


def _monarc_predictions(model, ids):
    """p_LM and p_LM exp(-E) / Z. Every token of the vocabulary is a candidate at every place but the first; the prediction after
    the last place, for which there is no place to stand, is that of a repeated last token."""
    vocabulary = vocabulary_size(model)
    ids = torch.cat([ids, ids[:, -1:]], 1)
    candidates = torch.arange(vocabulary, device=ids.device).view(1, -1, 1).expand(len(ids), -1, ids.shape[1])
    scores = model.score_candidates(ids, candidates)
    log_probs = scores.log_probs[..., 1:].double().transpose(1, 2)  # (batch, places, vocab)
    yield "LM", log_probs.exp()
    yield "ELM", (log_probs - scores.energies[..., 1:].double().transpose(1, 2)).softmax(-1)
