"""Attention of a step where what left the windows lies on the host, and the device attends.

In each layer the queries of the tokens that select come to the host, which chooses; what was chosen and is nowhere on
the device is fetched, and each of these tokens attends to its own list of blocks. Meanwhile the device is at the tokens
that do not select. The host waits once a layer, for the queries; the device waits for what is fetched. So such a step
is not one piece that could be recorded and replayed: see :mod:`model.decode_graphs`.

A token's list, and so the order of its sums, is its own: neither its neighbours nor what happens to be on the device
already change a bit of what it gets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.batch import Batch
from model.cache.fetched_blocks import FetchedBlocks
from model.kernels import Kernels
from model.kernels.arguments import as_array
from model.kernels.listed import ListedTokens
from model.kernels.selection import ArchivedLayer, first_selecting
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import LISTED_TOKENS

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Selecting:
    """The tokens of one sequence that select: ``count`` from ``row`` of the step and ``position`` on, which are those
    from ``start`` on among all that select. ``blocks`` and ``archived`` are its tables by place."""

    index: int
    row: int
    position: int
    start: int
    count: int
    policy: AttentionPolicy
    blocks: Numbers
    archived: Numbers


class FetchingStep:
    """One step over a pool whose archive is on the host. Its parts are the same in all layers."""

    def __init__(self, batch: Batch, fetched: FetchedBlocks) -> None:
        self._fetched = fetched
        fetched.begin_step()
        # Sent once, and not in each layer: the host waits for it.
        blocks = torch.tensor(batch.leaving[::2], dtype=torch.int64)
        self._leaving = blocks.to(batch.input_ids.device), batch.leaving[1::2]
        self._whole = batch.query_start, batch.first_positions, batch.block_tables, batch.policies
        self._selecting = list(_selecting(batch))
        self._num_selecting = sum(each.count for each in self._selecting)
        if not self._selecting:
            return
        self._rows = np.concatenate([np.arange(each.row, each.row + each.count) for each in self._selecting])
        self._asked = self._starts([each.count for each in self._selecting])
        device = batch.input_ids.device
        self._device_rows = torch.from_numpy(self._rows).to(device)
        # The others, as a step of their own.
        lengths = np.diff(batch.query_start.numpy())
        np.subtract.at(lengths, [each.index for each in self._selecting], [each.count for each in self._selecting])
        kept = np.ones(batch.num_tokens, dtype=bool)
        kept[self._rows] = False
        self._other_rows = torch.from_numpy(np.flatnonzero(kept)).to(device)
        self._others = self._starts(lengths), *self._whole[1:]

    def attend(self, kernels: Kernels, queries: Tensor, keys: Tensor, values: Tensor, archive: ArchivedLayer) -> Tensor:
        """As :func:`model.kernels.reference.attend` with ``archive``, to which what leaves the windows is copied."""
        assert archive.plan is None, "by indexes key heads may choose different numbers of blocks"
        self._fetched.leave(archive, *self._leaving, keys, values)
        if not self._selecting:
            return kernels.attend(queries, keys, values, *self._whole)
        asked = self._fetched.ask(queries[self._device_rows])
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        if len(self._other_rows):
            out[self._other_rows] = kernels.attend(queries[self._other_rows], keys, values, *self._others)
        # The queries have come, and what left in this layer: later tokens may choose what earlier ones left behind.
        self._fetched.settle()
        own = replace(
            archive,
            tables=[archive.tables[each.index] for each in self._selecting],
            select_from=[archive.select_from[each.index] for each in self._selecting],
        )
        policies = [each.policy for each in self._selecting]
        chosen = kernels.choose(asked, self._asked, [each.position for each in self._selecting], policies, own).numpy()
        waiting = [(start, start + LISTED_TOKENS) for start in range(0, self._num_selecting, LISTED_TOKENS)][::-1]
        while waiting:
            start, end = waiting.pop()
            end = min(end, self._num_selecting)
            listed = self._listed(chosen, start, end)
            if listed.num_strips > self._fetched.num_strips and end - start > 1:
                # More than there is room for at once: half of the tokens after the other.
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
                continue
            tokens = listed.tokens(self._rows[start:end], self._fetched, archive)
            kernels.attend_listed(queries, keys, values, self._fetched.strips[archive.layer], tokens, out)
        return out

    def end(self) -> None:
        """The archive has what left in this step."""
        self._fetched.settle()

    def _listed(self, chosen: npt.NDArray[np.int32], start: int, end: int) -> "_Lists":
        """Lists of the tokens from ``start`` to ``end`` of those that select."""
        parts = [
            _lists_of(each, chosen[low:high], each.position + low - each.start)
            for each in self._selecting
            if (low := max(start, each.start)) < (high := min(end, each.start + each.count))
        ]
        blocks, numbers, counts, offsets = zip(*parts, strict=True)
        width = max(each.shape[2] for each in blocks)
        return _Lists(
            np.concatenate([_widened(each, width) for each in blocks]),
            np.concatenate([_widened(each, width) for each in numbers]),
            np.concatenate(counts),
            np.concatenate(offsets),
        )

    @staticmethod
    def _starts(lengths: "list[int] | Numbers") -> Tensor:
        return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


class _Lists:
    """``blocks`` and ``numbers`` [N, G, width]: blocks of the pool, and where these are -1 numbers in the archive."""

    def __init__(self, blocks: Numbers, numbers: Numbers, counts: Numbers, offsets: Numbers) -> None:
        self.blocks, self.numbers, self.counts, self.offsets = blocks, numbers, counts, offsets
        self._is_far = blocks < 0
        _, num_groups, _ = blocks.shape
        strips = (numbers * num_groups + np.arange(num_groups)[:, None])[self._is_far]
        self._strips, self._which = np.unique(strips, return_inverse=True)

    @property
    def num_strips(self) -> int:
        """Different strips that are not in the pool of blocks."""
        return len(self._strips)

    def tokens(self, rows: Numbers, fetched: FetchedBlocks, archive: ArchivedLayer) -> ListedTokens:
        """The lists with everything on the device."""
        entries = self.blocks
        if self.num_strips:
            slots = fetched.bring(archive, *np.divmod(self._strips, fetched.num_groups))
            entries = entries.copy()
            entries[self._is_far] = -1 - slots[self._which]
        told = (each.astype(np.int32) for each in (rows, entries, self.counts, self.offsets))
        return ListedTokens(*told)


def is_fetching(batch: Batch) -> bool:
    """Whether a token of the step selects or a block leaves for the archive, so that the host has its part in it."""
    return bool(batch.archived) and (bool(batch.leaving) or any(True for _ in _selecting(batch)))


def _selecting(batch: Batch) -> Iterator[_Selecting]:
    bounds = batch.query_start.tolist()
    start = 0
    for index, (first, policy) in enumerate(zip(batch.first_positions, batch.policies, strict=True)):
        if policy.name is not PolicyName.ARCHIVE:
            continue
        skipped = max(0, first_selecting(policy, batch.select_from[index]) - first)
        count = bounds[index + 1] - bounds[index] - skipped
        if count > 0:
            tables = batch.block_tables[index], batch.archived[index]
            # Copied: an array of which somebody holds a view cannot grow.
            copied = [np.frombuffer(as_array(table), dtype=np.int64).copy() for table in tables]
            yield _Selecting(index, bounds[index] + skipped, first + skipped, start, count, policy, *copied)
            start += count


def _lists_of(
    part: _Selecting, chosen: npt.NDArray[np.int32], position: int
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """What ``_Lists`` takes, of the tokens from ``position`` on that chose the places ``chosen`` [N, G, most]."""
    policy = part.policy
    positions = position + np.arange(len(chosen))
    num_sinks, first = policy.sinks // BLOCK_TOKENS, (positions - policy.window + 1) // BLOCK_TOKENS
    num_chosen = (chosen[:, 0] >= 0).sum(1)
    assert ((chosen >= 0).sum(2) == num_chosen[:, None]).all(), "key heads chose different numbers of blocks"
    counts = num_sinks + num_chosen + positions // BLOCK_TOKENS - first + 1
    # Sinks, what was chosen, the window; behind that the first block again, which nobody looks at.
    place = np.arange(counts.max())
    listed = chosen[:, :, np.clip(place - num_sinks, 0, chosen.shape[2] - 1)]
    window = (first - num_sinks - num_chosen)[:, None] + place
    is_chosen = place < (num_sinks + num_chosen)[:, None]
    places = np.where(place < num_sinks, place, np.where(is_chosen[:, None], listed, window[:, None]))
    is_read = (place < counts[:, None])[:, None]
    # What has left may still be there, if it left in this step.
    blocks = np.where(is_read, part.blocks[np.where(is_read, places, positions[0] // BLOCK_TOKENS)], 0)
    numbers = np.where(blocks < 0, part.archived[np.where(blocks < 0, places, 0)], 0)
    return blocks, numbers, counts, positions % BLOCK_TOKENS


def _widened(lists: Numbers, width: int) -> Numbers:
    return np.pad(lists, ((0, 0), (0, 0), (0, width - lists.shape[2])))
