"""Self-contained Hub folders: written beside their place, proven in a process that cannot import hf_elm, then moved there."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .adapter_folders import base_of_adapter, is_quantized
from .card_files import carry_over
from .other_heads import keep_other_heads
from .run_folder import new_folder
from .saved_models import load_checkpoint
from .sentence_transformers_folder import (
    check_modules,
    is_sentence_transformers_folder,
    load_for_modules,
    require_sentence_transformers,
    write_modules,
)


COMPARED = ("logits", "energies", "last_hidden_state", "start_logits", "end_logits", "sentence_embedding")
TOLERANCE = 1e-5  # of outputs that are equal up to the order of float32 sums
_WITHOUT_HF_ELM = """
import sys

class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_elm":
            raise ImportError("the exported code imports hf_elm")

sys.meta_path.insert(0, Block())
import torch
import transformers

torch.set_num_threads(1)
"""
_PROBE = """
import json
from pathlib import Path
from safetensors.torch import load_file

folder, probe = sys.argv[1:]
expected = load_file(probe)
options = {"trust_remote_code": True, "local_files_only": True}
config = transformers.AutoConfig.from_pretrained(folder, **options)
for name in json.loads((Path(folder) / "config.json").read_text())["auto_map"]:
    if name == "AutoConfig":
        continue
    model = getattr(transformers, name).from_pretrained(folder, **options).eval()
    with torch.no_grad():
        output = model(expected["input_ids"])
    if type(model).__name__ != "SAVED_CLASS":  # another head, with new weights: it loads and runs
        continue
    for key in expected.keys() - {"input_ids"}:
        difference = (output[key].float() - expected[key].float()).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected[key].float().abs().max().item()):
            raise SystemExit(f"{name}: {key} differs by {difference}")
    if model.can_generate():
        model.generate(expected["input_ids"], max_new_tokens=2)
transformers.AutoTokenizer.from_pretrained(folder, **options)
"""


def export_checkpoint(
    checkpoint: str,
    out: str | Path,
    *,
    sentence_transformers: bool = False,
    card: dict[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Write the saved model, its code, tokenizer, generation config and card to the new folder ``out``; prove that it loads.

    The weights of every head that the checkpoint has are kept. An adapter (PEFT) is merged into its base.

    Args:
        sentence_transformers: write `M2BertForSentenceEmbedding` and the modules that sentence-transformers looks for.
        card: what no file says for the model card, such as ``repo_id`` and ``license``.
        fields: replace those of its config, None = as saved; with ``sentence_transformers`` alone.

    Raises:
        FileExistsError: ``out`` is there already.
        ImportError: ``sentence_transformers``, and the package is not installed.
        OSError: the disk is full, or fails.
        ValueError: the checkpoint cannot be loaded, or the folder does not work in a clean process (with its reason).
    """
    if sentence_transformers:
        require_sentence_transformers()
    with new_folder(out, "OUT") as folder:
        if sentence_transformers or is_sentence_transformers_folder(checkpoint):
            model, tokenizer = load_for_modules(checkpoint, **fields)
        else:
            model, tokenizer = load_checkpoint(checkpoint, device="cpu", as_saved=True)
        if base_of_adapter(checkpoint) is not None and is_quantized(model):
            raise ValueError(
                f"checkpoint={checkpoint} adapts a quantised model, into which it cannot be merged; publish the adapter's folder "
                "as it is, or save its base in full precision."
            )
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            keep_other_heads(base_of_adapter(checkpoint) or checkpoint, folder, model)
            if sentence_transformers:
                write_modules(folder, model)
            carry_over(checkpoint, folder, **(card or {}))
        except (OSError, SafetensorError) as error:
            raise OSError(f"OUT={out} could not be written: {error}. Nothing was kept; free some space.") from error
        check_hub_folder(folder, model)
        if sentence_transformers:
            check_modules(folder, model, tokenizer)


def check_saved_folder(folder: str) -> None:
    """`check_hub_folder`, for a folder whose model is not at hand: what hf_elm's own classes compute must come back.

    Raises:
        ValueError: it cannot be loaded, or does not work in a clean process.
    """
    if is_sentence_transformers_folder(folder):
        require_sentence_transformers()
        model, tokenizer = load_for_modules(folder)
        check_hub_folder(folder, model)
        check_modules(folder, model, tokenizer)
    else:
        model, _ = load_checkpoint(folder, device="cpu", as_saved=True)
        check_hub_folder(folder, model)


def check_hub_folder(folder: str | Path, model) -> None:
    """Load ``folder`` by every Auto class of its auto_map where hf_elm cannot be imported; compare with ``model``; generate.

    Raises:
        ValueError: any of it failed; the message ends with the process's own last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file(expected_outputs(model), probe)
        code = _PROBE.replace("TOLERANCE", repr(TOLERANCE)).replace("SAVED_CLASS", type(model).__name__)
        run_without_hf_elm(code, folder, probe)


def run_without_hf_elm(code: str, folder: str | Path, *arguments: str | Path) -> str:
    """Standard output of ``code`` in a fresh interpreter that cannot import hf_elm and goes to no network.

    ``torch`` and ``transformers`` are imported for it; ``sys.argv[1]`` is the absolute path of ``folder``, then ``arguments``.

    Raises:
        ValueError: it failed; the message ends with the process's own last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(scratch) / "modules"), "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [
            sys.executable,
            "-I",
            "-c",
            _WITHOUT_HF_ELM + code,
            str(Path(folder).resolve()),
            *map(str, arguments),
        ]
        result = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise ValueError(f"the exported folder does not work without hf_elm: {lines[-1].strip()}")
    return result.stdout


@torch.no_grad()
def expected_outputs(model):
    """Inputs and the outputs that must come back; token ids from the middle of the vocabulary, ``(1, 8)``."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    input_ids = (torch.arange(8) * 7 + vocabulary // 3) % vocabulary
    output = model(input_ids.unsqueeze(0))
    kept = {key: output[key].contiguous() for key in COMPARED if key in output}
    return {"input_ids": input_ids.unsqueeze(0), **kept}
