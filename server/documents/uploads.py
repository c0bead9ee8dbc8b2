"""Reading a request's body no further than it may go, and a document's bytes into a spool file.

A file is never held in memory: it goes to the spool piece by piece, and the limit bites at the byte
that passes it.
"""

import errno
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio.to_thread
from starlette.requests import Request

from server.errors import BodyTooLarge, StorageFull

WRITE_BYTES = 1 << 20
HEAD_BYTES = 8192
SPOOL_PREFIX = "upload-"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it came: its name, the type the client says it has, and where its bytes lie until taken over.

    ``read`` is whether the client wants it read to its end; None leaves it to the server.
    """

    name: str
    declared_type: str | None
    path: Path
    num_bytes: int
    head: bytes
    read: bool | None = None


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Most bytes (or what ``unit`` says) of ``what``, and the setting that decides it."""

    what: str
    most: int
    setting: str
    unit: str = "bytes"

    def check(self, size: int) -> None:
        """Raise ``BodyTooLarge`` when there are more."""
        if size > self.most:
            raise BodyTooLarge(self.what, self.most, self.setting, self.unit)


async def read_body(request: Request, limit: SizeLimit) -> bytes:
    """The whole body. Raises ``BodyTooLarge`` at the piece that passes the limit, or at once if that is announced."""
    limit.check(announced_bytes(request))
    pieces: list[bytes] = []
    num_bytes = 0
    async for piece in request.stream():
        num_bytes += len(piece)
        limit.check(num_bytes)
        pieces.append(piece)
    return b"".join(pieces)


@asynccontextmanager
async def spooled_text(name: str, text: str, directory: Path) -> AsyncIterator[Upload]:
    """A text sent as JSON, as an upload. The spool file is gone afterwards unless somebody took it."""
    async with open_spool(directory) as spool:
        data = text.encode()
        await spool.write(data)
        await spool.flush()
        media_type = "text/markdown" if name.lower().endswith((".md", ".markdown")) else "text/plain"
        yield Upload(name, media_type, spool.path, len(data), data[:HEAD_BYTES])


def clean_name(raw: str) -> str:
    """A file's name for people: no path, no control characters, at most 255 characters, never empty."""
    last = raw.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(character if character.isprintable() else " " for character in last)
    return " ".join(printable.split())[:255] or "document"


def announced_bytes(request: Request) -> int:
    """How long the client says the body is; 0 if it does not."""
    announced = request.headers.get("content-length", "0")
    return int(announced) if announced.isascii() and announced.isdigit() else 0


class Spool:
    """A temporary file that is written in large pieces on a worker thread; ``head`` are its first bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.path = Path(file.name)
        self.head = b""
        self._file = file
        self._buffer = bytearray()

    def put(self, data: bytes) -> None:
        """Keep data for the next flush."""
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self._buffer += data

    async def write(self, data: bytes) -> None:
        """Keep data and flush when there is enough."""
        self.put(data)
        await self.flush_if_full()

    async def flush_if_full(self) -> None:
        """Write what is kept if that is worth a call."""
        if len(self._buffer) >= WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what is kept. Raises ``StorageFull``."""
        data, self._buffer = self._buffer, bytearray()
        try:
            await anyio.to_thread.run_sync(self._write, data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull from error
            raise

    def _write(self, data: bytearray) -> None:
        self._file.write(data)
        self._file.flush()


@asynccontextmanager
async def open_spool(directory: Path) -> AsyncIterator[Spool]:
    """A spool file in the directory, which is gone afterwards unless somebody took it."""
    directory.mkdir(parents=True, exist_ok=True)
    # Beside the store, so that taking the file over is a rename.
    with tempfile.NamedTemporaryFile(dir=directory, prefix=SPOOL_PREFIX, delete=False) as file:
        try:
            yield Spool(file)
        finally:
            Path(file.name).unlink(missing_ok=True)


def text_of(raw: bytes) -> str:
    """A value of a form or a header of it: UTF-8, or else Latin-1, in which anything can be read."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
