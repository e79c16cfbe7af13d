"""Documents of the offline tasks, made from the held-out part of the corpus "stdlib".

Held out is what training on "stdlib" holds out by default (``data.held_out_fraction=0.05``, ``seed=0``). The texts are those of
the running interpreter, so that numbers of different Python versions are of different texts.
"""

import ast
import functools
import random

from datasets import Dataset

from hf_elm.trainers.corpora import load_corpus


CHOICES = 4
PER_MODULE = 8  # questions
CONTEXT_LINES, CONTEXT_CHARACTERS = 8, 400
SHORTEST_LINE = 12  # characters that are no space
LONGEST_LINE = 80
DOCUMENT_CHARACTERS = 2000


def cloze(**_) -> dict[str, Dataset]:
    """Questions: some lines of a module, and which of four lines of that module comes next."""
    questions = []
    for source, text in _held_out():
        lines = [line.rstrip() for line in text.split("\n")]
        rng = random.Random(f"cloze {source}")
        places = [i for i in range(CONTEXT_LINES, len(lines)) if _is_long(lines[i]) and lines[i - 1].strip()]
        for place in sorted(rng.sample(places, min(PER_MODULE, len(places)))):
            question = _question(lines, place, rng)
            if question is not None:
                questions.append({"source": source, **question})
    return {"test": Dataset.from_list(questions)}


def perplexity(**_) -> dict[str, Dataset]:
    """The first characters of each module, up to the end of a line."""
    rows = [{"source": source, "page": _cut(text)} for source, text in _held_out()]
    return {"test": Dataset.from_list([row for row in rows if row["page"].strip()])}


def completion(**_) -> dict[str, Dataset]:
    """Constructors cut after ``self.name =``, where the argument of that name follows."""
    rows = []
    for source, text in _held_out():
        for context, target in _assignments(text):
            rows.append({"source": source, "context": context, "target": target})
    return {"test": Dataset.from_list(rows)}


@functools.cache
def _held_out():
    documents = load_corpus("stdlib", held_out_fraction=0.05, seed=0).held_out
    return sorted((row["source"], row["text"]) for row in documents)


def _is_long(line):
    return len(line.strip()) >= SHORTEST_LINE and len(line) <= LONGEST_LINE


def _question(lines, place, rng):
    answer = lines[place].strip()
    others = sorted({line.strip() for line in lines if _is_long(line)} - {answer})
    if len(others) < CHOICES - 1:
        return None
    choices = [answer, *rng.sample(others, CHOICES - 1)]
    rng.shuffle(choices)
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    context = "\n".join(lines[place - CONTEXT_LINES : place])[-CONTEXT_CHARACTERS:]
    return {"context": f"{context}\n{indent}", "choices": choices, "answer": choices.index(answer)}


def _cut(text):
    return text if len(text) <= DOCUMENT_CHARACTERS else text[:DOCUMENT_CHARACTERS].rpartition("\n")[0]


def _assignments(text):
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a page of the manual
        return
    lines = text.split("\n")
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name != "__init__":
            continue
        for statement in function.body:
            name = _copied_argument(statement)
            if name is not None and statement.lineno - function.lineno <= CONTEXT_LINES:
                last = lines[statement.lineno - 1]
                before = lines[function.lineno - 1 : statement.lineno - 1]
                yield "\n".join([*before, last[: last.index("=") + 1]]), name


def _copied_argument(statement) -> str | None:
    """``name`` of the statement ``self.name = name`` on one line."""
    if not (
        isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.value, ast.Name)
    ):
        return None
    target = statement.targets[0]
    same = isinstance(target, ast.Attribute) and target.attr == statement.value.id
    return target.attr if same and statement.lineno == statement.end_lineno else None
