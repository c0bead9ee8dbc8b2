"""Reading a request's body no further than it may go, and a document's bytes into a spool file.

A file is never held in memory: it goes to the spool piece by piece, and the limit bites at the byte
that passes it.
"""

import errno
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from retrieval.parsers import supported_media_type
from server.errors import BodyTooLarge, RequestInvalid, StorageFull

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

WRITE_BYTES = 1 << 20
HEAD_BYTES = 8192
SPOOL_PREFIX = "upload-"
MAX_HEADER_BYTES = 16_384
MAX_WISH_BYTES = 16
WISHES = {"true": True, "1": True, "false": False, "0": False}

# Of these the file is the text, so that its characters can be counted as they come.
PLAIN_TYPES = ("text/plain", "text/markdown")
UTF8_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


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


@asynccontextmanager
async def spooled_file(
    request: Request, directory: Path, limit: SizeLimit, text_limit: SizeLimit
) -> AsyncIterator[Upload]:
    """The part ``file`` of a multipart body, as an upload, with what the part ``read`` says. The spool file is gone
    afterwards unless taken.

    Raises while reading: ``BodyTooLarge`` at the byte that passes a limit, ``UnsupportedMediaType`` as soon as the
    first bytes tell, ``RequestInvalid`` for a body that is not such a form.
    """
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestInvalid("the Content-Type multipart/form-data names no boundary", None, "invalid_body")
    limit.check(announced_bytes(request) - MAX_HEADER_BYTES)
    async with open_spool(directory) as spool:
        form = _Form(spool)
        try:
            parser = MultipartParser(boundary, form.callbacks(), max_size=float("inf"))
            async for piece in request.stream():
                parser.write(piece)
                limit.check(form.num_bytes)
                if form.name is not None and len(spool.head) == HEAD_BYTES:
                    kind = supported_media_type(form.name, form.declared_type, spool.head)
                    if kind in PLAIN_TYPES:
                        text_limit.check(form.num_characters)
                await spool.flush_if_full()
            parser.finalize()
        except FormParserError as error:
            raise RequestInvalid("the body is not valid multipart/form-data", None, "invalid_body") from error
        if form.name is None or not form.complete:
            raise RequestInvalid(
                "file is missing: send the document as the multipart field file", "file", "missing_field"
            )
        await spool.flush()
        yield Upload(form.name, form.declared_type, spool.path, form.num_bytes, spool.head, form.wish)


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


@dataclass(slots=True)
class _Form:
    """A multipart form of one file, and perhaps the field ``read``; the parser calls it back."""

    spool: Spool
    name: str | None = None
    declared_type: str | None = None
    num_bytes: int = 0
    num_characters: int = 0
    complete: bool = False
    wish: bool | None = None
    _read: bytearray | None = None
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))

    def callbacks(self) -> "MultipartCallbacks":
        """What the parser is to call."""
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def _grow(self, part: int, data: bytes) -> None:
        self._header[part].extend(data)
        if sum(map(len, self._header)) > MAX_HEADER_BYTES:
            raise RequestInvalid("a header of the multipart body is too long", None, "invalid_body")

    def _end_header(self) -> None:
        self._headers[bytes(self._header[0]).lower()] = bytes(self._header[1])
        for part in self._header:
            part.clear()

    def _begin(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        part = text_of(options.get(b"name", b""))
        if part == "read":
            self._read = bytearray()
            return
        if part != "file":
            raise RequestInvalid(f"{part or 'a part without a name'} is not a field that is known here", part or None,
                                 "unknown_field")  # fmt: skip
        if self.name is not None:
            raise RequestInvalid("file was sent twice; send one document per request", "file")
        self.name = clean_name(text_of(options.get(b"filename", b"")))
        declared = text_of(self._headers.get(b"content-type", b"")).strip()
        self.declared_type = declared or None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._read is not None:
            self._read += data[start:end]
            if len(self._read) > MAX_WISH_BYTES:
                raise RequestInvalid("read is neither true nor false", "read")
            return
        self.num_bytes += end - start
        piece = data[start:end]
        # Characters if this is UTF-8, and no more than there are in any encoding of one byte or more each.
        self.num_characters += len(piece.translate(None, UTF8_CONTINUATION_BYTES + b"\0"))
        self.spool.put(piece)

    def _end(self) -> None:
        if self._read is None:
            self.complete = True
            return
        said = text_of(bytes(self._read)).strip().lower()
        if said not in WISHES:
            raise RequestInvalid(f"read is {said!r}, which is neither true nor false", "read")
        self.wish, self._read = WISHES[said], None


def text_of(raw: bytes) -> str:
    """A value of a form or a header of it: UTF-8, or else Latin-1, in which anything can be read."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
