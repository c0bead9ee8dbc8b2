"""The manifests on the disk: one file per session, replaced in one step, set aside when it is damaged."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from retrieval.durability import TEMPORARY_SUFFIX, replace_file, sync_directory
from server.sessions.errors import ManifestDamaged
from server.sessions.manifest import Manifest, decode
from server.sessions.segments import FILE_MODE

SUFFIX = ".json"
DAMAGED_SUFFIX = ".damaged"
SEGMENT_NAME = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest and the bytes of its file."""

    manifest: Manifest
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A manifest that cannot be used, kept at ``path`` for a person to look at, with the segments it still names."""

    path: Path
    reason: str
    num_bytes: int
    segment_names: frozenset[str]

    @property
    def key(self) -> str:
        """The stem of the file it was, which tells whose it was."""
        return self.path.name.split(".")[0]


@dataclass(frozen=True, slots=True)
class ManifestScan:
    """Everything in the directory: sound manifests by key, damaged ones, and what a crash has left."""

    stored: dict[str, StoredManifest]
    damaged: tuple[DamagedManifest, ...]
    temporary: tuple[Path, ...]


class ManifestFiles:
    """The directory of manifests. The vault holds a lock around every change.

    ``is_certain`` becomes false when a change failed and could not be undone either, so that only ``scan`` tells
    whether the old manifest stands or the new one: as after a crash.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.is_certain = True

    def path(self, key: str) -> Path:
        """Where the manifest of the session with this key lies."""
        return self._directory / f"{key}{SUFFIX}"

    def write(self, manifest: Manifest, before: Manifest | None) -> None:
        """Replace ``before`` by ``manifest``, durably. After an OSError ``before`` stands, if ``is_certain``."""
        try:
            replace_file(self.path(manifest.key), manifest.encode(), FILE_MODE)
        except OSError:
            self._put_back(manifest.key, before)
            raise

    def remove(self, before: Manifest) -> None:
        """Take the manifest off the disk, durably. After an OSError it still stands, if ``is_certain``."""
        try:
            self.path(before.key).unlink()
            sync_directory(self._directory)
        except OSError:
            self._put_back(before.key, before)
            raise

    def remove_damaged(self, damaged: DamagedManifest) -> None:
        """Take a damaged manifest off the disk, durably."""
        damaged.path.unlink(missing_ok=True)
        sync_directory(self._directory)

    def set_aside(self) -> None:
        """Give every manifest that cannot be used another name, durably.

        Raises:
            ManifestTooNew: a later version of this program wrote one; nothing was changed.
        """
        damaged = []
        for path in sorted(self._directory.glob(f"[!.]*{SUFFIX}")):
            try:
                decode(path, self._read(path))
            except ManifestDamaged:
                damaged.append(path)
        for path in damaged:
            path.rename(self._free_name(path))
        if damaged:
            sync_directory(self._directory)

    def scan(self) -> ManifestScan:
        """What there is, read anew. Raises ManifestDamaged or ManifestTooNew for one that ``set_aside`` would meet."""
        stored: dict[str, StoredManifest] = {}
        damaged: list[DamagedManifest] = []
        temporary: list[Path] = []
        for path in sorted(self._directory.iterdir()):
            if path.name.endswith(TEMPORARY_SUFFIX):
                temporary.append(path)
            elif path.name.endswith(DAMAGED_SUFFIX):
                damaged.append(self._damaged(path))
            elif path.suffix == SUFFIX:
                content = self._read(path)
                manifest = decode(path, content)
                stored[manifest.key] = StoredManifest(manifest, len(content))
        return ManifestScan(stored, tuple(damaged), tuple(temporary))

    def _put_back(self, key: str, before: Manifest | None) -> None:
        path = self.path(key)
        try:
            for leftover in self._directory.glob(f".{path.name}.*{TEMPORARY_SUFFIX}"):
                leftover.unlink()
            if before is None:
                path.unlink(missing_ok=True)
                sync_directory(self._directory)
            elif not path.exists() or path.read_bytes() != before.encode():
                replace_file(path, before.encode(), FILE_MODE)
        except OSError:
            self.is_certain = False

    def _damaged(self, path: Path) -> DamagedManifest:
        try:
            content = self._read(path)
        except ManifestDamaged as error:
            return DamagedManifest(path, error.reason, path.stat().st_size, frozenset())
        names = frozenset(name.decode() for name in SEGMENT_NAME.findall(content))
        try:
            decode(path, content)
            reason = "was set aside before, and can be read now"
        except ManifestDamaged as error:
            reason = error.reason
        return DamagedManifest(path, reason, len(content), names)

    def _free_name(self, path: Path) -> Path:
        number = 1
        while True:
            free = path.with_name(f"{path.name}{f'.{number}' if number > 1 else ''}{DAMAGED_SUFFIX}")
            if not free.exists():
                return free
            number += 1

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise ManifestDamaged(path, f"cannot be read: {error.strerror}") from error
