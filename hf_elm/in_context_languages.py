"""Random finite automata as languages to learn in context (after Akyürek et al. 2024, "In-Context Language Learning").

A problem is one language: a fresh automaton, and a row of strings drawn from it, separated by spaces. Whoever continues the row
has to infer the language from the row itself, for no language occurs twice. Strings are drawn by

    P(end of the string)  = 0 at its start, else ``stop_probability``
    P(symbol s)           = (1 - P(end)) / number of edges that leave the state, for every s on such an edge

so that the true distribution of every next character is known. As in the paper no state is final: any prefix is a word. Unlike
there, lengths are geometric, which makes the truth depend on the state alone, and automata are minimal.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


DELIMITER = " "
SYMBOLS = "abcdefghijklmnopqr"  # 18, as many as in the paper
PARTS = ("train", "test")
TEST_SHARE = 0.1  # of all languages
MOST_FAILURES = 2000  # draws in a row that give no new language


@dataclass(frozen=True)
class LanguageSettings:
    """Which languages there are, and how much of each a row shows.

    Args:
        num_symbols: letters of all languages together, at most 18.
        min_symbols: fewest letters that a language may use; each draws how many, and which.
        min_states, max_states: states of an automaton, counted after minimisation.
        max_edges: most edges that leave a state; each state draws how many, from 1.
        stop_probability: of a string's end after each of its symbols.
        length: characters of a row; the last string may be cut.

    Raises:
        ValueError: a field outside its range; the message names the field, the value and the rule.
    """

    num_symbols: int = 6
    min_symbols: int = 3
    min_states: int = 2
    max_states: int = 4
    max_edges: int = 2
    stop_probability: float = 0.1
    length: int = 63

    def __post_init__(self):
        rules = {
            "num_symbols": (1 <= self.num_symbols <= len(SYMBOLS), f"from 1 to {len(SYMBOLS)}"),
            "min_symbols": (1 <= self.min_symbols <= self.num_symbols, f"from 1 to num_symbols={self.num_symbols}"),
            "min_states": (self.min_states >= 1, "at least 1"),
            "max_states": (self.min_states <= self.max_states <= 1000, f"from min_states={self.min_states} to 1000"),
            "max_edges": (self.max_edges >= 1, "at least 1"),
            "stop_probability": (0 < self.stop_probability < 1, "strictly between 0 and 1"),
            "length": (self.length >= 2, "at least 2"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}.")

    @property
    def characters(self) -> str:
        """What rows are made of, in the order of the columns of every distribution: the delimiter, then the symbols."""
        return DELIMITER + SYMBOLS[: self.num_symbols]

    def to_dict(self) -> dict[str, int | float]:
        """Field -> value."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Automaton:
    """A minimal connected automaton in canonical form; equal languages are equal objects.

    Attributes:
        edges: per state, ``(symbol, next state)`` in the order of the symbols; states are numbered as a breadth-first search from
            the start, state 0, meets them. Symbols count from 0 ("a").
    """

    edges: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def num_states(self) -> int:
        """States."""
        return len(self.edges)

    @property
    def part(self) -> str:
        """``"test"`` for a tenth of all languages, by a hash of the language itself, else ``"train"``: whatever the seeds, the two
        never share a language."""
        digest = hashlib.blake2b(repr(self.edges).encode(), digest_size=8).digest()
        return "test" if int.from_bytes(digest, "big") / 2**64 < TEST_SHARE else "train"

    def accepts(self, word: str) -> bool:
        """Whether ``word`` can be read from the start."""
        state = 0
        for character in word:
            state = dict(self.edges[state]).get(SYMBOLS.find(character))
            if state is None:
                return False
        return True

    def sample(self, settings: LanguageSettings, generator: np.random.Generator) -> str:
        """A row of ``settings.length`` characters; it begins with a delimiter."""
        ends, choices = generator.random((2, settings.length)).tolist()
        row, state, inside = [DELIMITER], 0, False
        for end, choice in zip(ends[1:], choices[1:], strict=True):
            if inside and end < settings.stop_probability:
                row.append(DELIMITER)
                state, inside = 0, False
                continue
            symbol, state = self.edges[state][int(choice * len(self.edges[state]))]
            row.append(SYMBOLS[symbol])
            inside = True
        return "".join(row)

    def next_distributions(self, row: str, settings: LanguageSettings) -> np.ndarray:
        """True distribution of the character after each prefix of ``row``, float64 ``(len(row), 1 + num_symbols)``.

        Raises:
            ValueError: ``row`` cannot come from this automaton.
        """
        truth = np.zeros((len(row), 1 + settings.num_symbols))
        state, inside = 0, False
        for place, character in enumerate(row):
            if character == DELIMITER:
                state, inside = 0, False
            else:
                state, inside = dict(self.edges[state]).get(SYMBOLS.find(character)), True
            if state is None:
                raise ValueError(f"row has {character!r} at place {place}, which this automaton does not allow there.")
            end = settings.stop_probability if inside else 0.0
            truth[place, 0] = end
            for symbol, _ in self.edges[state]:
                truth[place, 1 + symbol] = (1 - end) / len(self.edges[state])
        return truth


def random_automaton(settings: LanguageSettings, generator: np.random.Generator) -> Automaton | None:
    """The minimal automaton of a random one; None where it has fewer than ``min_states`` states.

    Drawn, all uniformly, are the number of states, the alphabet, and for each state how many edges leave it, their symbols (all
    different) and where they lead; states that the start does not reach are dropped.
    """
    most = 2 + settings.num_symbols + settings.max_states * (1 + 2 * settings.num_symbols)
    uniform = iter(generator.random(most).tolist())  # one call: drawing number by number takes ten times as long
    states = settings.min_states + int(next(uniform) * (settings.max_states + 1 - settings.min_states))
    size = settings.min_symbols + int(next(uniform) * (settings.num_symbols + 1 - settings.min_symbols))
    alphabet = _chosen(range(settings.num_symbols), size, uniform)
    edges = []
    for _ in range(states):
        count = 1 + int(next(uniform) * min(settings.max_edges, size))
        symbols = _chosen(alphabet, count, uniform)
        edges.append(sorted((symbol, int(next(uniform) * states)) for symbol in symbols))
    automaton = minimal(edges)
    return automaton if automaton.num_states >= settings.min_states else None


def _chosen(items: Sequence[int], count: int, uniform: Iterator[float]) -> list[int]:
    """So many different ones of ``items``, every choice equally likely (Fisher and Yates)."""
    items = list(items)
    for place in range(count):
        other = place + int(next(uniform) * (len(items) - place))
        items[place], items[other] = items[other], items[place]
    return items[:count]


def minimal(edges: Sequence[Sequence[tuple[int, int]]]) -> Automaton:
    """The smallest automaton of the same language, in canonical form.

    Moore's algorithm: states are told apart by the symbols that leave them, then by the classes that these lead to, until nothing
    changes. All states may end a word, so that nothing else tells them apart; with equal edge probabilities the merged states
    have the same distributions too.
    """
    classes = [tuple(symbol for symbol, _ in sorted(out)) for out in edges]
    count = 0
    while len(set(classes)) != count:
        count = len(set(classes))
        names = {name: index for index, name in enumerate(dict.fromkeys(classes))}
        classes = [
            (names[classes[state]], *((symbol, names[classes[target]]) for symbol, target in sorted(out)))
            for state, out in enumerate(edges)
        ]
    number, order, merged = {classes[0]: 0}, [0], []
    for state in order:  # grows while it is read
        for _, target in sorted(edges[state]):
            if classes[target] not in number:
                number[classes[target]] = len(number)
                order.append(target)
        merged.append(tuple((symbol, number[classes[target]]) for symbol, target in sorted(edges[state])))
    return Automaton(tuple(merged))


def languages(settings: LanguageSettings, part: str, seed: int = 0) -> Iterator[tuple[Automaton, str]]:
    """Endless languages of ``part``, all different, each with a row of its strings.

    Args:
        part: ``"train"`` or ``"test"``, see `Automaton.part`.
        seed: of automata and rows.

    Raises:
        ValueError: an unknown part; while drawing: the settings allow too few languages.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}.")
    generator = np.random.default_rng([seed, PARTS.index(part)])
    seen, failures = set(), 0
    while failures < MOST_FAILURES:
        automaton = random_automaton(settings, generator)
        if automaton is None or automaton.part != part or automaton in seen:
            failures += 1
            continue
        seen.add(automaton)
        failures = 0
        yield automaton, automaton.sample(settings, generator)
    raise ValueError(
        f"{settings} allows few languages: {MOST_FAILURES} draws after number {len(seen)} of the {part} part gave no new one; "
        "give more num_symbols, max_states or max_edges."
    )
