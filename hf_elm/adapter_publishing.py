"""An adapter's folder as it goes to the Hub: its weights, the id of its base, tokenizer, results and card; proven to load."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from .adapter_folders import ADAPTER_CONFIG, base_of_adapter, looks_like_hub_id
from .card_files import CARD, has_users_card
from .families import find_family, read_model_type
from .hub_contents import HubFile, check_contents, hub_files
from .hub_folder import TOLERANCE, expected_outputs, run_without_hf_elm
from .model_cards.card_facts import CURVES, LIKELIHOOD, RETRIEVAL, has_curves, read_facts
from .model_cards.card_text import model_card
from .saved_models import load_checkpoint


WEIGHTS = "adapter_model.safetensors"
_TOLERANCE = 10 * TOLERANCE  # the merged weights of one side are rounded, the adapter beside them on the other is not
_PROBE = """
from peft import PeftModel
from safetensors.torch import load_file

adapter, base, auto, probe = sys.argv[1:]
expected = load_file(probe)
model = getattr(transformers, auto).from_pretrained(base, trust_remote_code=True, local_files_only=True)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    output = model(input_ids=expected.pop("input_ids"))
for key, value in expected.items():
    difference = (output[key].float() - value.float()).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, value.float().abs().max().item()):
        raise SystemExit(f"{key} differs by {difference}")
"""


def published_base(folder: str | Path, base: str | None) -> str:
    """The Hub id that the published adapter names as its base: ``base``, else the one in adapter_config.json.

    Raises:
        ValueError: neither is a Hub id; the message names both remedies.
    """
    named = base or _adapter_config(folder).get("base_model_name_or_path") or ""
    if not looks_like_hub_id(named):
        raise ValueError(
            f"DIR={folder} holds an adapter whose base is "
            + (f"base={base}, which is no Hub id" if base else f"the folder {named or '(none named)'}")
            + ". Publish that base first and say where with base=user/name, or publish the merged model with merge=true."
        )
    return named


def prepare_adapter(folder: Path, scratch: Path, base: str, declared: dict[str, Any]) -> list[HubFile]:
    """Writes what is to be published to ``scratch`` and has a process without hf_elm load it on its base; the files.

    Args:
        folder: of the adapter; nothing but its weights, tokenizer, results and the user's own card is taken from it.
        base: Hub id that the published adapter names.
        declared: for the card, see `read_facts`.

    Raises:
        FileNotFoundError: no weights, or the base is not at hand.
        ValueError: pickled weights, a base whose code cannot be published, an adapter that does not give back what it should.
    """
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"DIR={folder} has no {WEIGHTS}; save the adapter with save_pretrained.")
    place = base_of_adapter(str(folder))
    home = _base_folder(place)
    if Path(place).is_dir():
        check_contents(home)  # else nobody could load the base without hf_elm
    model, tokenizer = load_checkpoint(str(folder), device="cpu", as_saved=True)
    shutil.copyfile(folder / WEIGHTS, scratch / WEIGHTS)
    config = _adapter_config(folder) | {"base_model_name_or_path": base}
    (scratch / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(scratch)
    for name in (LIKELIHOOD, RETRIEVAL):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, scratch / name)
    if has_curves(folder):
        shutil.copyfile(folder / CURVES, scratch / CURVES)
    _check(scratch, home, model)
    _write_card(folder, scratch, home, config, declared)
    return hub_files(scratch)


def _adapter_config(folder) -> dict[str, Any]:
    """adapter_config.json, whose form `base_of_adapter` has checked or is about to."""
    return json.loads(Path(folder, ADAPTER_CONFIG).read_text(encoding="utf-8"))


def _base_folder(place: str) -> Path:
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place, "config.json")).parent


def _check(scratch, home, model):
    """The adapter on its base, in a clean process, against the merged ``model``."""
    classes = find_family(read_model_type(str(home))).models
    auto = next(names[-1] for path, names in classes.items() if path.endswith(f":{type(model).__name__}"))
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.safetensors"
        save_file(expected_outputs(model), probe)
        code = _PROBE.replace("TOLERANCE", repr(_TOLERANCE))
        run_without_hf_elm(code, scratch, str(home.resolve()), auto, probe)


def _write_card(folder, scratch, home, config, declared):
    """The user's own README.md as it is; PEFT's unfilled form is nobody's."""
    if has_users_card(folder) and "[More Information Needed]" not in (folder / CARD).read_text(encoding="utf-8"):
        shutil.copyfile(folder / CARD, scratch / CARD)
        return
    facts = read_facts(home, source=folder, **declared)
    base = config["base_model_name_or_path"]
    own = {"adapter": config, "parameters": None, "declared_base": base, "curves": has_curves(scratch)}
    facts = dataclasses.replace(facts, **own)
    (scratch / CARD).write_text(model_card(facts), encoding="utf-8")
