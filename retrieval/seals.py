"""Seals: a file, or a folder of files, that says what state of the store it belongs to and proves it is unaltered."""

import hashlib
import json
from pathlib import Path

from retrieval.durability import replace_file, sha256_of, sync_directory, sync_file
from retrieval.errors import IndexDamaged

Stamp = dict[str, str | int | None]


def write_sealed(path: Path, stamp: Stamp, content: bytes) -> None:
    """Write ``content`` durably behind one line of JSON with its stamp and checksum."""
    header = {"stamp": stamp, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    replace_file(path, json.dumps(header).encode() + b"\n" + content)


def read_sealed(path: Path, stamp: Stamp) -> bytes:
    """The content that was written with this stamp.

    Raises:
        IndexDamaged: the file is missing, altered, or stamped otherwise.
    """
    try:
        line, _, content = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        found, checksum = header["stamp"], header["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexDamaged(f"{path.name} cannot be read: {error}") from error
    if found != stamp:
        raise IndexDamaged(f"{path.name} is stamped {found}, expected {stamp}")
    if hashlib.sha256(content).hexdigest() != checksum:
        raise IndexDamaged(f"{path.name} was altered: its checksum differs")
    return content


def seal_folder(folder: Path, seal: Path, stamp: Stamp) -> None:
    """Synchronise the files of ``folder`` and write their checksums and the stamp to ``seal``, durably."""
    files = sorted(path for path in folder.iterdir() if _counts(path))
    for path in files:
        sync_file(path)
    sync_directory(folder)
    header = {"stamp": stamp, "files": {path.name: sha256_of(path) for path in files}}
    replace_file(seal, json.dumps(header).encode())


def verify_folder(folder: Path, seal: Path, stamp: Stamp) -> None:
    """Check that ``folder`` holds what was sealed with this stamp.

    Raises:
        IndexDamaged: a file is missing, added or altered, or the stamp is another.
    """
    try:
        header = json.loads(seal.read_bytes())
        found, files = header["stamp"], header["files"]
        present = {path.name: sha256_of(path) for path in folder.iterdir() if _counts(path)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexDamaged(f"{folder.name} cannot be verified: {error}") from error
    if found != stamp:
        raise IndexDamaged(f"{folder.name} is stamped {found}, expected {stamp}")
    if present != files:
        changed = sorted(name for name in {*present, *files} if present.get(name) != files.get(name))
        raise IndexDamaged(f"{folder.name} was altered: {', '.join(changed)}")


def _counts(path: Path) -> bool:
    # tantivy locks by empty files that come and go.
    return path.is_file() and path.suffix != ".lock"
