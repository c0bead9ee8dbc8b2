"""What is held in memory of indexes, the last used first to stay, up to a limit."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Protocol, TypeVar


class Held(Protocol):
    """Something that takes memory. It never changes and stays usable by whoever has it."""

    @property
    def num_bytes(self) -> int:
        """All that it takes."""

    @property
    def embedding_bytes(self) -> int:
        """What of it are vectors."""


Kept = TypeVar("Kept", bound=Held)


class IndexMemory:
    """Keeps things by key, each of one revision. Any number of threads may use it.

    Whatever was kept last is kept, were it larger than ``max_bytes`` by itself.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, tuple[Hashable, Held]] = OrderedDict()
        self._num_bytes = 0
        self._embedding_bytes = 0

    def get(self, key: Hashable, revision: Hashable, kind: type[Kept]) -> Kept | None:
        """What is kept under ``key``, if it is of this revision."""
        with self._lock:
            if key not in self._held or self._held[key][0] != revision:
                return None
            self._held.move_to_end(key)
            held = self._held[key][1]
            assert isinstance(held, kind), f"{key} is no {kind.__name__}"
            return held

    def keep(self, key: Hashable, revision: Hashable, held: Held) -> None:
        """Keep ``held`` in place of what was under ``key``; what was not used for longest makes room."""
        with self._lock:
            self._forget(key)
            self._held[key] = (revision, held)
            self._num_bytes += held.num_bytes
            self._embedding_bytes += held.embedding_bytes
            while len(self._held) > 1 and self._num_bytes > self.max_bytes:
                self._forget(next(iter(self._held)))

    def forget(self, key: Hashable) -> None:
        """Let go of what is under ``key``, if anything is."""
        with self._lock:
            self._forget(key)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
            self._num_bytes = self._embedding_bytes = 0

    def host_bytes(self) -> dict[str, int]:
        """Memory held now: the vectors themselves, and the rest of the indexes."""
        with self._lock:
            return {"index": self._num_bytes - self._embedding_bytes, "embeddings": self._embedding_bytes}

    def _forget(self, key: Hashable) -> None:
        """For the holder of the lock."""
        if key in self._held:
            _, held = self._held.pop(key)
            self._num_bytes -= held.num_bytes
            self._embedding_bytes -= held.embedding_bytes
