"""Collections to search: BEIR folders, documentation and code of the library, and facts hidden in long documents."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from .trainers.beir_folders import read_beir
from .trainers.corpus_sources import standard_library
from .trainers.pair_corpora import load_pairs
from .trainers.retrieval_pairs import RetrievalPairs


HIDDEN_FACTS = ("needle", "passkey")
TASKS = ("stdlib", *HIDDEN_FACTS)
NAMES = ("Abel", "Berta", "Carlo", "Dagny", "Emil", "Frida", "Goran", "Hanna", "Igor", "Jolan", "Karim", "Livia", "Marek", "Nadia",
         "Oskar", "Petra", "Quinn", "Ravi", "Selma", "Tomas", "Ulla", "Viktor", "Wanda", "Xenia", "Yusuf", "Zora")  # fmt: skip
THINGS = ("violin", "compass", "ledger", "lantern", "telescope", "saddle", "kettle", "anchor", "mirror", "typewriter", "chessboard",
          "barometer", "accordion", "globe", "sewing machine", "music box", "sundial", "harpoon", "loom", "abacus")  # fmt: skip
PLACES = ("attic", "boathouse", "cellar", "greenhouse", "library", "mill", "stable", "tower", "workshop", "chapel", "bakery",
          "harbour office", "observatory", "granary", "orangery", "archive")  # fmt: skip
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


@dataclass(frozen=True)
class RetrievalTask:
    """Queries to answer from a collection.

    Attributes:
        name: what it is.
        queries, documents: texts.
        relevant: per query, indices of the documents that answer it.
        length, depth: of a hidden fact: tokens of every document, and where the fact stands, 0 = first, 1 = last.
    """

    name: str
    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[Sequence[int]]
    length: int | None = None
    depth: float | None = None


def task_of_pairs(pairs: RetrievalPairs, name: str) -> RetrievalTask:
    """The queries of ``pairs`` that have an answer, against all its documents."""
    rows = [row for row in range(len(pairs)) if pairs.positives[row]]
    if not rows:
        raise ValueError(f"{name} has no query with a positive document.")
    return RetrievalTask(
        name, [pairs.queries[row] for row in rows], pairs.documents, [pairs.positives[row] for row in rows]
    )


def load_task(
    source: str | os.PathLike, split: str | None = None, held_out_fraction: float = 0.1, seed: int = 0
) -> RetrievalTask:
    """``"stdlib"``, a folder of BEIR's layout, or a table of pairs.

    Args:
        split: of a folder (None = test); of the others train or held_out (None).
        held_out_fraction, seed: as in the training run, whose held-out pairs are then used.

    Raises:
        FileNotFoundError, ValueError: see `read_beir` and `load_pairs`; an unknown split.
    """
    source = os.path.expanduser(os.fspath(source))
    if os.path.isdir(source):
        split = split or "test"
        return task_of_pairs(read_beir(source, split), f"{os.path.basename(os.path.abspath(source))}/{split}")
    split = split or "held_out"
    if split not in ("train", "held_out"):
        raise ValueError(f"split={split!r}: task={source} has the parts train and held_out.")
    corpus = load_pairs(source, held_out_fraction=held_out_fraction, seed=seed)
    return task_of_pairs(getattr(corpus, split), f"{source}/{split}")


def hidden_fact_task(
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    depth: float,
    documents: int | None = 50,
    seed: int = 0,
    part: str | None = None,
) -> RetrievalTask:
    """``documents`` documents of ``length`` tokens, each with a fact of its own at ``depth``, and a question about each fact.

    The rest of a document says nothing about its fact: in ``"needle"`` it is a passage of the interpreter's manual, in
    ``"passkey"`` (Zhu et al. 2024, LongEmbed) five sentences over and over. All other documents are distractors of equal form.

    Args:
        length: tokens of each document, special tokens included; never more.
        depth: share of the other text that stands before the fact, in [0, 1].
        documents: how many; None = one for every pair of person and thing that there is.
        part: ``"train"``: facts about four fifths of the pairs of person and thing only; ``"test"``: about the others; None: all.

    Raises:
        ValueError: an argument out of range, a document too short for its fact, a tokenizer without offsets.
    """
    if kind not in HIDDEN_FACTS:
        raise ValueError(f"task must be one of {HIDDEN_FACTS}, got {kind!r}.")
    if not 0 <= depth <= 1:
        raise ValueError(f"depths must lie in [0, 1], got {depth!r}.")
    if part not in (None, "train", "test"):
        raise ValueError(f"part must be train, test or None for all, got {part!r}.")
    subjects = np.arange(len(NAMES) * len(THINGS))
    subjects = subjects if part is None else subjects[(subjects % 5 == 0) == (part == "test")]
    documents = len(subjects) if documents is None else documents
    if not 2 <= documents <= len(subjects):
        raise ValueError(f"documents must be from 2 to {len(subjects)}, got {documents!r}.")
    generator = np.random.default_rng([seed, length, round(1e6 * depth)])
    facts, queries = _facts(kind, documents, generator, subjects)
    filler = _Filler(kind, tokenizer, length)
    texts = [filler.around(fact, depth, generator) for fact in facts]
    return RetrievalTask(kind, queries, texts, [[index] for index in range(documents)], length, depth)


def _facts(kind, count, generator, subjects):
    """So many facts about different ``subjects``, which number the pairs of person and thing, and a question for each."""
    chosen = subjects[generator.choice(len(subjects), count, replace=False)]
    pairs = [(NAMES[i % len(NAMES)], THINGS[i // len(NAMES)]) for i in chosen]
    if kind == "needle":
        places = generator.choice(PLACES, count)
        facts = [
            f"The {thing} of {name} is kept in the {place}."
            for (name, thing), place in zip(pairs, places, strict=True)
        ]
        return facts, [f"Where is the {thing} of {name} kept?" for name, thing in pairs]
    keys = generator.choice(90_000, count, replace=False) + 10_000
    facts = [
        f"The pass key of {name} for the {thing} is {key}. Remember it. {key} is the pass key."
        for (name, thing), key in zip(pairs, keys, strict=True)
    ]
    return facts, [f"What is the pass key of {name} for the {thing}?" for name, thing in pairs]


@lru_cache(maxsize=1)
def _manual() -> str:
    """The topics of the interpreter's manual; of its library the sources where some distribution ships the manual apart."""
    columns = standard_library()
    topics = [text for text, source in zip(*columns.values(), strict=True) if not source.endswith(".py")]
    return " ".join(" ".join(topics or columns["text"]).split())


class _Filler:
    """Text of a given number of tokens around a fact."""

    def __init__(self, kind, tokenizer, length):
        if not tokenizer.is_fast:
            raise ValueError("needle and passkey need a tokenizer with offsets (a fast one); this one has none.")
        self.tokenizer, self.length = tokenizer, length
        if kind == "passkey":
            self.text = GARBAGE * (length // 8 + 2)
        else:
            manual = _manual()
            self.text = manual * (12 * length // len(manual) + 1)
        self.kind = kind

    def around(self, fact, depth, generator):
        room = self.length - self._count(f"\n{fact}\n") - 2  # the two joints may cost a token each
        if room < 0:
            raise ValueError(
                f"lengths={self.length} tokens are too few for a fact of {self.length - room}; give more."
            )
        start = 0 if self.kind == "passkey" else int(generator.integers(max(1, len(self.text) - 12 * self.length)))
        piece = self.text[start : start + 12 * self.length + 64]
        offsets = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        ends = [0, *(end for _, end in offsets[:room])]
        middle, last = ends[round(depth * (len(ends) - 1))], ends[-1]
        text = f"{piece[:middle]}\n{fact}\n{piece[middle:last]}".strip()
        excess = self._count(text) - self.length
        return text if excess <= 0 else f"{piece[:middle]}\n{fact}\n{piece[middle : ends[-1 - excess]]}".strip()

    def _count(self, text):
        return len(self.tokenizer(text, verbose=False)["input_ids"])
