"""What it takes that a file is still there, whole, after the power fails.

A rename is atomic, but neither the bytes of a file nor its name are on the disk before the file
and its directory have been synchronised (fsync(2), NOTES).
"""

import errno
import hashlib
import os
import sqlite3
import uuid
from collections.abc import Iterable
from pathlib import Path

TEMPORARY_SUFFIX = ".part"


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: Exception) -> bool:
    """Whether the disk has no room, as the operating system, SQLite or tantivy tells it."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    # tantivy raises what the system said as a ValueError, in the words of Rust.
    return isinstance(error, ValueError) and any(f"(os error {number})" in str(error) for number in NO_ROOM)


def sync_directory(directory: Path) -> None:
    """Put the names in ``directory`` on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Put the bytes of ``path`` on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create ``directory`` and its parents for this user alone, each one's name synchronised."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses, for what is to be renamed to ``path`` once it is whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


def write_new(path: Path, pieces: Iterable[bytes | memoryview], mode: int = 0o666) -> None:
    """Create ``path`` with these bytes and put them on the disk. After a failure a part may stand there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write ``content`` to ``path`` so that a crash leaves the old file or the new one, never a part."""
    temporary = temporary_name(path)
    try:
        write_new(temporary, (content,), mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sha256_of(path: Path) -> str:
    """The SHA-256 of the bytes of ``path``, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_bytes(directory: Path) -> int:
    """The bytes of all files below ``directory``; files that vanish meanwhile count as nothing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total
