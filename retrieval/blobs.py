"""The files as they were sent, by the hash of their content, shared by all who sent the same bytes."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from retrieval.durability import make_directory, sync_directory

COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """A file already inside the store's directory and on the disk, but not yet under its name."""

    path: Path
    sha256: str
    num_bytes: int


class Blobs:
    """Files named by content below one directory. Who refers to which is for the database to know.

    ``keep`` and ``discard`` of one hash must not run at the same time: the caller holds the writer's lock.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._staging = directory / "staging"
        make_directory(self._staging)

    def stage(self, source: Path) -> StagedBlob:
        """Copy ``source`` in, hashing on the way, and synchronise it. ``source`` itself is left alone."""
        target = self._staging / uuid.uuid4().hex
        digest = hashlib.sha256()
        num_bytes = 0
        with ExitStack() as undo:
            undo.callback(target.unlink, missing_ok=True)
            with source.open("rb") as reader, target.open("wb") as writer:
                while piece := reader.read(COPY_BYTES):
                    digest.update(piece)
                    writer.write(piece)
                    num_bytes += len(piece)
                writer.flush()
                os.fsync(writer.fileno())
            undo.pop_all()
        return StagedBlob(target, digest.hexdigest(), num_bytes)

    def keep(self, staged: StagedBlob) -> None:
        """Give a staged file its name, durably. Bytes that are there already are not stored twice."""
        path = self.path(staged.sha256)
        make_directory(path.parent)
        staged.path.replace(path)
        sync_directory(path.parent)

    def drop(self, staged: StagedBlob) -> None:
        """Forget a staged file that is not wanted, whether or not it was kept."""
        staged.path.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the bytes with this hash lie."""
        return self._directory / sha256[:2] / sha256

    def discard(self, sha256: str) -> None:
        """Take the bytes off the disk."""
        path = self.path(sha256)
        path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_directory(path.parent)
            with suppress(OSError):  # Other blobs share the folder.
                path.parent.rmdir()

    def sweep(self, wanted: Iterable[str]) -> int:
        """Remove what a crash left behind: staged files, bytes nobody refers to, empty folders. Says how many files."""
        known = set(wanted)
        folders = [folder for folder in self._directory.iterdir() if folder != self._staging and folder.is_dir()]
        leftovers = [path for path in self._staging.iterdir()]
        leftovers += [path for folder in folders for path in folder.iterdir() if path.name not in known]
        for path in leftovers:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for folder in folders:
            with suppress(OSError):  # It holds what is wanted.
                folder.rmdir()
        return len(leftovers)
