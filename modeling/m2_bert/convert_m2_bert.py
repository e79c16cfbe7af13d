"""Conversion of the original M2-BERT checkpoints to a folder that `from_pretrained` reads.

Read are MosaicML Composer files (``.pt``), plain state dicts, safetensors, and old Hub folders whose config.json says "bert".
Sizes and options are inferred from the weights. The result holds every head that the source has, so that AutoModel,
AutoModelForMaskedLM and AutoModelForSequenceClassification load from the one folder. ``padding_mode`` is ``"reference"``: the
model gives the published outputs however the tokenizer pads.
"""

import contextlib
import datetime
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from .configuration_m2_bert import M2BertConfig
from .modeling_m2_bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from .reference_keys import convert_state, follows_decay_rule, infer_fields, plain_names


logger = logging.get_logger(__name__)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin", "model.pt", "state_dict.pt")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
)  # fmt: skip
HEADS = {  # a weight that only this head has -> class
    "lm_head.dense.weight": M2BertForMaskedLM,
    "classifier.weight": M2BertForSequenceClassification,
    "m2_bert.pooler.dense.weight": M2BertModel,
}


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        out: the new folder.
        config: of the converted model.
        heads: classes whose every weight was in the source.
        num_parameters: of all of them together.
        leftovers: keys of the source that have no place in the model, and were not taken over.
        copied: tokenizer files taken over.
    """

    out: Path
    config: M2BertConfig
    heads: list[str] = field(default_factory=list)
    num_parameters: int = 0
    leftovers: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)


def convert_reference_checkpoint(src: str | Path, out: str | Path, *, overwrite: bool = False) -> ConversionReport:
    """Converts ``src`` of the original code to the folder ``out``, whole or not at all.

    Args:
        src: a weight file (``.pt``, ``.bin``, ``.safetensors``), or a folder with one and, optionally, config.json in the
            original's spelling. A config.json beside a weight file is read as well.
        out: must not exist or be empty, unless ``overwrite``.

    Raises:
        FileNotFoundError: no weights there.
        FileExistsError: ``out`` holds something.
        ValueError: an unreadable file, a pickle that is more than tensors, weights of another model, an unsupported option.
        OSError: ``out`` could not be written; what was there before is untouched.
    """
    src, out = Path(src), Path(out)
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out={out} exists and is not empty; choose another folder or pass overwrite=True.")
    path = _weight_file(src)
    options = _read_config(path.with_name("config.json"))
    state = plain_names(_read_weights(path))
    fields, stored = infer_fields(state, options), not follows_decay_rule(state)
    weights, leftovers = convert_state(state, fields, stored)
    config = M2BertConfig(**fields, filter_decay="stored" if stored else "computed")
    config.dtype = weights["m2_bert.embeddings.word_embeddings.weight"].dtype
    report = ConversionReport(out, config, leftovers=leftovers)
    models = [_checked(head, config, weights) for mark, head in HEADS.items() if mark in weights]
    if not models:
        models = [_checked(M2BertModel, config, weights, add_pooling_layer=False)]
    report.heads = [type(model).__name__ for model in models]
    weights.pop("lm_head.decoder.weight", None)  # tied
    report.num_parameters = sum(weight.numel() for name, weight in weights.items() if not _is_buffer(name))
    with _written_whole(out, overwrite) as folder:
        models[0].save_pretrained(folder)
        (weight_file,) = folder.glob("*.safetensors")
        tensors = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(tensors, weight_file, metadata={"format": "pt"})
        report.copied = [name for name in TOKENIZER_FILES if (path.with_name(name)).is_file()]
        for name in report.copied:
            shutil.copy2(path.with_name(name), folder / name)
    if leftovers:
        logger.warning(f"{len(leftovers)} weights of {path} have no place in the model: {_listed(leftovers)}.")
    if stored:
        logger.warning("the times or decay rates of the filters differ from the rule; they are kept with the weights.")
    return report


def _checked(head, config, weights, **options):
    """A model of class ``head`` with the weights that belong to it, every one of them."""
    model = head(config, **options)
    prefix = "" if isinstance(model, M2BertModel) else "m2_bert."
    own = {name if prefix else name.removeprefix("m2_bert."): weight for name, weight in weights.items()}
    expected = model.state_dict()
    _check_keys(expected, {name: own[name] for name in expected.keys() & own.keys()})
    model.to(config.dtype).load_state_dict({name: own[name] for name in expected})
    return model


def _is_buffer(name):
    return name.endswith(("_filter.time", "_filter.rates"))


# --------------------------------------------------------------------------------------------------------- reading


def _weight_file(src):
    if src.is_file():
        return src
    if not src.is_dir():
        raise FileNotFoundError(f"{src} does not exist; give a weight file, or a folder with one.")
    for name in WEIGHT_FILES:
        if (src / name).is_file():
            return src / name
    found = sorted(path for path in src.iterdir() if path.suffix in (".pt", ".bin", ".safetensors"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{src} must hold one weight file ({', '.join(WEIGHT_FILES)} or another .pt), found "
            f"{_listed(path.name for path in found) or 'none'}; give the file itself."
        )
    return found[0]


def _read_config(path):
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); fetch it again.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(fields).__name__}.")
    if fields.get("model_type") == M2BertConfig.model_type:
        raise ValueError(f"{path} says m2_bert: this folder is converted already; load it by from_pretrained.")
    return fields


def _read_weights(path):
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch it again.") from None
    state = _read_pickle(path)
    for keys in (("state", "model"), ("model",), ("state_dict",), ("model_state_dict",)):
        inner = state
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            return inner
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(state).__name__}.")
    return state


def _read_pickle(path):
    """Tensors, numbers, arrays of numbers and their containers only: unpickling anything else could run code."""
    try:
        with torch.serialization.safe_globals(_number_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than tensors and numbers, and unpickling that could run code "
            f"({reason}). If you trust its source, load it once yourself and save the tensors alone as model.safetensors."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); fetch it again.") from None


def _number_types():
    """What Composer stores beside the weights: states of random generators (NumPy arrays) and durations."""
    if (np := sys.modules.get("numpy")) is None:  # not imported by torch, so not installed
        return [datetime.timedelta]
    rebuild, _, _ = np.zeros(1, np.uint32).__reduce__()
    return [datetime.timedelta, rebuild, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


def _check_keys(expected, weights):
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & weights.keys())
            if weights[name].shape != expected[name].shape
        ],
    }
    found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if found:
        raise ValueError(f"the weights do not fit config.json (names as in this package): {found}.")


def _listed(names, limit=12):
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# --------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def _written_whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` at the end; on any error it is removed and ``out`` is as before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        os.chmod(folder, 0o755)
        yield folder
        with _set_aside(out, overwrite):
            os.rename(folder, out)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write out={out}: {error}. Nothing was written there; free some space or choose another disk."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _set_aside(out, overwrite):
    """Moves an existing ``out`` away, removes it when the block succeeds and brings it back when it fails."""
    if not out.exists():
        yield
        return
    if not overwrite and any(out.iterdir()):
        raise FileExistsError(f"out={out} has been filled meanwhile")
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old.")) / out.name
    os.rename(out, old)
    try:
        yield
    except BaseException:
        os.rename(old, out)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)
