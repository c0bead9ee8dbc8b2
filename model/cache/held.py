"""What a sequence or a checkpoint holds of the pools, its copy in host memory, and the way back."""

from dataclasses import dataclass

from torch import Tensor

from model.cache.archive_table import ArchiveTable
from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.cache.kv_archive import ArchivedBlock
from model.cache.snapshot import Snapshot
from model.cache.state_pool import StatePool
from model.errors import PoolExhausted
from model.policy import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Held:
    """A state slot and a table of key/value blocks; of a checkpoint if the table ``is_cached``."""

    slot: int
    table: BlockTable

    def fork(self, states: StatePool, is_cached: bool = False) -> "Held":
        """The same for another sequence, or for a checkpoint: the state is copied, blocks are shared until written to.

        Raises PoolExhausted, then nothing was taken.
        """
        slot = states.allocate(is_cached)
        states.copy(self.slot, slot)
        return Held(slot, self.table.fork(is_cached))

    def keep(self, states: StatePool) -> "Held":
        """Become a checkpoint's: nothing is copied, and the sequence holds nothing any more."""
        table = self.table.fork(is_cached=True)
        self.table.free()
        states.keep(self.slot)
        return Held(self.slot, table)

    def free(self, states: StatePool) -> None:
        """Give everything back."""
        self.table.free()
        states.free(self.slot)

    def snapshot(
        self,
        states: StatePool,
        num_tokens: int,
        hidden: Tensor | None = None,
        information_bits: float | None = None,
        selected_from: int | None = None,
    ) -> Snapshot:
        """A copy in host memory of what was remembered after ``num_tokens``; the pools keep what they hold.

        Its tensors have their contents when both pools have settled.
        """
        pool = self.table.pool
        ssm, conv = states.content(self.slot)
        return Snapshot(
            num_tokens=num_tokens,
            ssm=ssm,
            conv=conv,
            blocks={
                place: pool.content(block, num_tokens - place * BLOCK_TOKENS)
                for place, block in enumerate(self.table.blocks)
                if block != RELEASED
            },
            hidden=hidden,
            information_bits=information_bits,
            archive=tuple(self.table.archive.blocks),
            archive_place=self.table.archive.first_place,
            selected_from=selected_from,
        )


def bring_back(snapshot: Snapshot, states: StatePool, pool: BlockPool) -> Held:
    """What holds the same as ``snapshot``, for a sequence. Raises PoolExhausted, then nothing was taken.

    What left its window is in the archive: see :meth:`model.cache.checkpoints.Checkpoints.admit`.
    """
    if states.num_free == 0:
        raise PoolExhausted("state", 1, 0, states.num_slots)
    states.settle()
    pool.settle()
    # What others hold already is shared again, as it was before, and so leaves the window as one block of the archive.
    standing = {place: block for place, each in snapshot.blocks.items() if (block := pool.standing(each)) is not None}
    blocks = iter(pool.allocate(len(snapshot.blocks) - len(standing)))
    pool.share(standing.values())
    slot = states.allocate()
    states.ssm[:, slot] = snapshot.ssm.to(states.ssm.device)
    states.conv[:, slot] = snapshot.conv.to(states.conv.device)
    num_full = snapshot.num_tokens // BLOCK_TOKENS
    places = [RELEASED] * -(-snapshot.num_tokens // BLOCK_TOKENS)
    for place in sorted(snapshot.blocks):
        if place in standing:
            places[place] = standing[place]
            continue
        places[place] = next(blocks)
        pool.fill(places[place], snapshot.blocks[place], is_full=place < num_full)
    archive = ArchiveTable(pool.archive)
    archived = [block for block in snapshot.archive if isinstance(block, ArchivedBlock)]
    assert len(archived) == len(snapshot.archive), "what left the window is not in the archive"
    archive.extend(snapshot.archive_place, archived)
    return Held(slot, BlockTable(pool, places, archive=archive))
