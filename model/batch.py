"""The tensors of one step: prompt chunks and decode tokens of several sequences, one after another."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.kernels.block_index import BlockIndex
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName


def _none() -> "array[int]":
    return array("q")


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """The next tokens of one sequence: a prompt chunk, or one token while decoding.

    ``first_position`` is the absolute position of the first of them; everything before it has been read into
    ``state_slot`` and ``blocks``. ``blocks`` is the sequence's block table, long enough for these tokens.
    Logits are computed for the last ``num_logits`` tokens. ``is_decode``: the token was drawn and not given, so that
    it may take the fast path of decoding, whose rounding is its own. A prompt's token never does, however its prompt
    is cut. ``next_ids``: the tokens after the first ones of these, whose surprisal is wanted. ``archived`` are the
    numbers of its blocks in the archive by place, ``select_from`` is the first position that selects among them, and
    ``leaving`` pairs of a block that leaves the window in this step and its number there. ``indexes`` are those that
    its tokens choose by.
    """

    token_ids: Sequence[int]
    first_position: int
    state_slot: int
    blocks: Sequence[int]
    policy: AttentionPolicy
    num_logits: int = 1
    is_decode: bool = False
    next_ids: Sequence[int] | None = None
    archived: "array[int]" = field(default_factory=_none)
    select_from: int = 0
    leaving: Sequence[int] = ()
    indexes: "Sequence[BlockIndex]" = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, packed. Index tensors are int64; ``query_start`` and ``state_slots`` stay on the CPU.

    ``input_ids`` [T]; ``query_start`` [S+1], the rows of sequence s are ``query_start[s]:query_start[s+1]``;
    ``state_slots`` [S], all different; ``kv_rows`` [T], the row ``block * P + offset`` of the key/value pool each
    token is written to; ``logits_rows``, the rows that need logits, ascending; ``first_positions``,
    ``block_tables`` and ``policies`` have one entry per sequence. The first ``num_decodes`` sequences have one token
    each, and it was drawn. ``next_ids`` [T] is the token after each one, -1 where its surprisal is not wanted; None
    where none is. ``archived``, ``select_from`` and ``indexes`` have one entry per sequence where any reads under
    policy ``archive``, and are empty else; ``leaving`` are the pairs of all.
    """

    input_ids: Tensor
    query_start: Tensor
    state_slots: Tensor
    kv_rows: Tensor
    logits_rows: Tensor
    first_positions: tuple[int, ...]
    block_tables: tuple[Sequence[int], ...]
    policies: tuple[AttentionPolicy, ...]
    num_decodes: int = 0
    next_ids: Tensor | None = None
    archived: "tuple[array[int], ...]" = ()
    select_from: tuple[int, ...] = ()
    leaving: "array[int]" = field(default_factory=_none)
    indexes: "tuple[Sequence[BlockIndex], ...]" = ()

    @property
    def num_tokens(self) -> int:
        """T: tokens in the step."""
        return self.input_ids.shape[0]

    @staticmethod
    def pack(chunks: Sequence[SequenceChunk], device: str = "cpu") -> "Batch":
        """Flatten ``chunks`` in their order, decodes first. The block tables are referred to, not copied."""
        assert chunks, "a step has at least one sequence"
        num_decodes = sum(chunk.is_decode for chunk in chunks)
        decodes = chunks[:num_decodes]
        assert all(chunk.is_decode and len(chunk.token_ids) == 1 for chunk in decodes), "decodes are single and first"
        ids: list[int] = []
        starts = [0]
        kv_rows: list[int] = []
        logits_rows: list[int] = []
        next_ids: list[int] = []
        for chunk in chunks:
            count = len(chunk.token_ids)
            assert 0 <= chunk.num_logits <= count > 0, f"{chunk.num_logits} logits of {count} tokens"
            ids += chunk.token_ids
            kv_rows += _kv_rows(chunk)
            starts.append(len(ids))
            logits_rows += range(len(ids) - chunk.num_logits, len(ids))
            told = [] if chunk.next_ids is None else [*chunk.next_ids]
            next_ids += told + [-1] * (count - len(told))
        slots = [chunk.state_slot for chunk in chunks]
        has_archive = any(chunk.policy.name is PolicyName.ARCHIVE for chunk in chunks)
        assert len(set(slots)) == len(slots), f"two sequences of one step share a state slot: {slots}"
        return Batch(
            input_ids=_indices(ids, device),
            query_start=_indices(starts),
            state_slots=_indices(slots),
            kv_rows=_indices(kv_rows, device),
            logits_rows=_indices(logits_rows, device),
            first_positions=tuple(chunk.first_position for chunk in chunks),
            block_tables=tuple(chunk.blocks for chunk in chunks),
            policies=tuple(chunk.policy for chunk in chunks),
            num_decodes=num_decodes,
            next_ids=None if all(chunk.next_ids is None for chunk in chunks) else _indices(next_ids, device),
            archived=tuple(chunk.archived for chunk in chunks) if has_archive else (),
            select_from=tuple(chunk.select_from for chunk in chunks) if has_archive else (),
            leaving=array("q", [each for chunk in chunks for each in chunk.leaving]),
            indexes=tuple(chunk.indexes for chunk in chunks) if has_archive else (),
        )


def _indices(values: list[int], device: str = "cpu") -> Tensor:
    # torch.tensor looks at each value to find its kind, and takes five times as long.
    found = torch.from_numpy(np.array(values, dtype=np.int64))
    return found if device == "cpu" else found.to(device)


def _kv_rows(chunk: SequenceChunk) -> list[int]:
    first, end = chunk.first_position, chunk.first_position + len(chunk.token_ids)
    blocks = chunk.blocks[first // BLOCK_TOKENS : -(-end // BLOCK_TOKENS)]
    assert len(blocks) * BLOCK_TOKENS >= end - first // BLOCK_TOKENS * BLOCK_TOKENS, "the block table is too short"
    assert min(blocks) >= 0, "a block that is written to was given back"
    rows: list[int] = []
    for place, block in enumerate(blocks, first // BLOCK_TOKENS):
        start, stop = max(first, place * BLOCK_TOKENS), min(end, (place + 1) * BLOCK_TOKENS)
        rows += range((block - place) * BLOCK_TOKENS + start, (block - place) * BLOCK_TOKENS + stop)
    return rows
