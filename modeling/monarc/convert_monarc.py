"""Conversion of the original MonArc checkpoints to a folder that `from_pretrained` reads.

The original code saves one folder per step with ``config.json`` and ``state_dict.pt``. Its live model classes are converted:
ArcLmModel as it is, ReaperLmModel without its prediction of log Z, which plays no part in the energy. The deprecated ones
(DynamArc, RemArc, ShArc and the class that was itself called MonArc) compute another energy and are refused by name.

Energies keep their sign, and belong to the token they score: ``energies[:, 1:]`` are the original's ``arc[:, :-1]``.
``mask_segment_starts`` keeps this package's default True, which changes no energy but counts none across documents; to
reproduce the original's losses on packed rows, set it to False.
"""

import contextlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .configuration_monarc import MonArcConfig
from .modeling_monarc import MonArcForCausalLM


MODULES = {  # module of the original -> ours; every other one is part of the language model
    "arc_norm": "energy_head.norm",
    "res_norm": "energy_head.norm",
    "forward_head": "energy_head.previous_proj",
    "backward_head": "energy_head.token_proj",
    "l_forward_head": "energy_head.previous_log_prob",
    "l_backward_head": "energy_head.token_log_prob",
}
DROPPED = ("z_norm", "z_head", "z_mu_head", "z_sigma_head")  # the Reaper model's prediction of log Z
DEPRECATED = {  # a module that only this class has -> class
    "forward_bias": "DynamArcLmModel",
    "baseline_forward_head": "DynamArcLmModel",
    "lm_proj": "RemArcLmModel or ShArcLmModel",
    "head_model": "MonArcLmModel",
    "arc_head": "MonArcLmModel",
}
TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "layer_norm_eps", "rope_theta", "partial_rotary_factor",
    "use_qkv_bias", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings", "hidden_dropout", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip


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
    """Converts the folder ``src`` of the original code to ``out``, whole or not at all.

    Args:
        src: holds ``config.json`` and ``model.safetensors`` or ``state_dict.pt``.
        out: must not exist or be empty, unless ``overwrite``.

    Raises:
        FileNotFoundError: ``src`` lacks a file.
        FileExistsError: ``out`` holds something.
        ValueError: an unreadable file, a pickle that is more than tensors, a deprecated class, keys that do not fit.
        OSError: ``out`` could not be written; what was there before is untouched.
    """
    src, out = Path(src), Path(out)
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out={out} exists and is not empty; choose another folder or pass overwrite=True.")
    fields = reference_config(_read_config(src / "config.json"))
    weights, dropped = _split(_read_weights(src))
    config = MonArcConfig(**fields, energy_logprob_features="energy_head.token_log_prob.weight" in weights)
    model = MonArcForCausalLM(config).to(weights["lm.lm_head.weight"].dtype)
    _check_keys(model.state_dict(), weights)
    model.load_state_dict(weights)
    with _written_whole(out, overwrite) as folder:
        model.save_pretrained(folder)
        copied = [name for name in TOKENIZER_FILES if (src / name).is_file()]
        for name in copied:
            shutil.copy2(src / name, folder / name)
    return ConversionReport(out, model.num_parameters(), dropped, copied)


def reference_config(fields: dict) -> dict:
    """Arguments of `MonArcConfig` from the original's ``config.json``; what it leaves out has StableLM's default.

    Raises:
        ValueError: a deprecated model class, a folder converted before, a reparametrised energy.
    """
    if "text_config" in fields:
        raise ValueError(
            "config.json has a text_config: this folder is converted already; load it by from_pretrained."
        )
    named = {fields.get("model_type"), *(fields.get("architectures") or ())}
    for name in sorted(str(name) for name in named):
        if name.lower().removesuffix("lmmodel") in ("dynamarc", "remarc", "sharc", "monarc", "embarc", "annelid"):
            _refuse_class(name)
    if fields.get("reparam_arc"):
        raise ValueError(
            "config.json has reparam_arc=true: that energy is relative to the LM's log-probability and is not supported; "
            "only checkpoints with reparam_arc=false convert."
        )
    text_config = {name: fields[name] for name in TEXT_FIELDS if name in fields}
    return {"text_config": {"model_type": "stablelm", **text_config}, "energy_bound": fields.get("phi_scale")}


def rename_key(key: str) -> str:
    """Our name of one of the original's parameters."""
    module, _, leaf = key.rpartition(".")
    return f"{MODULES[module]}.{leaf}" if module in MODULES else f"lm.{key}"


def _refuse_class(name):
    raise ValueError(
        f"{name} is a deprecated class of the original code with another energy than ArcLmModel's, and is not supported; "
        "only ArcLmModel and ReaperLmModel checkpoints convert."
    )


# --------------------------------------------------------------------------------------------------------- reading


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


def _read_weights(src):
    if (path := src / "model.safetensors").is_file():
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch it again.") from None
    if (path := src / "state_dict.pt").is_file():
        return _read_pickle(path)
    raise FileNotFoundError(f"{src} has neither model.safetensors nor state_dict.pt.")


def _read_pickle(path):
    """Tensors only: unpickling anything else could run code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than tensors, and unpickling that could run code ({reason}). "
            "If you trust its source, load it once yourself and save the tensors alone as model.safetensors."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); fetch it again.") from None
    for name in ("model", "state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a flat dict of tensors, got {type(state).__name__} with other entries.")
    return state


def _split(state):
    """Renamed weights, and the keys that are dropped; wrappers' prefixes are removed."""
    weights, dropped = {}, []
    for key, tensor in state.items():
        key = key.replace("_orig_mod.", "")
        while key.startswith("module."):
            key = key.removeprefix("module.")
        top = key.partition(".")[0]
        if top in DEPRECATED:
            _refuse_class(DEPRECATED[top])
        if top in DROPPED or key.endswith("rotary_emb.inv_freq"):
            dropped.append(key)
        else:
            weights[rename_key(key)] = tensor
    if "lm.lm_head.weight" not in weights:
        raise ValueError(f"the checkpoint has no lm_head.weight; its keys are {_listed(state)}.")
    return weights, sorted(dropped)


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
