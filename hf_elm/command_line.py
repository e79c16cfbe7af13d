"""``hf-elm``: train, adapt, evaluate, sample and publish energy-based language models.

Help and argument errors answer at once: torch and transformers are imported by the command that needs them.
"""

import difflib
import errno
import importlib
import os
import sys
import traceback
from pathlib import Path

from . import __version__
from .recipe_keys import Schema


COMMANDS = {  # name -> what it does; the module is hf_elm.commands.<name>
    "prepare": "tokenise and pack a corpus into shards, in parallel, resumable",
    "train": "train a model, from scratch or from a checkpoint",
    "adapt": "turn an existing causal LM into an energy-based one",
    "evaluate": "likelihood of held-out text, exact or as an interval with valid ends",
    "eval": "tasks of the lm-evaluation-harness, the LM beside the ELM (system 1 beside 2)",
    "compare": "several models on the same documents: likelihoods, paired differences, cost",
    "detect": "is a text made by this model? trains a detector, and judges texts by it",
    "retrieve": "how well an encoder finds documents, BM25 beside it",
    "automata": "languages of random automata, learnt in context: LM, ELM and thinking",
    "generate": "continue a prompt, streaming",
    "rerank": "n-best lists in the order of a model's likelihood or energy",
    "score": "log-likelihoods and energies of documents and tokens to a table, resumable",
    "select": "a corpus drawn by its scores: softmax, best or uniform, by strata",
    "embed": "one vector per text, from files or standard input, resumable",
    "plot": "pictures of energies, texts, calibration, thinking and a run's training",
    "demo": "a page in the browser to watch candidates, energies and thinking",
    "convert": "convert a reference checkpoint",
    "export": "write a self-contained Hub folder and check that it loads anywhere",
    "publish": "send a model to the Hub in one commit, checked first",
    "quickstart": "the whole story on a small model in a few minutes",
    "env": "versions and devices, for bug reports",
}
_USER_ERRORS = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, ImportError)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_TRAIN_PACKAGES = ("accelerate", "datasets", "peft", "torchdata")  # of the extra "train"
_LONGEST = 3000  # characters of an error's line
_OWN_FOLDERS = ("hf_elm", "modeling", "trainers", "model_cards")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 2 wrong input (one line on stderr), 1 a fault of ours, 130 interrupted.

    A training that SIGTERM ended raises SystemExit with status 143, after saving a checkpoint.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"hf_elm {__version__}\n")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        return _fail("", f'unknown command "{name}"; the nearest is "{near}". Commands: {", ".join(COMMANDS)}.')
    return _run(name, rest)


def _run(name, arguments):
    try:
        command = importlib.import_module(f"hf_elm.commands.{name}")
        if {"-h", "--help", "--help-all"} & set(arguments):
            sys.stdout.write(help_text(name, command, everything="--help-all" in arguments))
        else:
            command.run(arguments)
        return 0
    except KeyboardInterrupt:
        sys.stderr.write(f"\nhf-elm {name}: interrupted.\n")
        return 130
    except BrokenPipeError:  # `hf-elm train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _TRAIN_PACKAGES or os.environ.get("HF_ELM_DEBUG"):
            return _crash()
        return _fail(name, f'the package {package} is missing; install it with pip install "hf_elm[train]".')
    except _USER_ERRORS as error:
        return _fail(name, error) if _is_ours(error) or _names_a_file(error) else _crash()
    except FloatingPointError as error:  # a diverged run
        return _fail(name, error, status=1) if _is_ours(error) else _crash()
    except OSError as error:
        known = error.errno in _DISK_ERRORS or _is_ours(error) or _names_a_file(error)
        return _fail(name, error) if known else _crash()
    except Exception:
        return _crash()


def _fail(command, message, status=2):
    text = " ".join(str(message).split())
    if len(text) > _LONGEST:  # a value of many pages, quoted
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    sys.stderr.write(f"hf-elm{' ' + command if command else ''}: error: {text}\n")
    return status


def _crash():
    traceback.print_exc()
    return 1


def _is_ours(error):
    """Whether the error was raised by our own code, which names argument, value, rule and remedy."""
    if os.environ.get("HF_ELM_DEBUG"):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).resolve().parent
    roots = [root, *(root / folder for folder in _OWN_FOLDERS), *(root.parent / folder for folder in _OWN_FOLDERS)]
    return any(Path(frames[-1].filename).resolve().is_relative_to(folder) for folder in roots)


def _names_a_file(error):
    """Whether it is the system's own refusal, with the file in its text: a folder in the place of a file, a name too long."""
    return isinstance(error, OSError) and error.filename is not None and not os.environ.get("HF_ELM_DEBUG")


def overview() -> str:
    """The help of ``hf-elm`` itself."""
    lines = [f"  {name:<12}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-elm COMMAND [RECIPE.yaml] [key=value ...] [--key value ...]",
            "",
            "Energy-based language models: train, adapt, evaluate, sample, publish.",
            "",
            "commands:",
            *lines,
            "",
            "`hf-elm COMMAND --help` lists every key. `key=value` and `--key value` mean the same, and win over the recipe.",
            "Exit status: 0 done, 2 wrong input, 1 a fault (HF_ELM_DEBUG=1 shows the traceback of any error), 143 ended by SIGTERM after",
            "saving a checkpoint.",
            "",
        ]
    )


def help_text(name: str, command, everything: bool = False) -> str:
    """A command's description and its keys by section, with defaults and meanings."""
    lines = [command.__doc__.strip(), ""]
    schema: Schema | None = command.schema() if hasattr(command, "schema") else None
    hidden = 0
    for group, keys in (schema.groups() if schema else {}).items():
        if group.startswith("+") and not everything:  # transformers' own fields
            hidden += len(keys)
            continue
        lines += [f"{group.removeprefix('+')}:", *(line for key in keys for line in _describe(key)), ""]
    if hidden:
        lines += [
            f"train.*: {hidden} more keys, all of transformers' TrainingArguments; `hf-elm {name} --help-all` lists them.",
            "",
        ]
    if schema and schema.aliases:
        lines += ["other spellings:", *(f"  {alias} = {key}" for alias, key in schema.aliases.items()), ""]
    return "\n".join(lines)


def _describe(key):
    import textwrap

    yield f"  {key.name}  ({key.annotation}, default {key.default})"
    yield from textwrap.wrap(
        key.help.replace("``", ""), width=108, initial_indent="      ", subsequent_indent="      "
    )
