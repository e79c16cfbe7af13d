"""What is known about a saved model, read from the files beside it; what no file says stays None or empty."""

import json
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


CONFIG, RECIPE, ENVIRONMENT, METRICS = "config.json", "recipe.yaml", "environment.json", "metrics.jsonl"
LIKELIHOOD, RETRIEVAL, MODULES = "likelihood.json", "retrieval.json", "modules.json"
CURVES = "curves.png"
_CURVES_MARK = b"hf_elm training curves"  # as the trainers write it into their picture; any other is the user's own
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_ENDINGS = (
    ".txt",
    ".md",
    ".py",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".gz",
    ".zst",
    ".bz2",
    ".xz",
)


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card may say.

    Attributes:
        config: config.json.
        recipe, environment: of the run that wrote the weights; empty where they come from elsewhere.
        likelihood: the record of a likelihood, in any of the forms that this package writes.
        retrieval: scores of retrieval, one dict per retriever and task.
        last_log: the last line of metrics.jsonl that has a training loss.
        curves: the folder has the picture of the training that the trainer drew.
        parameters: number of stored weights.
        sentence_transformers: the folder has its modules.
        adapter: adapter_config.json where the card is of a PEFT adapter; ``config`` is then that of its base.
        repo_id: of the repository that the card is for.
        license, language, tags, declared_base, declared_datasets: where the user says so.
    """

    config: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    likelihood: dict[str, Any] = field(default_factory=dict)
    retrieval: list[dict[str, Any]] = field(default_factory=list)
    last_log: dict[str, Any] = field(default_factory=dict)
    curves: bool = False
    parameters: int | None = None
    sentence_transformers: bool = False
    adapter: dict[str, Any] = field(default_factory=dict)
    repo_id: str | None = None
    license: str | None = None
    language: str | list[str] | None = None
    tags: tuple[str, ...] = ()
    declared_base: str | list[str] | None = None
    declared_datasets: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """``model_type`` of the config."""
        return self.config["model_type"]

    @property
    def architecture(self) -> str | None:
        """Name of the class that was saved."""
        return next(iter(self.config.get("architectures") or []), None)

    @property
    def datasets(self) -> list[str]:
        """Hub ids of the training data."""
        if self.declared_datasets:
            return list(self.declared_datasets)
        corpus = self._setting("data", "corpus")
        return [corpus] if self._is_hub_id(corpus, single_word=True) and corpus != "stdlib" else []

    @property
    def corpus_name(self) -> str | None:
        """The training data in words; of a local file or folder its name alone, never its path."""
        corpus = self._setting("data", "corpus")
        if not isinstance(corpus, str):
            return ", ".join(self.declared_datasets) or None
        if corpus == "stdlib":
            version = self.environment.get("python")
            return (
                f"the sources of the Python {version} standard library" if version else "the Python standard library"
            )
        return corpus if self.datasets == [corpus] else f"a local corpus named “{Path(corpus.rstrip('/')).name}”"

    @property
    def base_model(self) -> str | list[str] | None:
        """Hub id of the model that training started from."""
        if self.declared_base:
            return self.declared_base
        candidates = (self._setting("model", "base"), self._setting("model", "checkpoint"))
        return next((name for name in candidates if self._is_hub_id(name)), None)

    def _setting(self, section, name):
        values = self.recipe.get(section)
        return values.get(name) if isinstance(values, dict) else None

    def _is_hub_id(self, name, single_word=False):
        """Whether ``name`` cannot be a path: none of that name is here, nor beside the folder that the run wrote to."""
        if not isinstance(name, str) or name.endswith(_FILE_ENDINGS) or Path(name).exists():
            return False
        if "/" not in name:
            return single_word and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is not None
        output = str(self._setting("train", "output_dir") or "")
        return _REPO_ID.fullmatch(name) is not None and name.split("/")[0] != output.split("/")[0]


def read_facts(folder: str | Path, *, source: str | Path | None = None, **declared: Any) -> CardFacts:
    """The facts in ``folder``: a run's folder, one of its checkpoints, or any saved model.

    Of a checkpoint the recipe and the metrics up to its step are those of the run around it; the run's likelihood, which is
    that of its last weights, is not.

    Args:
        source: folder that the records come from, where the model was copied from there; None = ``folder``.
        declared: fields of `CardFacts` that no file says, such as ``repo_id`` and ``license``.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: a file that is not what its name says.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG)
    if config is None:
        raise FileNotFoundError(f"{folder} has no {CONFIG}; give a folder that save_pretrained wrote.")
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{folder / CONFIG} has no model_type.")
    source = folder if source is None else Path(source)
    step = re.fullmatch(r"checkpoint-(\d+)", source.resolve().name)
    run = source.resolve().parent if step and not (source / RECIPE).is_file() else source
    retrieval = (_read_json(source / RETRIEVAL) or {}).get("scores") or []
    return CardFacts(
        config=config,
        recipe=_read_recipe(run / RECIPE),
        environment=_read_json(run / ENVIRONMENT) or {},
        likelihood=_read_json(source / LIKELIHOOD) or {},
        retrieval=[score for score in retrieval if isinstance(score, dict)],
        last_log=_last_log(run / METRICS, int(step.group(1)) if step else None),
        curves=has_curves(folder),
        parameters=_count_parameters(folder),
        sentence_transformers=(folder / MODULES).is_file(),
        **declared,
    )


def has_curves(folder: str | Path) -> bool:
    """Whether ``folder`` has the picture of its training that the trainer drew, and not another file of that name."""
    path = Path(folder, CURVES)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _CURVES_MARK in file.read(1024)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore or remove it.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}; restore or remove it.")
    return content


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())}); restore or remove it.") from None
    return content if isinstance(content, dict) else {}


def _last_log(path: Path, last_step: int | None) -> dict[str, Any]:
    """The last line with a training loss, up to ``last_step``; lines that a kill cut off are passed over."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or "loss" not in record:
            continue
        step = record.get("step", 0)
        if last_step is None or (isinstance(step, int) and step <= last_step):
            found = record
    return found


def _count_parameters(folder: Path) -> int | None:
    """Elements of all tensors in the headers of the folder's own safetensors files; None without any."""
    total = 0
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            try:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length <= path.stat().st_size else None
                total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
            except (ValueError, struct.error, AttributeError, KeyError, TypeError, RecursionError):
                raise ValueError(f"{path} is not a whole safetensors file; restore it.") from None
    return total or None
