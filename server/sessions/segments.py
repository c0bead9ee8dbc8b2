"""Segments: safetensors files named by the SHA-256 of their bytes, written once and verified whenever they are read."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

from retrieval.durability import TEMPORARY_SUFFIX, make_directory, sync_directory, temporary_name, write_new
from server.sessions.errors import SegmentDamaged

SUFFIX = ".safetensors"
FILE_MODE = 0o600
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "BF16": 2, "I32": 4}
# The first tensor begins at a multiple of this, so that it can be used where it lies.
ALIGNMENT = 64


class SegmentKind(StrEnum):
    """What a segment holds."""

    TOKENS = "tokens"
    STATE = "state"
    BLOCKS = "blocks"


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment as a manifest refers to it: the SHA-256 of the file's bytes, and how many there are."""

    name: str
    num_bytes: int

    def __post_init__(self) -> None:
        if not is_segment_name(self.name) or self.num_bytes <= 0:
            raise ValueError(f"{self.name!r} of {self.num_bytes} bytes names no segment")


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as bytes, row by row and little endian, in one or several pieces. ``dtype`` as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[bytes | memoryview, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that shape and dtype ask for."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A segment that is ready to be written; its pieces are views of the tensors, not copies."""

    ref: SegmentRef
    pieces: tuple[bytes | memoryview, ...]


def is_segment_name(name: str) -> bool:
    """Whether ``name`` is 64 lower-case hexadecimal digits."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def seal(kind: SegmentKind, tensors: Mapping[str, RawTensor]) -> SealedSegment:
    """The file with these tensors in this order. The same tensors always give the same bytes, hence the same name."""
    header: dict[str, Any] = {"__metadata__": {"kind": kind.value}}
    offset = 0
    for name, tensor in tensors.items():
        assert sum(len(piece) for piece in tensor.pieces) == tensor.num_bytes, f"{name} has other bytes than its shape"
        end = offset + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    pieces = (head, *(piece for tensor in tensors.values() for piece in tensor.pieces))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return SealedSegment(SegmentRef(digest.hexdigest(), len(head) + offset), pieces)


class Segments:
    """The segment files below one directory. Who refers to which is for the vault to know, and to hold a lock on.

    ``has_leftovers`` becomes true when a temporary file could not be removed; ``scan`` tells which there are.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.has_leftovers = False

    def path(self, name: str) -> Path:
        """Where the segment with this name lies."""
        return self._directory / name[:2] / f"{name}{SUFFIX}"

    def write(self, segments: Iterable[SealedSegment]) -> None:
        """Put the segments on the disk, each whole under its name. After an OSError some may be there."""
        folders: set[Path] = set()
        for segment in segments:
            path = self.path(segment.ref.name)
            make_directory(path.parent)
            temporary = temporary_name(path)
            with ExitStack() as undo:
                undo.callback(self._drop, temporary)
                write_new(temporary, segment.pieces, FILE_MODE)
                temporary.replace(path)
                undo.pop_all()
            folders.add(path.parent)
        for folder in sorted(folders):
            sync_directory(folder)

    def read(self, ref: SegmentRef, kind: SegmentKind) -> dict[str, RawTensor]:
        """The tensors of a segment, each one writable piece.

        Raises:
            SegmentDamaged: the file is missing, cut off or altered, or its content is of another kind.
        """
        path = self.path(ref.name)
        content = self._read_bytes(path, ref.num_bytes)
        if hashlib.sha256(content).hexdigest() != ref.name:
            raise SegmentDamaged(path, "was altered: its bytes do not have the checksum that is its name")
        try:
            found, tensors = _parse(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SegmentDamaged(path, f"is not what the manifest says: no segment ({error})") from error
        if found != kind:
            raise SegmentDamaged(path, f"is not what the manifest says: it holds {found}, expected {kind}")
        return tensors

    def remove(self, names: Iterable[str]) -> set[Path]:
        """Take segments off the disk; those that are gone already do not matter. The folders to synchronise."""
        folders: set[Path] = set()
        for name in names:
            path = self.path(name)
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        return {folder for folder in folders if folder.exists()}

    def scan(self) -> tuple[dict[str, int], list[Path]]:
        """Bytes of every segment on the disk, by name, and the temporary files that a crash has left."""
        sizes: dict[str, int] = {}
        temporary: list[Path] = []
        for folder in self._directory.iterdir():
            for path in folder.iterdir() if folder.is_dir() else ():
                name = path.name.removesuffix(SUFFIX)
                if path.name.endswith(TEMPORARY_SUFFIX):
                    temporary.append(path)
                elif path == self.path(name) and is_segment_name(name):
                    sizes[name] = path.stat().st_size
        return sizes, temporary

    def _read_bytes(self, path: Path, num_bytes: int) -> bytearray:
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != num_bytes:
                    raise SegmentDamaged(path, f"has {found} bytes, expected {num_bytes}")
                content = bytearray(num_bytes)
                if file.readinto(content) != num_bytes:
                    raise SegmentDamaged(path, f"was cut off while it was read, expected {num_bytes} bytes")
        except FileNotFoundError:
            raise SegmentDamaged(path, "is missing") from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise SegmentDamaged(path, f"cannot be read: {error.strerror}") from error
        return content

    def _drop(self, temporary: Path) -> None:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            self.has_leftovers = True


def _parse(content: bytearray) -> tuple[str, dict[str, RawTensor]]:
    """Kind and tensors of a whole file. What it raises where the file is not of this form, ``read`` names."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    kind = header.pop("__metadata__")["kind"]
    tensors: dict[str, RawTensor] = {}
    data = memoryview(content)[start:]
    offset = 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensor = RawTensor(entry["dtype"], tuple(entry["shape"]), (data[begin:end],))
        if begin != offset or any(length < 0 for length in tensor.shape) or end - begin != tensor.num_bytes:
            raise ValueError(f"{name} does not have the bytes of its shape")
        tensors[name] = tensor
        offset = end
    if offset != len(data):
        raise ValueError(f"{len(data)} bytes of data, expected {offset}")
    return kind, tensors
