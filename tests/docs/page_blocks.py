"""The fenced blocks of a page, and what is appended to its commands so that each is done in seconds.

A page shows commands as a reader would type them. The tests run those very commands in-process, with settings of size appended:
a key that is given twice keeps its last value, and the page's own value is parsed and checked all the same.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

LM = "runs/quickstart/lm"  # of `hf-elm quickstart`

TRAINING = [
    "train.max_steps=2",
    "train.per_device_train_batch_size=2",
    "train.logging_steps=1",
    "train.disable_tqdm=true",
]
TRAINING += ["train.use_cpu=true", "train.warmup_steps=1"]
OF_TEXT = ["data.max_bytes=300000", "data.sequence_length=32"]
ENERGY = ["evaluate.max_tokens=64", "evaluate.progress=false"]
SMALL = {  # command -> what is appended
    "adapt": [*TRAINING, *OF_TEXT, *ENERGY],
    "compare": ["documents=3", "document_bytes=128"],
    "eval": ["limit=2", "bootstrap_iters=0", "max_gen_toks=8"],
    "evaluate": ["max_tokens=64"],
    "generate": ["max_new_tokens=8"],
    "prepare": ["data.max_bytes=300000"],
    "quickstart": ["evaluation_tokens=200"],
    "rerank": ["limit=3"],
}
RETRIEVAL = ["data.max_pairs=64", *TRAINING]
QUICKSTART = {"monarc": ["lm_steps=3", "energy_steps=2"], "nano-ebm": ["steps=3"]}
PLOT = {
    "gain": ["max_tokens=128", "think_steps=2"],
    "landscape": ["grid=9"],
    "animate": ["frames_per_step=1", "grid=9"],
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, and first line in the page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The bash and python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in FENCE.finditer(text)]
    return [block for block in found if block.language in ("bash", "python")]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a bash block; comments and line continuations resolved."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def with_small_sizes(arguments: list[str]) -> list[str]:
    """``arguments`` of ``hf-elm``, and those of size that end them; before a lone ``--``, which is a launcher's."""
    command, *rest = arguments
    end = rest.index("--") if "--" in rest else len(rest)
    return [command, *rest[:end], *_sizes(command, rest[:end]), *rest[end:]]


def _sizes(command, rest):
    if command in ("train", "adapt") and ("objective=retrieval" in rest or "retrieval" in " ".join(rest[:1])):
        return RETRIEVAL
    if command == "train":
        prepared = any(word.startswith("data.corpus=prepared/") for word in rest)
        of_text = [] if prepared else OF_TEXT  # a folder of shards is what it is
        energy = [] if any(word.startswith(("nano_ebm", "m2_bert", "family=")) for word in rest) else ENERGY
        return [*TRAINING, *of_text, *energy]
    if command == "evaluate" and not any("first" in word or "adapted" in word for word in rest):
        return []
    if command == "plot":
        return PLOT.get(rest[0], [])
    if command == "detect" and rest[0] == "train":
        return ["data.max_bytes=2000000", "documents=5", "passages=2", "epochs=2", "resamples=100"]
    if command == "automata" and not any(word.startswith(("checkpoint=", "write=", "steps=")) for word in rest):
        return ["steps=10", "energy_steps=5", "languages=5"]
    if command == "quickstart":
        model = "nano-ebm" if "nano-ebm" in " ".join(rest) else "monarc"
        return [*SMALL[command], *QUICKSTART[model]]
    return SMALL.get(command, [])


def runs_made_by(page: Path) -> set[str]:
    """Folders that the page's own commands write: they must not be there before."""
    lines = [words for block in blocks(page) if block.language == "bash" for words in commands(block)]
    folders = (re.fullmatch(r"(?:train\.)?output_dir=(\S+)", word) for words in lines for word in words)
    own = {match[1] for match in folders if match}
    return own | ({LM} if any(words[1] == "quickstart" for words in lines) else set())
