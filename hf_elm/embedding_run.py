"""What ``hf-elm embed`` does once its arguments are checked: embed in parts, keep each, continue after an interruption."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .embedding import TextEmbedder
from .embedding_inputs import EmbeddingInputs
from .embedding_models import load_embedder
from .embedding_outputs import PartialEmbeddings


BATCHES_PER_PART = 16  # what an interruption loses at most
CHARACTERS_PER_TOKEN = 4  # a guess, for the size of the parts alone


def embed_inputs(
    inputs: EmbeddingInputs,
    output: Path,
    checkpoint: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    include_text: bool = False,
    progress: bool = True,
    **options,
) -> PartialEmbeddings:
    """Write the vectors of ``inputs`` to ``output``, or continue the run that began to.

    Args:
        options: of `hf_elm.embedding.embed_texts`.

    Raises:
        FileExistsError: the rows that are there belong to other inputs or settings.
        ValueError, TypeError: see `load_embedder` and `embed_texts`; nothing is written before texts that may be too
            long have been checked.
    """
    model, tokenizer = load_embedder(checkpoint, device, dtype, options.get("pool_with_dense"))
    embedder = TextEmbedder(model, tokenizer, **options)
    settings = run_settings(inputs, model, tokenizer, embedder)
    number = np.float64 if model.dtype == torch.float64 else np.float32
    if not embedder.truncate:
        _refuse_long_texts(embedder, inputs)
    partial = PartialEmbeddings(output, settings, (len(inputs.texts), embedder.dimensions), number)
    embedder.num_truncated = partial.num_truncated
    if partial.done:
        sys.stderr.write(f"continuing after {partial.done} of {len(inputs.texts)} texts, from {partial.folder}\n")
    try:
        _fill(partial, embedder, inputs, progress)
        partial.finish(inputs, include_text)
    except KeyboardInterrupt:
        rest = f"{partial.done} of {len(inputs.texts)} texts are done and kept in {partial.folder}"
        sys.stderr.write(f"\n{rest}; the same command continues.\n")
        raise
    return partial


def _fill(partial: PartialEmbeddings, embedder: TextEmbedder, inputs: EmbeddingInputs, progress: bool) -> None:
    bar = tqdm(total=len(inputs.texts), initial=partial.done, desc="Embedding", unit="text", disable=not progress)
    with bar:
        for part in _parts(embedder, inputs.texts, partial.done):
            rows = embedder.tokenize(inputs.texts[part], inputs.ids[part])
            partial.append(embedder.embed(rows, bar.update), embedder.num_truncated)


def _parts(embedder: TextEmbedder, texts: list[str], start: int) -> Iterator[slice]:
    """Runs of texts of about `BATCHES_PER_PART` batches each; from an end of one on, the next ones are the same."""
    least = max(embedder.config.reference_length, 8)
    room = budget = BATCHES_PER_PART * embedder.tokens_per_batch
    first = start
    for i in range(start, len(texts)):
        room -= max(len(texts[i]) // CHARACTERS_PER_TOKEN, least)
        if room <= 0:
            yield slice(first, i + 1)
            first, room = i + 1, budget
    if first < len(texts):
        yield slice(first, len(texts))


def _refuse_long_texts(embedder: TextEmbedder, inputs: EmbeddingInputs) -> None:
    """Tokenizes the texts that may be too long, so that a run does not end at one after hours.

    A text has at most as many tokens as bytes; with the few tokenizers where that does not hold it is refused when its
    turn comes.
    """
    specials = embedder.tokenizer.num_special_tokens_to_add()
    room = embedder.max_length - specials - len(embedder.prompt.encode())
    suspects = [i for i, text in enumerate(inputs.texts) if len(text.encode("utf-8", "replace")) > room]
    for first in range(0, len(suspects), 1000):
        some = suspects[first : first + 1000]
        embedder.tokenize([inputs.texts[i] for i in some], [inputs.ids[i] for i in some])


def run_settings(
    inputs: EmbeddingInputs, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, embedder: TextEmbedder
) -> dict:
    """Whatever decides the vectors, with digests in the place of texts and weights."""
    tensors = (part for name, value in sorted(model.state_dict().items()) for part in (name.encode(), _bytes(value)))
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith(("_", "kernel_"))}
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return {
        "texts": len(inputs.texts),
        "text_digest": _digest(f"{len(text)}:{text}".encode("utf-8", "replace") for text in inputs.texts),
        "id_digest": _digest(f"{key!r}\n".encode("utf-8", "replace") for key in inputs.ids),
        "model_digest": _digest(tensors),
        "config_digest": _digest([repr(sorted(config.items(), key=lambda item: item[0])).encode()]),
        "tokenizer_digest": _digest([str(vocabulary).encode()]),
        "dtype": str(model.dtype).removeprefix("torch."),
        "pooling": embedder.pooling,
        "pool_with_dense": embedder.pool_with_dense,
        "normalize": embedder.normalize,
        "dimensions": embedder.dimensions,
        "prompt": embedder.prompt,
        "max_length": embedder.max_length,
        "truncate": embedder.truncate,
    }


def _digest(parts) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor):
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
