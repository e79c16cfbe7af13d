"""N-best lists without a network or a recogniser: lines of the interpreter's library seen through a noisy channel.

A line of held-out source is the truth. Characters are alike in groups of three, as on the keys of a telephone; each is observed as
one of the other two of its group with probability r / 2 each (r = `NOISE`). The candidates are the line and variants of it that
differ in one character, another one of its group. The score of the first pass is the channel's own,

    f = log P(observation | candidate) = sum over characters  log(1 - r)  where it is observed as it is, else  log(r / 2)

as a recogniser's acoustic score is; f + log p(candidate) is the combination of weight 1/2 of `reranking.RankingRule`.
"""

from __future__ import annotations

import functools
import math
import random
import string

from .nbest_lists import NBestList
from .trainers.corpora import load_corpus


NAME = "library_lines"
ALPHABET = f"{string.ascii_lowercase}_{string.ascii_uppercase}.{string.digits}-=()[],:'\" "
GROUPS = [ALPHABET[i : i + 3] for i in range(0, len(ALPHABET), 3)]
ALIKE = {character: group.replace(character, "") for group in GROUPS for character in group}
NOISE = 0.4
CANDIDATES = 10  # per list
CONTEXT_LINES, CONTEXT_CHARACTERS = 4, 200
SHORTEST, LONGEST = 16, 60  # characters of a line
PER_MODULE = 8


def noisy_lines(seed: int = 0) -> list[NBestList]:
    """Lists from the modules that training on "stdlib" holds out by default, some lines of each, in a random order."""
    lists = []
    for source, text in _held_out():
        rng = random.Random(f"{seed} {source}")
        lines = text.split("\n")
        places = [i for i in range(CONTEXT_LINES, len(lines)) if _fits(lines[i])]
        for place in sorted(rng.sample(places, min(PER_MODULE, len(places)))):
            before = "\n".join(lines[place - CONTEXT_LINES : place])[-CONTEXT_CHARACTERS:]
            lists.append(_list(f"{source}:{place + 1}", f"{before}\n", lines[place].rstrip(), rng))
    random.Random(seed).shuffle(lists)
    return lists


def _list(name: str, context: str, line: str, rng: random.Random) -> NBestList:
    start = len(line) - len(line.lstrip())  # an indentation is seen as it is
    observed = _changed(line, [i for i in range(start, len(line)) if rng.random() < NOISE], rng)
    texts = {line}
    while len(texts) < CANDIDATES:
        texts.add(_changed(line, [rng.randrange(start, len(line))], rng))
    ordered = sorted(texts)
    rng.shuffle(ordered)
    scores = [channel_score(text, observed) for text in ordered]
    return NBestList(name, name, context, ordered, scores, reference=line)


def channel_score(text: str, observed: str) -> float:
    """log P(observed | text), nats; both of the same length."""
    wrong = sum(own != other for own, other in zip(text, observed, strict=True))
    return (len(text) - wrong) * math.log(1 - NOISE) + wrong * math.log(NOISE / 2)


def _changed(line: str, places: list[int], rng: random.Random) -> str:
    characters = list(line)
    for i in places:
        characters[i] = rng.choice(ALIKE[line[i]])
    return "".join(characters)


def _fits(line: str) -> bool:
    return len(line.strip()) >= SHORTEST and len(line) <= LONGEST and set(line.rstrip()) <= ALIKE.keys()


@functools.cache
def _held_out() -> list[tuple[str, str]]:
    documents = load_corpus("stdlib", held_out_fraction=0.05, seed=0).held_out
    return sorted((row["source"], row["text"]) for row in documents)
