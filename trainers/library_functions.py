"""Functions of the interpreter's own library as pairs of documentation and code: real text on every machine."""

import ast
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from .corpus_sources import standard_library


MIN_WORDS, MAX_CHARS = 4, 4000  # of a description; of a function's code


@dataclass(frozen=True)
class DescribedFunction:
    """A function: ``name`` ("file:Class.method"), ``file``, first paragraph of its docstring, code without the docstring."""

    name: str
    file: str
    description: str
    code: str


@lru_cache(maxsize=1)
def described_functions() -> tuple[DescribedFunction, ...]:
    """Functions whose docstring says something, in the order of files.

    Left out: descriptions of fewer than four words, bodies of fewer than two statements, code of more than 4000 characters, and
    whatever is there twice, descriptions or code, since neither could be told apart.
    """
    columns = standard_library()
    found = [
        function
        for text, file in zip(columns["text"], columns["source"], strict=True)
        if file.endswith(".py")
        for function in _functions_of(text, file)
    ]
    descriptions, codes = Counter(each.description for each in found), Counter(each.code for each in found)
    return tuple(each for each in found if descriptions[each.description] == codes[each.code] == 1)


def _functions_of(text: str, file: str):
    try:
        tree = ast.parse(text)
    except SyntaxError:  # templates
        return
    lines = text.splitlines(keepends=True)
    for name, node in _named_functions(tree):
        documentation = ast.get_docstring(node)
        description = " ".join((documentation or "").strip().split("\n\n")[0].split())
        if len(description.split()) < MIN_WORDS or len(node.body) < 3:  # the docstring and one statement
            continue
        docstring = node.body[0]
        kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
        indent = node.col_offset
        code = "".join(line[indent:] if not line[:indent].strip() else line for line in kept).rstrip()
        if len(code) <= MAX_CHARS:
            yield DescribedFunction(f"{file}:{name}", file, description, code)


def _named_functions(node: ast.AST, prefix: str = ""):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = prefix + child.name
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from _named_functions(child, f"{name}.")
