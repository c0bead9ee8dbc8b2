"""Which segments are on the disk, how many refer to each, and what everything takes: plain arithmetic."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.sessions.errors import SessionStorageFull
from server.sessions.segments import SegmentRef


@dataclass(slots=True)
class Entry:
    """One segment: bytes it takes or is about to take, and who refers to it.

    ``is_whole`` is false while it is being written, and where its file was found missing, cut off or altered.
    """

    num_bytes: int
    num_references: int = 0
    is_whole: bool = False


class Ledger:
    """Counts for the vault, which holds a lock around every call. ``used_bytes`` never grows beyond ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries: dict[str, Entry] = {}
        self.manifest_bytes = 0
        self.segment_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, those included that are being written."""
        return self.manifest_bytes + self.segment_bytes

    def found(self, ref: SegmentRef, sizes: Mapping[str, int]) -> None:
        """Count one more reference to a segment that should be on the disk, where there are ``sizes``."""
        entry = self.entries.get(ref.name)
        if entry is None:
            size = sizes.get(ref.name, 0)
            entry = self.entries[ref.name] = Entry(size, is_whole=size == ref.num_bytes)
            self.segment_bytes += size
        entry.num_references += 1

    def hold(self, refs: Iterable[SegmentRef], manifest_bytes: int) -> list[str]:
        """Count a reference to each segment, and the bytes of a manifest. The names of those to be written.

        What is being written already is to be written all the same: the other writer may fail.

        Raises:
            SessionStorageFull: the budget does not allow it; nothing was counted.
        """
        held = {ref.name: ref for ref in refs}
        known = {name: self.entries[name].num_bytes for name in held if name in self.entries}
        to_write = [name for name in held if name not in known or not self.entries[name].is_whole]
        growth = sum(max(0, held[name].num_bytes - known.get(name, 0)) for name in to_write)
        needed = growth + manifest_bytes
        if self.used_bytes + needed > self.max_bytes:
            raise SessionStorageFull(
                f"the sessions on disk take {self.used_bytes} of {self.max_bytes} bytes, and {needed} more are needed"
            )
        for name, ref in held.items():
            entry = self.entries.setdefault(name, Entry(0))
            entry.num_references += 1
            if not entry.is_whole:
                self.segment_bytes += max(0, ref.num_bytes - entry.num_bytes)
                entry.num_bytes = max(ref.num_bytes, entry.num_bytes)
        self.manifest_bytes += manifest_bytes
        return to_write

    def settle(self, refs: Iterable[SegmentRef]) -> None:
        """The segments have been written, and are on the disk."""
        for ref in refs:
            entry = self.entries[ref.name]
            self.segment_bytes += ref.num_bytes - entry.num_bytes
            entry.num_bytes, entry.is_whole = ref.num_bytes, True

    def release(self, names: Iterable[str], manifest_bytes: int) -> list[str]:
        """Count one reference less to each, and a manifest. The names of those to which nobody refers any more."""
        garbage: list[str] = []
        for name in names:
            entry = self.entries[name]
            entry.num_references -= 1
            if entry.num_references == 0:
                garbage.append(name)
                self.segment_bytes -= entry.num_bytes
                del self.entries[name]
        self.manifest_bytes -= manifest_bytes
        return garbage

    def doubt(self, name: str) -> None:
        """The segment was found damaged: whoever has its content writes it again."""
        if name in self.entries:
            self.entries[name].is_whole = False
