"""A text's tokens with their log-probabilities, energies and normalisers: what the heat maps show."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..continuation_scores import EnergyScorer
from ..document_scores import windows
from ..evaluation_rows import unknown_token_id


COLOURS = ("gain", "energy")  # what the colour may stand for
BLUE = {"gain": "blue: likelier than in the LM", "energy": "blue: low, likelier"}
UNITS = {"gain": "log p_ELM − log p_LM (nats)", "energy": "energy E (nats)"}


@dataclass
class TextPiece:
    """One token's text, or that of the tokens that share a character; what they add up to, nats.

    Attributes:
        text: the characters; the pieces of a text, joined, are the text.
        tokens: names of its tokens in the vocabulary.
        lm_log_prob, elm_log_prob: log p given all before it; None where there is no prediction: at the first token, and at
            text that the tokenizer does not know.
        energy: E.
        log_z, log_z_lower, log_z_upper: log Z (the middle of the ends where it is not exact), and its ends.
    """

    text: str
    tokens: list[str]
    lm_log_prob: float | None = None
    elm_log_prob: float | None = None
    energy: float | None = None
    log_z: float | None = None
    log_z_lower: float | None = None
    log_z_upper: float | None = None

    def value(self, colour: str) -> float | None:
        """The number behind the colour ("gain" or "energy"), nats; None without a prediction."""
        if self.energy is None:
            return None
        return self.energy if colour == "energy" else self.elm_log_prob - self.lm_log_prob


@dataclass
class TextHeatmap:
    """The pieces of a text.

    Attributes:
        pieces: in order.
        num_tokens: of all pieces; ``num_scored`` of those are of pieces with values.
        how: how log Z was found, and the window where the text is longer.
        is_exact: whether log Z is exact.
        cut: characters of the text that are not shown.
    """

    pieces: list[TextPiece] = field(default_factory=list)
    num_tokens: int = 0
    num_scored: int = 0
    how: str = ""
    is_exact: bool = True
    cut: int = 0

    def nll(self, model: str) -> float:
        """Mean NLL of the scored tokens under "lm" or "elm", nats/token."""
        total = sum(getattr(piece, f"{model}_log_prob") or 0.0 for piece in self.pieces)
        return -total / max(self.num_scored, 1)

    def largest(self, colour: str) -> float:
        """|value| of the strongest colour: that below which 98 % of the pieces lie, nats; above 0."""
        values = sorted(abs(value) for piece in self.pieces if (value := piece.value(colour)) is not None)
        return max(values[round(0.98 * (len(values) - 1))], 1e-6) if values else 1.0


def text_heatmap(
    model,
    tokenizer,
    text: str,
    *,
    max_tokens: int = 2000,
    window: int | None = None,
    method: str = "auto",
    num_samples: int = 64,
    exact_top: int | None = None,
    max_rows: int = 64,
    seed: int = 0,
) -> TextHeatmap:
    """Scores ``text`` token by token under the LM and the ELM of a MonArc model, nats.

    A text longer than the window is read in windows that overlap by half. Tokens that share a character (bytes of
    one that is not ASCII) make one piece, whose values are their sums.

    Args:
        max_tokens: the text is cut after so many.
        window: tokens that the model sees at once, for a saved model those that it was trained on
            (`hf_elm.trained_windows.trained_window`); None = its positions, which bound any other.
        method, num_samples, exact_top, max_rows, seed: see `hf_elm.evaluation.evaluate_elm`.

    Raises:
        TypeError: a model without energies.
        ValueError: an empty text, fewer than two tokens, a tokenizer that does not tell where its tokens stand.
    """
    if not hasattr(model, "score_candidates"):
        raise TypeError(
            f"model must be a MonArcForCausalLM, which has energies of tokens; got {type(model).__name__}."
        )
    if not text:
        raise ValueError("text is empty; give some text.")
    for name, value in {"max_tokens": max_tokens, "window": window}.items():
        if value is not None and value < 2:
            raise ValueError(f"{name} must be at least 2, got {value}.")
    ids, groups, cut = text_pieces(tokenizer, text, max_tokens)
    if len(ids) < 2:
        raise ValueError(f"text={text[:40]!r} has {len(ids)} token; the first has no prediction, so give longer text.")
    options = {
        "method": method,
        "num_samples": num_samples,
        "exact_top": exact_top,
        "max_rows": max_rows,
        "seed": seed,
    }
    scorer = EnergyScorer(model, **options)
    window = min((each for each in (window, scorer.positions) if each is not None), default=None)
    columns = _token_columns(scorer, ids, window)
    if (unknown := unknown_token_id(tokenizer)) is not None:
        known = torch.tensor(ids) != unknown
        columns = {name: values.masked_fill(~known, torch.nan) for name, values in columns.items()}
    names = tokenizer.convert_ids_to_tokens(ids)
    pieces = [_piece(shown, places, names, columns) for shown, places in groups]
    scored = sum(len(piece.tokens) for piece in pieces if piece.energy is not None)
    if not scored:
        raise ValueError("text has no token that the tokenizer knows after the first one; give other text.")
    found = scorer.describe()
    how = f"log Z exact over {found['vocab_size']:,} tokens"
    if scorer.interval is not None:
        samples = f", {found['num_samples']} samples" if found["num_samples"] else ""
        how = f"log Z between bounds: {found['exact_top']} likeliest tokens exact{samples}"
    if window is not None and len(ids) > window:
        how += f"; windows of {window} tokens"
    shown = sum(len(places) for _, places in groups)
    return TextHeatmap(pieces, shown, scored, how, scorer.interval is None, cut)


def text_pieces(tokenizer, text: str, max_tokens: int) -> tuple[list[int], list[tuple[str, list[int]]], int]:
    """Token ids, the text cut into (characters, places of their tokens), and how many characters were cut off at the end.

    Tokens of one character share a piece; characters that no token stands for (of a tokenizer that drops spaces) go with
    the next one. Special tokens at the start give context and have no piece; the end of a document is left out.

    Raises:
        ValueError: the tokenizer does not tell where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in the text; a fast tokenizer does."
        )
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids, spans, special = (encoded[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
    if ids and special[-1]:
        ids, spans = ids[:-1], spans[:-1]
    groups: list[list] = []  # end, places
    for place, (start, end) in enumerate(spans[:max_tokens]):
        if special[place] and start == end:
            continue
        if groups and (start < groups[-1][0] or groups[-1][0] == (groups[-2][0] if len(groups) > 1 else 0)):
            groups[-1] = [
                max(end, groups[-1][0]),
                [*groups[-1][1], place],
            ]  # the same character, or nothing shown so far
        else:
            groups.append([end, [place]])
    if not groups:
        return ids[:max_tokens], [], len(text)
    if len(ids) <= max_tokens:
        groups[-1][0] = len(text)
    starts = [0, *(end for end, _ in groups[:-1])]
    pieces = [(text[start:end], places) for start, (end, places) in zip(starts, groups, strict=True)]
    return ids[:max_tokens], pieces, len(text) - groups[-1][0]


def _token_columns(scorer: EnergyScorer, ids: list[int], window: int | None) -> dict[str, torch.Tensor]:
    """log p under both models, E and log Z of every token, ``(tokens)``; NaN at the first, which nothing predicts."""
    pairs = windows(ids, window)
    scores = list(scorer.scores(pairs))
    lower, upper = scorer.interval or ("elm", "elm")
    parts = {name: [score.log_probs[name] for score in scores] for name in ("lm", "elm", lower, upper)}
    parts["energy"] = [score.energies for score in scores]
    first = torch.full((1,), torch.nan, dtype=torch.float64)
    columns = {name: torch.cat([first, *values]) for name, values in parts.items()}
    claimed = columns["lm"] - columns["energy"]  # log p_ELM = log p_LM - E - log Z
    return {
        "lm_log_prob": columns["lm"],
        "elm_log_prob": columns["elm"],
        "energy": columns["energy"],
        "log_z": claimed - columns["elm"],
        "log_z_lower": claimed - columns[upper],
        "log_z_upper": claimed - columns[lower],
    }


def _piece(shown, places, names, columns) -> TextPiece:
    piece = TextPiece(shown, [names[place] for place in places])
    sums = {name: values[places].sum().item() for name, values in columns.items()}
    if all(value == value for value in sums.values()):  # no NaN
        for name, value in sums.items():
            setattr(piece, name, value)
    return piece
