"""Human and machine continuations of the same prompts: what the machine-text detector learns from and is tested on.

A passage is ``prompt_tokens`` tokens of a document that the model was not trained on, and the ``document_tokens``
tokens after them: the human text. The machine text is the model's own continuation of the same prompt, of the same
length. The prompt itself belongs to neither text. Both texts went through the tokenizer's decoding and encoding again,
so that what the detector reads is text and not the tokens that were drawn; what does not come back as the same tokens
(broken characters) is drawn anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .detection_texts import TextCodec


PASSAGES_PER_BATCH = 64  # generated together, and what an interruption loses at most
ATTEMPTS = 4  # at a machine text that decodes and encodes to itself


@dataclass(frozen=True)
class Passage:
    """Where a document was cut.

    Attributes:
        document: digest of the whole document; passages of one document, and its machine texts, stay on one side of
            the split.
        prompt: token ids.
        human: the text that follows it.
    """

    document: str
    prompt: tuple[int, ...]
    human: str


@dataclass(frozen=True)
class Sampling:
    """How the machine texts are drawn.

    Attributes:
        generator: ``"lm"`` (MonArc: one candidate; nanoEBM: system 1) or ``"elm"`` (candidates resampled by energy;
            system 2).
        temperature, top_p, top_k: of the distribution that is drawn from; None = not cut.
        num_candidates: MonArc's, for ``"elm"``.
        seed: of every draw.
    """

    generator: str = "lm"
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    num_candidates: int = 8
    seed: int = 0

    @property
    def name(self) -> str:
        """``generator``, ``generator@temperature`` or ``generator@temperature/top_p``."""
        cut = "" if self.top_p is None else f"/{self.top_p:g}"
        return self.generator + (f"@{self.temperature:g}{cut}" if cut or self.temperature != 1 else "")

    @classmethod
    def parse(cls, name: str, **others: Any) -> Sampling:
        """What ``name`` says, and ``others`` for what it does not.

        Raises:
            ValueError: another form than that of `Sampling.name`, a temperature or top_p out of range.
        """
        found = re.fullmatch(r"(lm|elm)(?:@([0-9.]+)(?:/([0-9.]+))?)?", name.strip())
        try:
            given = {} if found is None else {"generator": found[1]}
            given |= {"temperature": float(found[2])} if found and found[2] else {}
            given |= {"top_p": float(found[3])} if found and found[3] else {}
        except ValueError:
            given = {}
        wanted = others | given
        if not given or wanted.get("temperature", 1) <= 0 or not 0 < (wanted.get("top_p") or 1) <= 1:
            raise ValueError(
                f'generator="{name}" must be lm or elm, or one with a temperature above 0 (lm@0.8), or with a top_p '
                "in (0, 1] too (lm@1/0.9)."
            )
        return cls(**wanted)

    def options(self, model) -> dict[str, Any]:
        """Arguments of ``model.generate``.

        Raises:
            ValueError: a generator that the model does not have.
        """
        chosen: dict[str, Any] = {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k or 0}
        chosen["top_p"] = 1.0 if self.top_p is None else self.top_p
        if self.generator not in generators_of(model):
            names = " or ".join(generators_of(model))
            raise ValueError(f'generator must be {names} for this model, got "{self.generator}".')
        if hasattr(model, "score_candidates"):
            chosen["num_candidates"] = 1 if self.generator == "lm" else self.num_candidates
        elif getattr(model.config, "model_type", None) == "nano_ebm":
            chosen["use_thinking"] = self.generator == "elm"
        return chosen


def generators_of(model) -> tuple[str, ...]:
    """The generators that a model has: MonArc and nanoEBM two, any other causal LM one."""
    two = hasattr(model, "score_candidates") or getattr(model.config, "model_type", None) == "nano_ebm"
    return ("lm", "elm") if two else ("lm",)


def cut_passages(
    texts: Iterable[str],
    codec: TextCodec,
    *,
    document_tokens: int = 100,
    prompt_tokens: int = 64,
    documents: int = 0,
    passages: int = 24,
    seed: int = 0,
) -> list[Passage]:
    """Passages that do not overlap, at random places of each document.

    Args:
        documents: at most so many documents, drawn by ``seed``; 0 = all.
        passages: at most so many of one document.

    Raises:
        ValueError: fewer than three documents are long enough.
    """
    by_digest = {hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(): text for text in texts}
    order = sorted(by_digest, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).digest())
    found: list[Passage] = []
    used = 0
    for digest in order:
        own = _of_document(by_digest[digest], digest, codec, document_tokens, prompt_tokens, passages, seed)
        found += own
        used += bool(own)
        if documents and used == documents:
            break
    if used < 3:
        raise ValueError(
            f"{used} documents of {len(order)} are long enough for a prompt of {prompt_tokens} and a text of "
            f"{document_tokens} tokens; three are the least that can be split. Give more or longer documents "
            "(data.corpus, data.held_out_fraction), or a smaller document_tokens."
        )
    return found


def _of_document(text, digest, codec, document_tokens, prompt_tokens, most, seed) -> list[Passage]:
    ids = codec.encode(text)
    size = prompt_tokens + drawn_tokens(document_tokens)
    slots, rest = divmod(len(ids), size)
    if not slots:
        return []
    generator = torch.Generator().manual_seed(
        int(hashlib.sha256(f"{seed} {digest} cut".encode()).hexdigest()[:15], 16)
    )
    shift = int(torch.randint(rest + 1, (1,), generator=generator))
    found = []
    for slot in torch.randperm(slots, generator=generator).tolist():
        start = shift + slot * size
        prompt, rest_ids = ids[start : start + prompt_tokens], ids[start + prompt_tokens : start + size]
        human = codec.document(rest_ids, document_tokens)
        if human is not None and codec.unknown not in prompt:
            found.append(Passage(digest, tuple(prompt), human))
        if len(found) == most:
            break
    return found


def drawn_tokens(document_tokens: int) -> int:
    """Tokens to draw for a text of ``document_tokens``: encoding anew may make fewer of them."""
    return document_tokens + document_tokens // 8 + 4


class MachineTexts:
    """Machine continuations of passages, kept in a file of JSON lines as they are drawn.

    The file's name is a digest of all that decides its content: model, passages, sampling and length. What an
    interrupted run has drawn is read again; a batch draws the same texts whether or not the batches before it were
    there.

    Args:
        folder: where the file is; created at the first write. None keeps nothing.
        fingerprint: of the model, see `model_fingerprint`.
    """

    def __init__(
        self,
        folder: str | Path | None,
        model,
        codec: TextCodec,
        fingerprint: dict[str, str],
        document_tokens: int = 100,
        sampling: Sampling | None = None,
    ):
        self.folder = None if folder is None else Path(folder)
        self.model, self.codec, self.fingerprint = model, codec, fingerprint
        self.document_tokens, self.sampling = document_tokens, sampling or Sampling()
        self._options = self.sampling.options(model)

    def texts(self, passages: list[Passage], done: Callable[[int], object] = lambda n: None) -> list[str | None]:
        """One text per passage; None where `ATTEMPTS` draws gave no text that encodes to itself.

        Raises:
            ValueError: prompt and text do not fit into the model's positions.
        """
        self._check_room(passages)
        path = self.path(passages)
        found = [] if path is None else _read_lines(path)
        found = found[: len(found) // PASSAGES_PER_BATCH * PASSAGES_PER_BATCH if len(found) < len(passages) else None]
        done(len(found))
        if path is not None and len(found) < len(passages):
            _rewrite(path, found)
        for start in range(len(found), len(passages), PASSAGES_PER_BATCH):
            part = self._batch(passages[start : start + PASSAGES_PER_BATCH])
            found += part
            if path is not None:
                _append(path, part)
            done(len(part))
        return found

    def path(self, passages: list[Passage]) -> Path | None:
        """The file of the machine texts of these passages."""
        if self.folder is None:
            return None
        key = [self.fingerprint, asdict(self.sampling), self.document_tokens, [asdict(each) for each in passages]]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / f"texts-{self.sampling.generator}-{digest}.jsonl"

    def _check_room(self, passages):
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(len(each.prompt) for each in passages) + len(self.codec.prefix)
        if positions is not None and longest + drawn_tokens(self.document_tokens) > positions:
            raise ValueError(
                f"prompt_tokens={longest} and {drawn_tokens(self.document_tokens)} drawn for document_tokens="
                f"{self.document_tokens} do not fit into the model's {positions} positions; take smaller ones."
            )

    def _batch(self, passages: list[Passage]) -> list[str | None]:
        found: list[str | None] = [None] * len(passages)
        for attempt in range(ATTEMPTS):
            missing = [i for i, text in enumerate(found) if text is None]
            if not missing:
                break
            prompts = [passages[i].prompt for i in missing]
            rows = self._generate(prompts, f"{asdict(self.sampling)} {attempt} {prompts}")
            for i, ids in zip(missing, rows, strict=True):
                found[i] = self.codec.document(ids, self.document_tokens)
        return found

    @torch.no_grad()
    def _generate(self, prompts, key: str) -> list[list[int]]:
        device = self.model.device
        ids = torch.tensor([[*self.codec.prefix, *prompt] for prompt in prompts], device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:15], 16))
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=drawn_tokens(self.document_tokens),
                suppress_tokens=self.codec.specials,
                **self._options,
            )
        return output[:, ids.shape[1] :].tolist()


def split_documents(passages: list[Passage], shares=(0.5, 0.15, 0.35), seed: int = 0) -> dict[str, list[int]]:
    """Places of the passages on each side, ``"train"``, ``"validation"``, ``"test"``: no document is on two sides.

    Documents in an order by hash fill the test side to its share of the passages, then the validation side; the rest
    trains. Each side has at least one document.

    Raises:
        ValueError: fewer than three documents.
    """
    places: dict[str, list[int]] = {}
    for i, passage in enumerate(passages):
        places.setdefault(passage.document, []).append(i)
    order = sorted(places, key=lambda name: hashlib.sha256(f"{seed} {name} split".encode()).digest())
    if len(order) < 3:
        raise ValueError(f"{len(order)} documents cannot be split into three sides; at least 3 are needed.")
    sides: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for side, share, left in (("test", shares[2], 2), ("validation", shares[1], 1)):
        while not sides[side] or (len(sides[side]) < share * len(passages) and len(order) > left):
            sides[side] += places[order.pop(0)]
    sides["train"] = [i for name in order for i in places[name]]
    return sides


def _read_lines(path: Path) -> list[str | None]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # a line without its end was being written
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["text"])
            continue
        break
    return found


def _rewrite(path: Path, texts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(_lines(texts))
    os.replace(temporary, path)


def _append(path: Path, texts) -> None:
    with open(path, "ab") as file:
        file.write(_lines(texts))
        file.flush()
        os.fsync(file.fileno())


def _lines(texts) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=True).encode() + b"\n" for text in texts)
