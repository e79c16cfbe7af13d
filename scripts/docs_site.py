"""Hooks of the documentation's build (`mkdocs.yml`): what the pages take from the code and the records instead of repeating it.

* formulas become MathML, which browsers draw without a script or a font of their own
* ``<!-- table: NAME -->`` becomes the README's table of that name, made from the newest records of ``benchmarks/results``
* ``api/command_line.md`` is made of the help of every command
* the four mapped folders are laid out as the one package ``hf_elm`` that the API reference reads
"""

import html
import importlib
import re
import shutil
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("modeling", "trainers", "model_cards")
COMMAND_LINE = "api/command_line.md"
TABLE = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)
FUNCTION = re.compile(r"(<mi>(?:log|exp|max|min)</mi>)(?!<mo[^>]*>&#x00028;)")


@event_priority(100)  # before mkdocstrings, which takes no path that does not exist yet
def on_config(config):
    """Lays out the package and lets the hooks import it."""
    lay_out(ROOT / "build" / "docs_tree" / "hf_elm")
    for folder in (ROOT, ROOT / "benchmarks"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return config


def on_files(files, config):
    """Adds the reference of the command line."""
    files.append(File.generated(config, COMMAND_LINE, content=command_line_page()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Puts the tables of the records in their places."""
    return TABLE.sub(lambda match: record_table(match.group(1)), markdown)


def on_page_content(content, page, config, files):
    """Formulas to MathML."""
    return FORMULA.sub(lambda match: mathml(html.unescape(match.group(2)), match.group(1) == "div"), content)


def lay_out(package: Path) -> None:
    """``package`` as a copy of hf_elm/ with the mapped folders in it, made anew; their sources are read, not imported."""
    shutil.rmtree(package, ignore_errors=True)
    sources = shutil.ignore_patterns("__pycache__", "*.jsonl", "*.png")
    shutil.copytree(ROOT / "hf_elm", package, ignore=sources)
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, package / folder, ignore=sources)


def mathml(formula: str, display: bool) -> str:
    """A LaTeX formula as MathML, with the space after the names of functions that the converter leaves out."""
    drawn = convert(formula.strip(), display="block" if display else "inline")
    return FUNCTION.sub(r'\1<mspace width="0.17em" />', drawn)


def record_table(name: str) -> str:
    """The README's table ``name``, from the newest records."""
    return getattr(importlib.import_module("readme_tables"), name)()


def command_line_page() -> str:
    """The help of ``hf-elm`` and of each of its commands."""
    from hf_elm.command_line import COMMANDS, help_text, overview

    parts = ["# Command line", "What `hf-elm --help` and `hf-elm COMMAND --help` print.", _block(overview())]
    for name, summary in COMMANDS.items():
        command = importlib.import_module(f"hf_elm.commands.{name}")
        parts += [f"## hf-elm {name}", f"{summary[0].upper()}{summary[1:]}.", _block(help_text(name, command))]
    return "\n\n".join(parts) + "\n"


def _block(text):
    return f"```text\n{text.strip()}\n```"
