"""Texts to vectors with an M2-BERT encoder, on this machine.

    embedding = normalize(tanh(W pool(states) + b)[:truncate_dim])

pool is the first token's state, or the mean over the tokens. Texts are sorted by length and run in batches of about as
many tokens; the vectors come back in the order of the texts, and do not depend on the batch that a text was in.
`hf-elm embed` does the same from files, and can be interrupted.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


TOKENS_PER_BATCH = {"cpu": 8192}  # elsewhere:
TOKENS_PER_DEVICE_BATCH = 65536
POOLINGS = ("cls", "mean")


def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    pooling: str | None = None,
    pool_with_dense: bool | None = None,
    normalize: bool | None = None,
    truncate_dim: int | None = None,
    prompt: str = "",
    max_length: int | None = None,
    truncate: bool = False,
    tokens_per_batch: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """One vector per text, ``(len(texts), dimensions)``, in the order of ``texts``.

    The model is used where it is and as it is, in evaluation mode, and left in the mode it was in. With the defaults
    the result is the ``sentence_embedding`` of `M2BertForSentenceEmbedding`; float32, from a float64 model float64. A
    warning says how many texts were cut, if any.

    Args:
        model: an M2-BERT encoder or any of its heads.
        tokenizer: its tokenizer.
        texts: at least one.
        pooling: cls (first token) or mean (over the tokens); missing: as saved with the model.
        pool_with_dense: follow the pooling by the model's dense layer and tanh; missing: as saved with the model.
        normalize: give every vector unit length; missing: as saved with the model.
        truncate_dim: keep the first dimensions only (Matryoshka); missing: as saved with the model.
        prompt: stands before every text, for example "search_query: ".
        max_length: tokens of the longest text, special tokens included; missing: max_position_embeddings of the model.
        truncate: cut longer texts; false refuses them.
        tokens_per_batch: tokens that run at once, padding included; missing: 8192 on a CPU, else 65536. A longer text
            runs alone.
        batch_size: at most so many texts at once; missing: as many as tokens_per_batch allows.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError: a model of another family or without the pooler that it is to use, an option out of its
            range, no texts, a text that is not a str, has no tokens, is too long or gives ids that the model lacks.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a sequence of str, got the str {texts[:40]!r}; put it in a list.")
    embedder = TextEmbedder(
        model, tokenizer, pooling, pool_with_dense, normalize, truncate_dim, prompt, max_length, truncate,
        tokens_per_batch, batch_size,
    )  # fmt: skip
    if not len(texts):
        raise ValueError("texts is empty; give at least one text.")
    rows = embedder.tokenize(texts)
    if embedder.num_truncated:
        cut = f"{embedder.num_truncated} of {len(texts)} texts"
        warnings.warn(f"{cut} were cut to {embedder.max_length} tokens.", stacklevel=2)
    with tqdm(total=len(texts), desc="Embedding", unit="text", disable=not progress) as bar:
        return embedder.embed(rows, bar.update)


class TextEmbedder:
    """What `embed_texts` does, in steps, for texts that come in parts; arguments and errors as there.

    Attributes:
        dimensions: of the vectors.
        max_length: tokens of the longest text.
        num_truncated: texts that `tokenize` has cut so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str | None = None,
        pool_with_dense: bool | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str = "",
        max_length: int | None = None,
        truncate: bool = False,
        tokens_per_batch: int | None = None,
        batch_size: int | None = None,
    ):
        config = model.config
        if config.model_type != "m2_bert":
            raise TypeError(f"model must be an M2-BERT encoder, got {type(model).__name__} ({config.model_type}).")
        self.encoder, self.tokenizer, self.config = model.base_model, tokenizer, config
        self.pooling = config.pooling if pooling is None else pooling
        self.pool_with_dense = config.pool_with_dense if pool_with_dense is None else pool_with_dense
        self.normalize = config.normalize_embeddings if normalize is None else normalize
        truncate_dim = config.truncate_dim if truncate_dim is None else truncate_dim
        self.dimensions = config.hidden_size if truncate_dim is None else truncate_dim
        self.prompt, self.truncate = prompt, truncate
        self.max_length = config.max_position_embeddings if max_length is None else max_length
        default = TOKENS_PER_BATCH.get(model.device.type, TOKENS_PER_DEVICE_BATCH)
        self.tokens_per_batch = default if tokens_per_batch is None else tokens_per_batch
        self.batch_size = batch_size
        self.num_truncated = 0
        self._check()

    def _check(self):
        limit, hidden = self.config.max_position_embeddings, self.config.hidden_size
        specials = self.tokenizer.num_special_tokens_to_add()
        rules = {
            "pooling": (self.pooling, self.pooling in POOLINGS, f"one of {POOLINGS}"),
            "truncate_dim": (self.dimensions, 1 <= self.dimensions <= hidden, f"from 1 to hidden_size ({hidden})"),
            "max_length": (
                self.max_length,
                specials < self.max_length <= limit,
                f"above the {specials} special tokens and at most max_position_embeddings ({limit})",
            ),
            "tokens_per_batch": (self.tokens_per_batch, self.tokens_per_batch >= 1, "at least 1"),
            "batch_size": (self.batch_size, self.batch_size is None or self.batch_size >= 1, "at least 1"),
        }
        for name, (value, holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {value!r}.")
        pooler = self.encoder.pooler
        if self.pool_with_dense and (pooler is None or pooler.dense is None):
            raise ValueError(
                "the model has no dense pooling layer, which pool_with_dense=True needs; load it as "
                "M2BertForSentenceEmbedding, or pass pool_with_dense=False."
            )

    def tokenize(self, texts: Sequence[str], names: Sequence[int | str] | None = None) -> list[np.ndarray]:
        """Token ids of each text with prompt and special tokens, ``(tokens,)``; ``names``: of the texts, in errors."""
        names = range(len(texts)) if names is None else names
        for name, text in zip(names, texts, strict=True):
            if not isinstance(text, str):
                raise TypeError(f"texts must be str, got {type(text).__name__} at {name}.")
        texts = [self.prompt + text for text in texts]
        rows = self._ids(texts)
        long = [i for i, row in enumerate(rows) if len(row) > self.max_length]
        if long and not self.truncate:
            raise ValueError(
                f"text {names[long[0]]} has {len(rows[long[0]])} tokens, more than max_length = {self.max_length} "
                f"({len(long)} texts here are too long); cut them by truncate=True, or split them."
            )
        for i, row in zip(long, self._ids([texts[i] for i in long], truncation=True), strict=True):
            rows[i] = row
        self.num_truncated += len(long)
        for name, row in zip(names, rows, strict=True):
            if not len(row):
                raise ValueError(f"text {name} has no tokens; leave empty texts out.")
            if row.max() >= self.config.vocab_size:
                raise ValueError(
                    f"text {name} has the token id {row.max()}, and the model vocab_size = {self.config.vocab_size}; "
                    "the tokenizer is not this model's."
                )
        return rows

    def _ids(self, texts, truncation=False):
        if not texts:
            return []
        options = {"truncation": True, "max_length": self.max_length} if truncation else {"truncation": False}
        encoded = self.tokenizer(texts, return_attention_mask=False, verbose=False, **options)
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    @torch.no_grad()
    def embed(self, rows: Sequence[np.ndarray], advance: Callable[[int], object] = lambda count: None) -> np.ndarray:
        """Vectors of tokenized texts, ``(rows, dimensions)``; ``advance`` is told how many are done after each batch.

        Raises:
            ValueError: a vector is not finite.
        """
        double = self.encoder.dtype == torch.float64
        result = np.zeros((len(rows), self.dimensions), dtype=np.float64 if double else np.float32)
        training = self.encoder.training
        self.encoder.eval()
        try:
            for batch in self._batches([len(row) for row in rows]):
                vectors = self._vectors([rows[i] for i in batch])
                if not np.isfinite(vectors).all():
                    raise ValueError(
                        f"a vector is not finite; the model runs in {self.encoder.dtype}: check its weights, or load "
                        "it in float32."
                    )
                result[batch] = vectors
                advance(len(batch))
        finally:
            self.encoder.train(training)
        return result

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers of each batch, longest rows first, so that what does not fit into memory fails at once."""
        config, batch = self.config, []
        # rows as they come: padding would be read as tokens
        as_they_come = config.padding_mode == "reference" and not config.reference_length
        for i in np.argsort(np.negative(lengths), kind="stable").tolist():
            longest = max(lengths[batch[0] if batch else i], config.reference_length)
            full = (len(batch) + 1) * longest > self.tokens_per_batch or len(batch) == self.batch_size
            if batch and (full or (as_they_come and lengths[i] != longest)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _vectors(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        ids, mask = _right_padded(rows, self.config.pad_token_id or 0)
        ids, mask = (torch.from_numpy(array).to(self.encoder.device) for array in (ids, mask))
        vectors = self._pooled(self.encoder(ids, mask).last_hidden_state, mask)
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))[:, : self.dimensions]
        return (F.normalize(vectors, dim=-1) if self.normalize else vectors).cpu().numpy()

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """``(batch, seq, hidden)`` of right-padded rows -> ``(batch, hidden)``."""
        if self.pooling == "mean":
            weights = mask.to(states.dtype).unsqueeze(-1)
            pooled = (states * weights).sum(1) / weights.sum(1)
        else:
            pooled = states[:, 0]
        return torch.tanh(self.encoder.pooler.dense(pooled)) if self.pool_with_dense else pooled


def _right_padded(rows: Iterable[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids ``(batch, seq)`` and their mask, 1 = token."""
    rows = list(rows)
    ids = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
