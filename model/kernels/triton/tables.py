"""What the kernels are told of a step's sequences: tables of int32 that are made once and sent to the device at once.

All layers of a step ask for the same tables, so they are found again by the identity of what they were made of. A
piece of a table begins at a multiple of 16 bytes: Triton compiles another kernel for an address that does not.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.kernels.arguments import as_array
from model.kernels.listed import ListedTokens
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import MAX_SPLITS

Integers = NDArray[np.int32]
Made = TypeVar("Made")

ALIGNED = 4  # int32 of 16 bytes

# Tokens of a sequence that one program of the scan and the convolution walks through.
TILE_TOKENS = 64

# A decoding sequence's keys are split among at most MAX_SPLITS programs, of at least so many blocks each. The split is
# the sequence's own, so that its sums have one order whoever decodes beside it.
LEAST_SPLIT_BLOCKS = 2

# Columns of a span: what attention knows of a sequence.
SPAN_COLUMNS = (
    "first_position",
    "num_entries",
    "sink_blocks",
    "skipped_blocks",
    "sinks",
    "window",
    "split_blocks",
    "row",
)
# Stands for the window of a policy without one: longer than any text.
ENDLESS = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Tables by name in one piece of device memory, and what a launch has to know of them on the host."""

    whole: Tensor
    parts: Mapping[str, Tensor]
    sizes: Mapping[str, int]

    @staticmethod
    def sent(pieces: Mapping[str, Integers], sizes: Mapping[str, int], device: str) -> "Tables":
        """``pieces`` on the device, in one transfer that the host does not wait for."""
        whole = _whole(pieces, device).to(device, non_blocking=True)
        parts, start = {}, 0
        for name, piece in pieces.items():
            parts[name] = whole[start : start + piece.size].view(piece.shape)
            start += _aligned(piece.size)
        return Tables(whole, parts, sizes)

    def overwrite(self, pieces: Mapping[str, Integers]) -> None:
        """Put other numbers in the same place; every piece has the shape it had."""
        shapes = {name: piece.shape for name, piece in pieces.items()}
        assert shapes == {name: tuple(part.shape) for name, part in self.parts.items()}, f"{shapes} do not fit"
        self.whole.copy_(_whole(pieces, str(self.whole.device)), non_blocking=True)


class Latest(Generic[Made]):
    """What was made last. Layers of one step get it again, because they bring the very same objects."""

    def __init__(self) -> None:
        self._made_of: tuple[object, ...] = ()
        self._made: Made | None = None

    def of(self, made_of: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """What was made of these objects, which nobody changes after they were given. Lists are never remembered."""
        if self._made is not None and len(made_of) == len(self._made_of) and all(map(is_, made_of, self._made_of)):
            return self._made
        made = make()
        if all(isinstance(each, Tensor | tuple) for each in made_of):
            self.put(made_of, made)
        return made

    def put(self, made_of: tuple[object, ...], made: Made) -> None:
        """Let ``of`` give ``made`` for these objects."""
        # The objects are held, so that no other can come to have their identity.
        self._made_of, self._made = made_of, made


def recurrence_pieces(bounds: Sequence[int], slots: Sequence[int]) -> dict[str, Integers]:
    """Rows and slots by sequence; by tile of at most ``TILE_TOKENS`` tokens its sequence and first row; by sequence its
    first tile. A slot of -1 is that of a padding row: nothing is read from it or written to it."""
    starts = np.asarray(bounds, np.int32)
    num_tiles = -(-np.diff(starts) // TILE_TOKENS)
    first_tile = np.concatenate((np.zeros(1, np.int32), np.cumsum(num_tiles, dtype=np.int32)))
    sequence = np.repeat(np.arange(len(slots), dtype=np.int32), num_tiles)
    within = np.arange(len(sequence), dtype=np.int32) - first_tile[sequence]
    return {
        "bounds": starts,
        "slots": np.asarray(slots, np.int32),
        "tile_sequence": sequence,
        "tile_row": (starts[sequence] + within * TILE_TOKENS).astype(np.int32),
        "first_tile": first_tile,
    }


def recurrence_tables(query_start: Tensor, state_slots: Tensor, device: str) -> Tables:
    """The tables of the scan and the convolution over a ragged step."""
    pieces = recurrence_pieces(query_start.tolist(), state_slots.tolist())
    lengths = np.diff(pieces["bounds"])
    sizes = {
        "num_sequences": len(lengths),
        "num_tiles": len(pieces["tile_sequence"]),
        "longest": int(lengths.max(initial=0)),
        "tile_tokens": TILE_TOKENS,
    }
    return Tables.sent(pieces, sizes, device)


def num_visible_blocks(position: int, policy: AttentionPolicy) -> int:
    """Blocks that the token at ``position`` sees something of."""
    end_block = position // BLOCK_TOKENS + 1
    sink_blocks = 0 if policy.name is PolicyName.FULL else min(policy.sinks // BLOCK_TOKENS, end_block)
    return sink_blocks + end_block - max(policy.window_start(position) // BLOCK_TOKENS, sink_blocks)


def span(
    row: int, first: int, num_tokens: int, table: Sequence[int], policy: AttentionPolicy
) -> tuple[list[int], Integers]:
    """What attention knows of a sequence, by ``SPAN_COLUMNS``, and the entries of its block table that it reads.

    ``num_tokens`` tokens in the rows from ``row`` on stand at the positions from ``first`` on. The entries are the
    blocks of the sinks and those from the first token's window on; ``skipped_blocks`` lie between the two.
    """
    is_full = policy.name is PolicyName.FULL
    blocks = np.frombuffer(as_array(table) or array("q"), np.int64)
    sink_blocks = 0 if is_full else policy.sinks // BLOCK_TOKENS
    window_block = max(policy.window_start(first) // BLOCK_TOKENS, sink_blocks)
    end_block = -(-(first + num_tokens) // BLOCK_TOKENS)
    entries = np.concatenate((blocks[: min(sink_blocks, end_block)], blocks[window_block:end_block])).astype(np.int32)
    assert entries.size == min(sink_blocks, end_block) + max(0, end_block - window_block), (
        "the block table is too short"
    )
    assert entries.min(initial=0) >= 0, "a block that is read was given back"
    split_blocks = int(_split_blocks(np.asarray(entries.size)))
    skipped = window_block - sink_blocks
    sinks, window = (0, ENDLESS) if is_full else (policy.sinks, policy.window)
    return [first, entries.size, sink_blocks, skipped, sinks, window, split_blocks, row], entries


def paging_pieces(
    bounds: Sequence[int],
    first_positions: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    policies: Sequence[AttentionPolicy],
    tile_tokens: int,
    least_width: int = 0,
) -> dict[str, Integers]:
    """``spans`` and ``entries`` by sequence, padded to the longest or to ``least_width``; the sequences of one token
    (``decodes``), and of the others their tiles of ``tile_tokens`` queries, by sequence and first token."""
    lengths = np.diff(np.asarray(bounds, np.int32))
    found = [
        span(row, first, int(length), table, policy)
        for row, first, length, table, policy in zip(
            bounds[:-1], first_positions, lengths, block_tables, policies, strict=True
        )
    ]
    width = max([least_width, *(entries.size for _, entries in found)])
    entries = np.zeros((len(found), width), np.int32)
    for sequence, (_, own) in enumerate(found):
        entries[sequence, : own.size] = own
    num_tiles = np.where(lengths > 1, -(-lengths // tile_tokens), 0)
    tile_sequence = np.repeat(np.arange(len(found), dtype=np.int32), num_tiles)
    within = np.arange(tile_sequence.size) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    return {
        "spans": np.asarray([numbers for numbers, _ in found], np.int32).reshape(len(found), len(SPAN_COLUMNS)),
        "entries": entries,
        "decodes": np.flatnonzero(lengths == 1).astype(np.int32),
        "tile_sequence": tile_sequence,
        "tile_token": (within * tile_tokens).astype(np.int32),
        "lengths": lengths.astype(np.int32),
    }


def paging_tables(pieces: Mapping[str, Integers], device: str, num_splits: int | None = None) -> Tables:
    """The tables of attention; ``num_splits`` are launched, by default as many as the longest decode needs."""
    if num_splits is None:
        spans = pieces["spans"][pieces["decodes"]]
        num_entries, split_blocks = spans[:, 1], spans[:, 6]
        num_splits = int((-(-num_entries // split_blocks)).max(initial=1))
    sizes = {
        "num_decodes": pieces["decodes"].size,
        "num_tiles": pieces["tile_sequence"].size,
        "num_splits": num_splits,
        "width": pieces["entries"].shape[1],
    }
    return Tables.sent(pieces, sizes, device)


def listed_pieces(tokens: ListedTokens) -> dict[str, Integers]:
    """``spans``, of whose columns those are filled in that splitting needs, and ``entries`` by token and key head."""
    spans = np.zeros((len(tokens.rows), len(SPAN_COLUMNS)), np.int32)
    columns = {"num_entries": tokens.num_entries, "split_blocks": _split_blocks(tokens.num_entries), "row": tokens.rows}
    for name, column in columns.items():
        spans[:, SPAN_COLUMNS.index(name)] = column
    decodes = np.arange(len(tokens.rows), dtype=np.int32)
    return {"spans": spans, "entries": tokens.entries, "decodes": decodes, "offsets": tokens.offsets}


def _split_blocks(num_entries: Integers) -> Integers:
    return np.maximum(LEAST_SPLIT_BLOCKS, -(-num_entries // MAX_SPLITS))


def _whole(pieces: Mapping[str, Integers], device: str) -> Tensor:
    whole = np.zeros(sum(_aligned(piece.size) for piece in pieces.values()), np.int32)
    start = 0
    for piece in pieces.values():
        whole[start : start + piece.size] = piece.ravel()
        start += _aligned(piece.size)
    tensor = torch.from_numpy(whole)
    # From pinned memory the copy need not be waited for; torch keeps it until the copy is done.
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def _aligned(size: int) -> int:
    # An empty piece has a place too: an address is asked for, though nothing is read.
    return max(1, -(-size // ALIGNED)) * ALIGNED
