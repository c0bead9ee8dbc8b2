"""What was chosen of the archive, on the device: a pool of constant size, filled from the host and used again.

A strip is what one key head of one layer has in a block: keys and values that lie together, because each key head
chooses for itself. A strip that is there already, since an earlier step or another sequence chose it, is not fetched
again; the one whose use is longest ago makes room.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.cache.device_copies import Lift, lift_to
from model.cache.host_copies import HostCopies
from model.cache.kv_archive import DTYPES, KvArchive
from model.config import Dtype, ModelConfig
from model.huge_pages import zeros
from model.kernels.selection import ArchivedLayer, summary
from model.policy import BLOCK_TOKENS

Numbers = npt.NDArray[np.int64]


class FetchedBlocks:
    """Strips of ``archive`` on ``device``, and the ways there and back. Used by one thread.

    ``strips`` [layers, num_strips, 2, P, E] are as many as ``num_blocks`` blocks have in all key heads, all taken at
    construction. ``num_fetched`` strips were brought, ``num_found`` were there already.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: Dtype,
        num_blocks: int,
        archive: KvArchive,
        device: str = "cpu",
        lift: Lift | None = None,
        copies: HostCopies | None = None,
    ) -> None:
        self.archive = archive
        self.num_groups = config.num_kv_heads
        self.num_strips = num_blocks * self.num_groups
        held = DTYPES[dtype.kept]
        shape = (self.num_strips, 2, BLOCK_TOKENS, config.head_width)
        self.strips = zeros((config.num_attention_layers, *shape), held, device).zero_()
        self._lift = lift_to(device) if lift is None else lift
        self._room = self._lift.room(shape, held)
        self._copies = HostCopies.of(device) if copies is None else copies
        # By layer the slot of each strip, that used last at the end. Slots are given out in rising order.
        self._slots: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(config.num_attention_layers)]
        # What is on its way out: the layer, and where its blocks go.
        self._leaving: list[tuple[ArchivedLayer, Sequence[int], Tensor]] = []
        self.num_fetched = 0
        self.num_found = 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.strips.nbytes

    def begin_step(self) -> None:
        """Forget what a step that failed had on its way: its blocks may be others' by now."""
        self._leaving.clear()

    def leave(self, layer: ArchivedLayer, blocks: Tensor, numbers: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Begin to copy ``blocks`` [n] int64 of ``keys`` and ``values`` [num_blocks, P, G, E], all on the device, to
        the archive under ``numbers``. They may be overwritten at once; the archive has them, and their summaries, from
        the next ``settle`` on."""
        if numbers:
            both = torch.stack((keys[blocks], values[blocks]), dim=1)
            self._leaving.append((layer, numbers, self._copies.begin(both)))

    def ask(self, queries: Tensor) -> Tensor:
        """Queries in host memory, from the next ``settle`` on."""
        return self._copies.begin(queries)

    def settle(self) -> None:
        """Wait for what was begun, and keep what left. Idempotent."""
        self._copies.settle()
        for layer, numbers, both in self._leaving:
            for number, (keys, values) in zip(numbers, both, strict=True):
                kept_keys, kept_values = layer.block(number)
                kept_keys.copy_(keys)
                kept_values.copy_(values)
            # On the host, where they are asked for, so that there is one way to come to their bits.
            layer.summaries[layer.layer][:, torch.tensor(numbers)] = summary(both[:, 0]).transpose(0, 1)
        self._leaving.clear()

    def bring(self, layer: ArchivedLayer, numbers: Numbers, groups: Numbers) -> Numbers:
        """Slots of strips [n], all different, each of the block with that number and of that key head. They hold them
        for what the device is told from now on until the next call."""
        assert len(numbers) <= self.num_strips, f"{len(numbers)} strips in a pool of {self.num_strips}"
        there = self._slots[layer.layer]
        # A number that is given to another block is another strip.
        names: list[int] = (self.archive.serials[numbers] * self.num_groups + groups).tolist()
        missing = [index for index, name in enumerate(names) if name not in there]
        for name in names:
            if name in there:
                there.move_to_end(name)
        if missing:
            room = self._gather(layer, numbers[missing], groups[missing])
            # What is at the front is none of these, which have moved to the end and are not more than there are slots.
            slots = [there.popitem(last=False)[1] for _ in range(len(there) + len(missing) - self.num_strips)]
            slots += range(len(there) + len(slots), len(there) + len(missing))
            slots.sort()
            there.update(zip((names[index] for index in missing), slots, strict=True))
            strips = self.strips[layer.layer]
            self._lift.send([(room[start:end], strips[slot : slot + end - start]) for start, end, slot in _runs(slots)])
        self.num_fetched += len(missing)
        self.num_found += len(names) - len(missing)
        return np.array([there[name] for name in names], dtype=np.int64)

    def _gather(self, layer: ArchivedLayer, numbers: Numbers, groups: Numbers) -> Tensor:
        """Strips [n, 2, P, E] as they lie in the archive, where they can be sent from."""
        # What was sent last may not have left.
        self._lift.wait()
        near = len(layer.memory)
        for source, is_here, first in ((layer.memory, numbers < near, 0), (layer.file, numbers >= near, near)):
            if is_here.any():
                chosen = torch.from_numpy(numbers[is_here] - first), slice(None), slice(None)
                place = torch.from_numpy(np.flatnonzero(is_here))
                self._room[place] = source[:, layer.layer][(*chosen, torch.from_numpy(groups[is_here]))]
        return self._room[: len(numbers)]


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbours in rising ``slots``: where each starts and ends, and the first of it."""
    borders = [index for index in range(1, len(slots)) if slots[index] != slots[index - 1] + 1]
    return ((start, end, slots[start]) for start, end in pairwise([0, *borders, len(slots)]))
