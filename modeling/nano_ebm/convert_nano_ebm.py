"""Conversion of the original nanoEBM checkpoints to a folder that `from_pretrained` reads.

The original saves a ``.pt`` file with "model" and "config"; a folder with ``config.json`` and ``model.safetensors`` (or such a
``.pt`` file) is taken as well. The result is configured to compute what the original computes: linear energy, steps in the
logits, gradient and stop rule averaged over the batch, its step size and tolerance. Its unused lm_head is dropped. The noise
of its training is not taken over: ``langevin_noise`` has another schedule here.
"""

import contextlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .configuration_nano_ebm import PUBLISHED, NanoEBMConfig
from .modeling_nano_ebm import NanoEBMForRefinement


SIZES = {  # field of the original -> ours
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
}
OPTIONS = {
    "dropout": "dropout",
    "bias": "use_bias",
    "refine_steps": "think_steps",
    "alpha_value": "think_lr",
    "energy_convergence_threshold": "think_tolerance",
}
MODULES = {  # module of the original -> ours, below a block or at the top
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    "wte": "trunk.token_embedding",
    "wpe": "trunk.position_embedding",
    "ln_f": "trunk.norm",
    "energy_head": "energy_head",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        out: the new folder.
        num_parameters: of the converted model.
        dropped: keys of the source that the converted model has no use for.
        copied: tokenizer files taken over.
    """

    out: Path
    num_parameters: int
    dropped: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)


def convert_reference_checkpoint(src: str | Path, out: str | Path, *, overwrite: bool = False) -> ConversionReport:
    """Converts the file or folder ``src`` of the original code to the folder ``out``, whole or not at all.

    Args:
        src: a ``.pt`` file with "model" and "config", or a folder with one, or with ``config.json`` and ``model.safetensors``.
        out: must not exist or be empty, unless ``overwrite``.

    Raises:
        FileNotFoundError: ``src`` lacks a file.
        FileExistsError: ``out`` holds something.
        ValueError: an unreadable file, a pickle that is more than tensors and numbers, keys that do not fit.
        OSError: ``out`` could not be written; what was there before is untouched.
    """
    src, out = Path(src), Path(out)
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out={out} exists and is not empty; choose another folder or pass overwrite=True.")
    fields, state = _read(src)
    weights, dropped, alpha = _split(state)
    if alpha is not None:
        fields = {**fields, "alpha_value": alpha}
    model = NanoEBMForRefinement(NanoEBMConfig(**reference_config(fields)))
    weights["energy_head.weight"] = -_required(
        weights, "energy_head.weight"
    )  # theirs gives energies, ours their negatives
    weights["step_sizes.raw"] = model.step_sizes.initial_raw()
    _check_keys(model.state_dict(), weights)
    model.load_state_dict(weights)
    with _written_whole(out, overwrite) as folder:
        model.save_pretrained(folder)
        beside = src if src.is_dir() else src.parent
        copied = [name for name in TOKENIZER_FILES if (beside / name).is_file()]
        for name in copied:
            shutil.copy2(beside / name, folder / name)
    return ConversionReport(out, model.num_parameters(), dropped, copied)


def reference_config(fields: Mapping) -> dict:
    """Arguments of `NanoEBMConfig` from the original's configuration (of the model, or with the model's under "model").

    Raises:
        ValueError: a size is missing; a folder converted before.
    """
    if fields.get("model_type") == "nano_ebm":
        raise ValueError(
            'config.json has model_type "nano_ebm": this folder is converted already; load it by from_pretrained.'
        )
    if isinstance(fields.get("model"), Mapping):
        fields = fields["model"]
    missing = [name for name in SIZES if name not in fields]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}; it has {_listed(fields)}.")
    renamed = {ours: fields[name] for name, ours in (SIZES | OPTIONS).items() if name in fields}
    return PUBLISHED | renamed


def rename_key(key: str) -> str | None:
    """Our name of one of the original's parameters; None = the converted model has no use for it."""
    key = key.removeprefix("transformer.").removeprefix("transformer.")
    if key.startswith("lm_head.") or key.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    prefix = ""
    if key.startswith("h."):
        _, index, key = key.split(".", 2)
        prefix = f"trunk.blocks.{index}."
    module, _, leaf = key.rpartition(".")
    return f"{prefix}{MODULES.get(module, module)}.{leaf}"


# --------------------------------------------------------------------------------------------------------- reading


def _read(src):
    """(configuration, tensors by the original's names)."""
    if not src.is_dir():
        return _read_pickle(src)
    if (src / "model.safetensors").is_file():
        return _read_config(src / "config.json"), _read_safetensors(src / "model.safetensors")
    pickles = sorted(src.glob("*.pt"))
    if len(pickles) == 1:
        return _read_pickle(pickles[0])
    found = f"{len(pickles)} .pt files" if pickles else "neither"
    raise FileNotFoundError(f"{src} must hold model.safetensors with config.json, or one .pt file; it has {found}.")


def _read_config(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; src must be a folder with config.json beside the weights.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); fetch it again.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(fields).__name__}.")
    return fields


def _read_safetensors(path):
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch it again.") from None


def _read_pickle(path):
    """Tensors, numbers and their containers only: unpickling anything else could run code."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than tensors and numbers, and unpickling that could run code "
            f"({reason}). If you trust its source, load it once yourself and save config.json and model.safetensors."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); fetch it again.") from None
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), Mapping):
        raise ValueError(f'{path} must hold a dict with "model" and "config", got {_kind(saved)}.')
    fields = saved.get("config")
    if not isinstance(fields, Mapping):
        beside = path.with_name("config.json")
        if not beside.is_file():
            raise ValueError(f'{path} has no "config"; put a config.json with {", ".join(SIZES)} beside it.')
        fields = _read_config(beside)
    return fields, saved["model"]


def _kind(saved):
    return f"the keys {_listed(saved)}" if isinstance(saved, dict) else type(saved).__name__


def _split(state):
    """Renamed weights, the keys that are dropped, and the step size if it is stored; wrappers' prefixes are removed."""
    weights, dropped, alpha = {}, [], None
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f'the weights must be tensors, got {type(tensor).__name__} at "{key}".')
        name = key.replace("_orig_mod.", "")
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name == "alpha":
            alpha = float(tensor)
        elif (ours := rename_key(name)) is None:
            dropped.append(key)
        else:
            weights[ours] = tensor
    return weights, sorted(dropped), alpha


def _required(weights, name):
    if name not in weights:
        raise ValueError(f"the checkpoint has no {name}; its keys (names as in this package) are {_listed(weights)}.")
    return weights[name]


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
