"""Memory that this process may still take, as the operating system and a container's limit say. No torch."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
CGROUP_PARTS = Path("/sys/fs/cgroup/memory.stat")


def available_bytes() -> int | None:
    """Bytes that can be taken without swapping; None where nothing says."""
    found = [size for size in (_machine_bytes(), _container_bytes()) if size is not None]
    return min(found) if found else None


def _machine_bytes() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024


def _container_bytes() -> int | None:
    try:
        limit, used = CGROUP_LIMIT.read_text(encoding="ascii").strip(), int(CGROUP_USED.read_text(encoding="ascii"))
        parts = dict(line.split() for line in CGROUP_PARTS.read_text(encoding="ascii").splitlines())
    except OSError:
        return None
    # Pages of files that nobody looked at of late are counted as used, but given up when memory is asked for.
    reclaimable = int(parts.get("inactive_file", 0))
    # Without a limit the file says "max".
    return max(0, int(limit) - used + reclaimable) if limit.isdigit() else None
