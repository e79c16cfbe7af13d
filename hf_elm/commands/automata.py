"""usage: hf-elm automata [key=value ...] [--key value ...]

Languages learnt in context: every row holds strings of a random finite automaton of its own, and whoever predicts its next
character has to infer the automaton from the row. Test languages never occur in training. Scored are how often the likeliest
symbol is a legal one, and how far the distribution is from the true one; n-grams of the row and the true automaton stand beside.

By itself it trains four tiny models in about two minutes of CPU: a language model, an energy on top of it (frozen), the same
LM trained on for the time that the energy took, and a nanoEBM, scored before and after thinking. With checkpoint= it scores a
saved model, with write= it makes a corpus to train one on.

  hf-elm automata
  hf-elm automata write=languages num_symbols=8 max_states=6
  hf-elm train monarc_tiny data.corpus=languages data.sequence_length=128 output_dir=runs/languages
  hf-elm automata checkpoint=runs/languages
"""

import sys
from pathlib import Path
from typing import Any

from ..recipe_keys import Schema, section
from ..recipes import literal_defaults, merge, split_arguments
from ..run_folder import require_writable


_SECTIONS = "hf_elm.automata_sections"
_LANGUAGES = "hf_elm.in_context_languages:LanguageSettings"
_MODES = {  # what is done -> the sections that concern it
    "train": ("AutomataSection", "AutomataScoreSection", "AutomataTrainingSection"),
    "checkpoint": ("AutomataSection", "AutomataScoreSection", "AutomataDeviceSection"),
    "write": ("AutomataSection", "AutomataCorpusSection"),
}
_HEADINGS = {
    "AutomataSection": "automata",
    "AutomataScoreSection": "scores",
    "AutomataTrainingSection": "training",
    "AutomataDeviceSection": "with checkpoint=",
    "AutomataCorpusSection": "with write=",
}


def schema(mode: str | None = None) -> Schema:
    """The keys of the command; those of every mode when it is not known yet."""
    names = dict.fromkeys(name for own in _MODES.values() for name in own) if mode is None else _MODES[mode]
    keys = [key for name in names for key in section(f"{_SECTIONS}:{name}", "", _HEADINGS[name])]
    if mode == "write":
        keys += [key for key in section(f"{_SECTIONS}:AutomataScoreSection") if key.name == "languages"]
    return Schema([*keys, *section(_LANGUAGES, "", "languages")])


def run(arguments: list[str]) -> None:
    """Train and score, score, or write.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals:
        raise ValueError(f"automata takes key=value pairs only, got {positionals[0]}; --help lists the keys.")
    mode = _mode(given)
    own = schema(mode)
    for name in given:
        if name not in own.keys:
            here = "without checkpoint= and write=" if mode == "train" else f"with {mode}="
            raise ValueError(f"{name} says nothing {here}; leave it out.")
    settings: dict[str, Any] = merge(literal_defaults(own.keys.values()), given)
    output = settings.pop("output", None)
    if output and Path(output).exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    if output:
        require_writable(output, "output")
    languages = {key.name for key in section(_LANGUAGES)}
    settings = {
        name: value for name, value in settings.items() if name not in ("checkpoint", "write") or value is not None
    }
    chosen = {name: settings.pop(name) for name in languages}
    result = {"train": _train, "checkpoint": _score, "write": _write}[mode](settings, chosen, given)
    if result is None:
        return
    sys.stdout.write(f"{result}\n")
    if output:
        result.to_json(output)


def _mode(given):
    modes = [name for name in ("checkpoint", "write") if given.get(name)]
    if len(modes) > 1:
        raise ValueError("checkpoint= and write= exclude each other: a saved model is scored, or a corpus written.")
    return modes[0] if modes else "train"


def _train(settings, languages, given):
    from ..in_context_languages import LanguageSettings
    from ..in_context_run import InContextRun

    return InContextRun(LanguageSettings(**languages), **settings).run()


def _score(settings, languages, given):
    from ..in_context_checkpoints import languages_of_checkpoint, score_checkpoint
    from ..in_context_languages import LanguageSettings

    own = languages_of_checkpoint(settings["checkpoint"])
    chosen = languages | own | {name: given[name] for name in languages if name in given}
    return score_checkpoint(settings=LanguageSettings(**chosen), **settings)


def _write(settings, languages, given):
    from ..in_context_checkpoints import write_corpus
    from ..in_context_languages import LanguageSettings

    folder = settings["write"]
    counts = {"train_languages": settings["train_languages"], "test_languages": settings["languages"]}
    write_corpus(folder, LanguageSettings(**languages), **counts, seed=settings["seed"])
    sys.stdout.write(
        f"{folder}: {counts['train_languages']:,} languages to train on, {counts['test_languages']:,} others held out\n"
    )
    return None
