"""The files by which sentence-transformers reads an M2-BERT embedder, and the proof that its vectors are the same.

    Transformer (token states) > Pooling > Dense (the pooler's tanh layer) > Normalize

The files have the spelling that sentence-transformers has read since version 2 (what version 6 writes itself, 5.2 cannot
read), which other servers of its folders know too. Training there changes the Dense module; `hf_elm.embedding_models`
reads it back into the model.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .embedding import TextEmbedder
from .embedding_models import MODULES, load_embedding_model, read_modules
from .families import family_of_checkpoint
from .saved_models import load_tokenizer


TOLERANCE = 1e-4  # of vectors from another process: its products round otherwise, and the filters' sines magnify that
TOKENS_IN_PROBES = (1, 3, 8, 21, 55, 4)
_PROBE = """
import numpy as np
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

folder, probe, texts = sys.argv[1:]
texts = [bytes.fromhex(text).decode() for text in texts.split(",")]
expected = load_file(probe)["embeddings"].numpy()
model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
for batch_size in (1, len(texts)):
    found = model.encode(texts, batch_size=batch_size)
    if found.shape != expected.shape:
        raise SystemExit(f"SentenceTransformer gives vectors of shape {found.shape}, the model {expected.shape}")
    difference = np.abs(found - expected).max()
    if not difference <= TOLERANCE:
        raise SystemExit(f"SentenceTransformer's vectors differ by {difference} in batches of {batch_size}")
"""


def require_sentence_transformers() -> None:
    """Raise an ImportError that says how to install the package, where it is missing."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ImportError(
            'sentence_transformers=true needs that package; install it by pip install "hf_elm[retrieval]".'
        )


def is_sentence_transformers_folder(checkpoint: str) -> bool:
    """Whether ``checkpoint`` is an M2-BERT model with the modules of sentence-transformers."""
    return Path(checkpoint, MODULES).is_file() and family_of_checkpoint(checkpoint) == "m2_bert"


def load_for_modules(checkpoint: str, **fields: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedder and its tokenizer as they are to be written: weights of at least 32 bits, padding on the right.

    sentence-transformers gives all modules one dtype, and the filters of the model need float32.

    Raises:
        FileNotFoundError, ValueError: see `load_embedding_model`; a tokenizer without a padding token.
    """
    model = load_embedding_model(checkpoint, **fields).eval()
    if model.dtype in (torch.bfloat16, torch.float16):
        model.float()
        model.config.dtype = torch.float32
    tokenizer = load_tokenizer(checkpoint, "checkpoint")
    if tokenizer.pad_token is None:
        raise ValueError(
            f"checkpoint={checkpoint}: its tokenizer has no padding token, which sentence-transformers needs for batches; "
            "set tokenizer.pad_token and save it there."
        )
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def write_modules(folder: str | Path, model: PreTrainedModel) -> None:
    """Write modules.json and what it names beside the model saved in ``folder``."""
    folder, config = Path(folder), model.config
    hidden, dimensions = config.hidden_size, config.truncate_dim or config.hidden_size
    kinds, number = ["Transformer", "Pooling"], {torch.float64: torch.float64}.get(model.dtype, torch.float32)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
    )
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "", "mean_sqrt_len_tokens": ""}
    modes = {f"pooling_mode_{name}": config.pooling == mode for name, mode in modes.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **modes, "include_prompt": True})
    dense = model.m2_bert.pooler.dense
    if dense is not None or dimensions < hidden:
        linear = {"in_features": hidden, "out_features": dimensions, "bias": dense is not None}
        kind = "torch.nn.modules." + ("linear.Identity" if dense is None else "activation.Tanh")
        _write(folder / "2_Dense" / "config.json", linear | {"activation_function": kind})
        weights = {"weight": torch.eye(dimensions, hidden)} if dense is None else dict(dense.named_parameters())
        rows = {f"linear.{name}": value[:dimensions].detach().to(number).clone() for name, value in weights.items()}
        save_file(rows, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
        kinds.append("Dense")
    if config.normalize_embeddings:
        _write(folder / f"{len(kinds)}_Normalize" / "config.json", {})
        kinds.append("Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    _write(folder / MODULES, modules)
    own = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write(folder / "config_sentence_transformers.json", own)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_modules(folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Encode some texts by SentenceTransformer where hf_elm cannot be imported, and compare; alone and in a batch.

    Raises:
        ValueError: the vectors differ, or it does not load; the message ends with the process's own last line.
    """
    from .hub_folder import run_without_hf_elm

    read_modules(str(folder))  # what is written can be read back
    embedder = TextEmbedder(model, tokenizer, truncate=True)
    texts = _probes(tokenizer, model.config.vocab_size, embedder.max_length)
    expected = embedder.embed(embedder.tokenize(texts)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file({"embeddings": torch.from_numpy(expected)}, probe)
        arguments = (probe, ",".join(text.encode().hex() for text in texts))
        run_without_hf_elm(_PROBE.replace("TOLERANCE", repr(TOLERANCE)), folder, *arguments)


def _probes(tokenizer: PreTrainedTokenizerBase, vocabulary: int, longest: int) -> list[str]:
    """Texts of various lengths from ordinary tokens spread over the vocabulary."""
    vocabulary = min(vocabulary, len(tokenizer))
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(vocabulary) if i not in special] or [0]
    steps = [ordinary[(i * 7919) % len(ordinary)] for i in range(max(TOKENS_IN_PROBES))]
    return [tokenizer.decode(steps[: min(count, longest)]) or "a" for count in TOKENS_IN_PROBES]
