"""Documents packed into rows of one length, with their boundaries.

A row is a dict of equally long integer vectors:

- ``input_ids``: tokens, ``pad_token_id`` at the end where the row is not full;
- ``segment_ids``: 0, 1, 2, … for the pieces of documents in the row, -1 for padding;
- ``labels``: the tokens, but -100 at padding and at the first token of each segment, which nothing in the row predicts;
- ``document_ids``: the number of the document that a token belongs to, -1 for padding (a document may span rows);
- ``position_ids`` (with ``reset_position_ids``): 0, 1, 2, … within each segment, 0 for padding.

Every token of every document is in exactly one row, in the document's order. The rows depend on the documents, the
settings and the seed alone: not on batch sizes, processes, or how often a stream was interrupted and resumed.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np


QUEUE_SIZE = 1024  # pieces of documents that wait for a fitting row under "greedy"
PADDING = {"segment_ids": -1, "labels": -100, "document_ids": -1, "position_ids": 0}

Piece = tuple[int, np.ndarray]  # number of the document, some of its consecutive tokens


class RowPacker:
    """Turns documents, one after the other, into rows; its state can be saved and restored between any two documents.

    Strategies:
        ``"wrapped"``: documents end to end, cut where a row is full; the rest goes on in the next row as a segment of
            its own. No padding but in the last row.
        ``"greedy"``: documents that fit into a row stay whole. A longer one gives full rows and a rest. Of the pieces that
            wait (at most ``QUEUE_SIZE``) the oldest opens a row and the largest that still fit follow: best fit
            decreasing, over a window. What room remains is padding.

    Args:
        sequence_length: tokens per row, at least 2.
        pad_token_id: fills rows up; rows mark padding by segment and label, so it may equal eos.
        drop_last: leave out the last row that `flush` makes, unless it is full.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        sequence_length: int,
        *,
        pad_token_id: int = 0,
        strategy: str = "wrapped",
        reset_position_ids: bool = False,
        drop_last: bool = False,
    ):
        if sequence_length < 2:
            raise ValueError(f"sequence_length must be at least 2 (a token and its target), got {sequence_length!r}.")
        if strategy not in _QUEUES:
            raise ValueError(f"strategy must be one of {list(_QUEUES)}, got {strategy!r}.")
        self.sequence_length = sequence_length
        self.pad_token_id = pad_token_id
        self.strategy = strategy
        self.reset_position_ids = reset_position_ids
        self.drop_last = drop_last
        self.reset()

    def reset(self):
        """Forget everything that was pushed."""
        self._queue = _QUEUES[self.strategy](self.sequence_length)
        self._documents = 0

    @property
    def columns(self) -> list[str]:
        """The columns of a row."""
        optional = ["position_ids"] if self.reset_position_ids else []
        return ["input_ids", "segment_ids", "labels", "document_ids", *optional]

    def push(self, document_ids: Sequence[int] | np.ndarray, number: int | None = None) -> list[dict[str, np.ndarray]]:
        """The rows that are complete with this document; ``document_ids`` are its tokens.

        Args:
            number: of the document, for the column ``document_ids``; by default they are counted from 0.

        Raises:
            ValueError: ``document_ids`` is not a vector of integers.
        """
        tokens = np.asarray(document_ids)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise ValueError(
                f"document_ids must be a vector of integers, got shape {tokens.shape}, dtype {tokens.dtype}."
            )
        number = self._documents if number is None else number
        self._documents += 1
        return [self._row(pieces) for pieces in self._queue.push((number, tokens.astype(np.int32)))]

    def flush(self) -> list[dict[str, np.ndarray]]:
        """The rows of all that is left, the last one padded or dropped; the packer is empty afterwards."""
        rows = [self._row(pieces) for pieces in self._queue.flush()]
        if rows and self.drop_last and rows[-1]["segment_ids"][-1] < 0:
            rows.pop()
        return rows

    def state_dict(self) -> dict:
        """What is left over, as plain lists and numbers."""
        waiting = [[number, tokens.tolist()] for number, tokens in self._queue.pieces()]
        return {
            "sequence_length": self.sequence_length,
            "strategy": self.strategy,
            "documents": self._documents,
            "waiting": waiting,
        }

    def load_state_dict(self, state: dict):
        """Go on where ``state_dict`` was taken; ValueError for a state of other rows."""
        for name in ("sequence_length", "strategy"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The state was saved with {name}={state[name]!r}, this packer has {getattr(self, name)!r}; "
                    "resume with the settings of the saved run."
                )
        self.reset()
        self._documents = state["documents"]
        self._queue.restore([(number, np.array(tokens, dtype=np.int32)) for number, tokens in state["waiting"]])

    def _row(self, pieces: list[Piece]) -> dict[str, np.ndarray]:
        lengths = np.array([len(tokens) for _, tokens in pieces])
        starts = np.cumsum(lengths) - lengths
        tokens = np.concatenate([tokens for _, tokens in pieces])
        labels = tokens.copy()
        labels[starts] = -100
        row = {
            "input_ids": tokens,
            "segment_ids": np.repeat(np.arange(len(pieces)), lengths),
            "labels": labels,
            "document_ids": np.repeat([number for number, _ in pieces], lengths),
            "position_ids": np.arange(len(tokens)) - np.repeat(starts, lengths),
        }
        padding = PADDING | {"input_ids": self.pad_token_id}
        return {name: self._padded(row[name], padding[name]) for name in self.columns}

    def _padded(self, values: np.ndarray, padding: int) -> np.ndarray:
        padded = np.full(self.sequence_length, padding, dtype=np.int32)
        padded[: len(values)] = values
        return padded


class _WrappedQueue:
    """The open row."""

    def __init__(self, sequence_length: int):
        self.sequence_length = sequence_length
        self.open: list[Piece] = []
        self.room = sequence_length

    def push(self, piece: Piece) -> list[list[Piece]]:
        number, tokens = piece
        rows = []
        while len(tokens):
            self.open.append((number, tokens[: self.room]))
            tokens, self.room = tokens[self.room :], self.room - min(self.room, len(tokens))
            if self.room == 0:
                rows += self.flush()
        return rows

    def flush(self) -> list[list[Piece]]:
        rows = [self.open] if self.open else []
        self.open, self.room = [], self.sequence_length
        return rows

    def pieces(self) -> list[Piece]:
        return self.open

    def restore(self, pieces: list[Piece]):
        self.open = list(pieces)
        self.room = self.sequence_length - sum(len(tokens) for _, tokens in pieces)


class _BestFitQueue:
    """Pieces that wait for a row, by age and by length."""

    def __init__(self, sequence_length: int):
        self.sequence_length = sequence_length
        self.waiting: dict[int, Piece] = {}  # by serial number, the oldest first
        self.lengths: list[tuple[int, int]] = []  # (length, -serial number), sorted
        self.serial = 0

    def push(self, piece: Piece) -> list[list[Piece]]:
        number, tokens = piece
        whole = len(tokens) // self.sequence_length * self.sequence_length
        rows = [[(number, tokens[i : i + self.sequence_length])] for i in range(0, whole, self.sequence_length)]
        if whole < len(tokens):
            self._wait((number, tokens[whole:]))
        while len(self.waiting) > QUEUE_SIZE:
            rows.append(self._next_row())
        return rows

    def flush(self) -> list[list[Piece]]:
        rows = []
        while self.waiting:
            rows.append(self._next_row())
        return rows

    def pieces(self) -> list[Piece]:
        return list(self.waiting.values())

    def restore(self, pieces: list[Piece]):
        for piece in pieces:
            self._wait(piece)

    def _wait(self, piece: Piece):
        self.waiting[self.serial] = piece
        insort(self.lengths, (len(piece[1]), -self.serial))
        self.serial += 1

    def _next_row(self) -> list[Piece]:
        """The oldest piece, then always the largest that fits (of equal ones the oldest), in the order of age."""
        serial = next(iter(self.waiting))
        chosen, room = {}, self.sequence_length
        while serial is not None:
            piece = chosen[serial] = self.waiting.pop(serial)
            del self.lengths[bisect_left(self.lengths, (len(piece[1]), -serial))]
            room -= len(piece[1])
            fitting = bisect_right(self.lengths, (room, 1))
            serial = -self.lengths[fitting - 1][1] if fitting else None
        return [chosen[serial] for serial in sorted(chosen)]


_QUEUES = {"wrapped": _WrappedQueue, "greedy": _BestFitQueue}
