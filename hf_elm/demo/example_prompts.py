"""What stands in the text fields at first: something of the kind that the model has learnt, as far as its folder tells."""

from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerBase

from ..trainers.character_coverage import unknown_characters


EXAMPLES = {
    "code": {
        "start": "def main(argv):",
        "word": "def main(argv):\n    for name in ar",
        "text": "def main(argv):\n    for name in argv:\n        print(name)\n    return 0\n",
    },
    "play": {
        "start": "ROMEO:\n",
        "word": "ROMEO:\nWhat say you to th",
        "text": "ROMEO:\nBut soft, what light through yonder window breaks?\n",
    },
    "prose": {
        "start": "The history of the",
        "word": "The history of the w",
        "text": "The sun rose slowly over the hills, and the birds began to sing.",
    },
}
BYTES = 512  # a vocabulary up to here is of bytes or characters, as the quickstarts' over the interpreter's library


def example_prompt(checkpoint: str, tokenizer: PreTrainedTokenizerBase, kind: str) -> str:
    """An example for a field: ``kind`` is start (of a continuation), word (ends in the middle of one) or text (to be scored).

    The recipe in a run's folder names its corpus; without one a small vocabulary is taken for code and a large one for prose.
    Empty where the tokenizer lacks a character of it.
    """
    example = EXAMPLES[_genre(checkpoint, tokenizer)][kind]
    return "" if unknown_characters(tokenizer, example) else example


def _genre(checkpoint, tokenizer):
    corpus = _corpus(Path(checkpoint))
    if corpus is None:
        return "code" if len(tokenizer) <= BYTES else "prose"
    if corpus == "stdlib":
        return "code"
    return "play" if "shakespeare" in corpus.lower() else "prose"


def _corpus(folder):
    """The corpus that the recipe of a run's folder names, or that of the run that a checkpoint's folder belongs to."""
    for path in (folder / "recipe.yaml", folder.parent / "recipe.yaml"):
        try:
            corpus = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["corpus"]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            yaml.YAMLError,
        ):  # none there, or none of ours: only an example is lost
            continue
        return str(corpus)
    return None
