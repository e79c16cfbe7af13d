"""Folders that hold a PEFT adapter instead of a model: where its base is, and the model with the adapter in place."""

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import run_folder


if TYPE_CHECKING:
    from transformers import PreTrainedModel


ADAPTER_CONFIG = "adapter_config.json"
BASE = "base"  # folder of the base model in that of a run, where the run has made it


def base_of_adapter(checkpoint: str) -> str | None:
    """Path or Hub id of the model that the adapter saved in the folder ``checkpoint`` belongs to; None: it is no adapter's.

    A base that a run saved is found beside the adapter, wherever both have been moved to.

    Raises:
        FileNotFoundError: the base is a folder that is not there.
        ValueError: the adapter's configuration is not readable, or names no base.
    """
    folder = Path(checkpoint)
    on_hub = _adapter_on_hub(checkpoint) if looks_like_hub_id(checkpoint) else None
    if on_hub is None and ((folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file()):
        return None
    try:
        base = json.loads(Path(on_hub or folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"checkpoint={checkpoint}: {ADAPTER_CONFIG} is not readable ({error}).") from None
    run = folder.resolve().parent if folder.name.startswith("checkpoint-") else folder
    for place in (folder / BASE, run / BASE):
        if (place / "config.json").is_file():
            return str(place)
    if not base:
        raise ValueError(
            f"checkpoint={checkpoint} is an adapter that does not say what it adapts; write the folder or Hub id of its base "
            f'to "base_model_name_or_path" in {ADAPTER_CONFIG}.'
        )
    if not isinstance(base, str) or "\0" in base:
        raise ValueError(
            f"checkpoint={checkpoint}: base_model_name_or_path in {ADAPTER_CONFIG} must be a folder or Hub id, got {base!r}."
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise FileNotFoundError(
            f"checkpoint={checkpoint} adapts {base}, which does not exist; put that folder back, or copy it to "
            f"{folder / BASE}."
        )
    return str(base)


def looks_like_hub_id(name: str) -> bool:
    """Whether ``name`` is written ``user/name`` and is no path here."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return False
    return not Path(name).exists() and not Path(name).parent.exists()


@functools.lru_cache(maxsize=32)
def _adapter_on_hub(repo_id: str) -> str | None:
    """The downloaded adapter_config.json of a repository that holds an adapter and no model; None of any other."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(repo_id, "config.json")
        return None
    except LocalEntryNotFoundError:  # no connection, and config.json is not in the cache
        found = try_to_load_from_cache(repo_id, ADAPTER_CONFIG)
        return found if isinstance(found, str) else None
    except EntryNotFoundError:
        pass
    except (HfHubHTTPError, OSError, ValueError):  # whoever reads config.json next says what is wrong
        return None
    try:
        return hf_hub_download(repo_id, ADAPTER_CONFIG)
    except (HfHubHTTPError, OSError, ValueError):
        return None


def adapted_model(base: "PreTrainedModel", checkpoint: str) -> "PreTrainedModel":
    """``base`` with the adapter saved at ``checkpoint`` merged into its weights.

    Adapters of a quantised model stay beside the weights, which could not hold the sum.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the adapter cannot be loaded, or does not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(
            f'checkpoint={checkpoint} is an adapter, which needs the package peft: pip install "hf_elm[train]".'
        ) from error
    try:
        adapted = PeftModel.from_pretrained(base, checkpoint)
        return adapted.get_base_model() if is_quantized(base) else adapted.merge_and_unload()
    except Exception as error:  # whatever PEFT makes of damaged files
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"checkpoint={checkpoint}: the adapter cannot be put on its base: {reason}") from error


def is_quantized(model) -> bool:
    """Whether some of the weights of ``model`` are quantised."""
    config = model.config
    return any(getattr(each, "quantization_config", None) is not None for each in (config, config.get_text_config()))


def adapter_weights(checkpoint: str) -> set[str]:
    """Names of the weights that an adapter replaces whole, as they are called in the model."""
    from peft import load_peft_weights

    prefix = "base_model.model."
    return {name.removeprefix(prefix) for name in load_peft_weights(checkpoint, device="cpu")}


def lora_config(options: dict[str, Any]):
    """The configuration that the ``peft`` section of a recipe describes.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: a value that PEFT refuses.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError('the section peft needs the package peft: pip install "hf_elm[train]".') from error
    try:
        return LoraConfig(**options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"peft settings: {error}") from error


def keep_base(model, settings: dict[str, Any], output_dir: str) -> None:
    """Saves the base of a new adapter below ``output_dir`` where it is saved nowhere else, and tells the adapter where it is.

    Args:
        model: a `PeftModel`.
        settings: of the run; a base that is ``model.checkpoint`` as it was saved is not copied.
    """
    source = settings["model"].get("checkpoint")
    if source and base_of_adapter(source) is None and set(settings["model"]) - {"checkpoint"} <= {"freeze_lm"}:
        place = os.path.abspath(source) if os.path.isdir(source) else source
    else:
        place = os.path.abspath(os.path.join(output_dir, BASE))
        if run_folder.is_main_process() and not os.path.isdir(place):
            _save_base(model.get_base_model(), place, settings["model"])
    for config in model.peft_config.values():
        config.base_model_name_or_path = place


def _save_base(adapted, place, fields):
    """The model as it was before the adapter: layers without theirs, modules trained whole as they began, full precision."""
    state = {}
    for name, tensor in adapted.state_dict().items():
        if ".lora_" not in name and ".modules_to_save." not in name:
            state[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    if is_quantized(adapted):
        others = ("preset", "base", "checkpoint", "quantization")
        own = {name: value for name, value in fields.items() if name not in others}
        adapted = type(adapted).from_causal_lm(fields["base"], **own)
        state = adapted.state_dict() | {name: tensor for name, tensor in state.items() if not name.startswith("lm.")}
    with run_folder.new_folder(place, "base") as folder:
        adapted.save_pretrained(folder, state_dict=state)
