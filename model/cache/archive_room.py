"""What of the archive is to be had: all that no sequence holds and no name holds on to, less what was promised."""

from array import array
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from model.cache.kv_archive import KvArchive, present


class ArchiveRoom:
    """The room of one archive. ``anchored`` gives the tables of the checkpoints that must not be given up.

    ``num_promised`` blocks are what the requests that were admitted may still come to need, beside those they hold.
    """

    def __init__(self, archive: KvArchive, anchored: Callable[[], "Iterable[array[int]]"]) -> None:
        self.num_promised = 0
        self._archive = archive
        self._tables = anchored
        self._is_anchored = np.zeros(archive.num_blocks, dtype=np.bool_)
        self._anchored = np.empty(0, dtype=np.int64)
        self._is_stale = False

    @property
    def num_anchored(self) -> int:
        """Blocks that no sequence holds, and that a checkpoint refers to that must not be given up."""
        return int((self._archive.uses(self._renewed()) == 0).sum())

    @property
    def num_free(self) -> int:
        """Blocks that nobody refers to, or checkpoints alone that can be given up."""
        return self._archive.num_blocks - self._archive.num_used - self.num_anchored

    @property
    def num_unpromised(self) -> int:
        """Of the free ones, those that nobody who was admitted may need; none where names came after the promises."""
        return max(0, self.num_free - self.num_promised)

    def renew(self) -> None:
        """The checkpoints that must not be given up may be others now."""
        self._is_stale = True

    def num_taken(self, numbers: "array[int]") -> int:
        """How many of the blocks are not among the free ones."""
        return int(self._are_taken(present(numbers)).sum())

    def has_free(self, numbers: "array[int]") -> bool:
        """Whether any of the blocks is among the free ones."""
        return not self._are_taken(present(numbers)).all()

    def is_kept(self, before: "array[int]", after: "array[int]") -> bool:
        """Whether no room is lost to others where a sequence that holds the blocks ``before`` holds ``after`` instead:
        it needs as many less as it holds more."""
        given, taken = np.setdiff1d(present(before), present(after)), present(after)
        num_lost = int((~self._are_taken(taken)).sum())
        num_won = int(((self._archive.uses(given) == 1) & ~self._is_anchored[given]).sum())
        return num_lost - num_won <= len(taken) - len(present(before))

    def _are_taken(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        self._renewed()
        taken: npt.NDArray[np.bool_] = self._is_anchored[numbers] | (self._archive.uses(numbers) > 0)
        return taken

    def _renewed(self) -> npt.NDArray[np.int64]:
        if self._is_stale:
            self._is_anchored[:] = False
            for table in self._tables():
                self._is_anchored[present(table)] = True
            self._anchored = np.flatnonzero(self._is_anchored)
            self._is_stale = False
        return self._anchored
