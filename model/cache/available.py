"""Memory that this process may still take, as the operating system and a container's limit say. No torch."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


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
        limit, used = CGROUP_LIMIT.read_text(encoding="ascii").strip(), CGROUP_USED.read_text(encoding="ascii").strip()
    except OSError:
        return None
    # Without a limit the file says "max".
    return max(0, int(limit) - int(used)) if limit.isdigit() else None
