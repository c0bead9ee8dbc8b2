"""The whole memory bill at one moment, and its sums: what ``GET /v1/memory`` and ``/metrics`` both tell.

A pool's bytes are those of its tensors and files. On a CPU the device's pools lie in the process' own memory; what of
the process is in no pool is ``unaccounted``, so that all together are the resident set.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from model.engine.stats import EngineStats

if TYPE_CHECKING:
    from retrieval.library_stats import LibraryStats

# Of a session without state there are only the tokens, which are read again when it goes on.
TIERS = ("resident", "host", "saved", "tokens")


@dataclass(frozen=True, slots=True)
class SessionStats:
    """Sessions by the nearest tier their state is in, and bytes of their files with the budget for these."""

    num_sessions: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))
    disk_bytes: int = 0
    max_disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MemoryBill:
    """One moment: ``resident_set_bytes`` of the process, and what the engine, the library, the sessions and the files
    hold."""

    engine: EngineStats
    library: "LibraryStats"
    sessions: SessionStats
    resident_set_bytes: int
    other_disk_bytes: Mapping[str, int] = field(default_factory=dict)
    prompt_bytes: int = 0

    @property
    def device_is_host(self) -> bool:
        """Whether the device's pools are host memory."""
        return self.engine.build.device.startswith("cpu")

    @property
    def device_bytes(self) -> int:
        """All pools of the device."""
        return sum(self.engine.pool_bytes.values())

    @property
    def session_bytes(self) -> int:
        """Host memory of requests that made room, and of checkpoints."""
        return self.engine.saved_bytes + self.engine.checkpoint_bytes

    @property
    def host_pools(self) -> dict[str, int]:
        """Host memory by pool, beside the device's."""
        return {
            **self.library.host_bytes,
            **self.engine.archive_bytes,
            "sessions": self.session_bytes,
            "prompts": self.prompt_bytes,
        }

    @property
    def unaccounted_bytes(self) -> int:
        """The resident set less all pools that lie in it: programs, libraries, buffers."""
        pools = sum(self.host_pools.values())
        return self.resident_set_bytes - pools - (self.device_bytes if self.device_is_host else 0)

    @property
    def disk_pools(self) -> dict[str, int]:
        """Bytes on disk by pool."""
        archive = {"kv_archive": self.engine.archive_disk_bytes}
        return {**self.library.disk_bytes, **archive, "sessions": self.sessions.disk_bytes, **self.other_disk_bytes}


class Bookkeeper:
    """Draws up the bill from snapshots: neither the device nor the engine's thread is asked."""

    def __init__(
        self,
        engine_stats: Callable[[], EngineStats],
        library_stats: Callable[[], "LibraryStats"],
        session_stats: Callable[[], SessionStats] = SessionStats,
        other_disk_bytes: Mapping[str, Callable[[], int]] = MappingProxyType({}),
        prompt_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engine_stats = engine_stats
        self._library_stats = library_stats
        self._session_stats = session_stats
        self._other_disk_bytes = other_disk_bytes
        self._prompt_bytes = prompt_bytes

    def bill(self) -> MemoryBill:
        """The bill now. Asks the store, so it belongs on a worker thread."""
        return MemoryBill(
            self._engine_stats(),
            self._library_stats(),
            self._session_stats(),
            resident_set_bytes(),
            {pool: count() for pool, count in self._other_disk_bytes.items()},
            self._prompt_bytes(),
        )


def resident_set_bytes() -> int:
    """Resident memory of this process as the kernel counts it; 0 where /proc does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
