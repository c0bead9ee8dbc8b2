"""Multipart forms with one file and a few short fields, read no further than they may go."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from retrieval.parsers import supported_media_type
from server.documents.uploads import (
    HEAD_BYTES,
    SizeLimit,
    Spool,
    Upload,
    announced_bytes,
    clean_name,
    open_spool,
    text_of,
)
from server.errors import RequestInvalid

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_HEADER_BYTES = 16_384
MAX_VALUE_BYTES = 1024
# Beside the file: the short fields, and the headers of all parts.
ROOM_BYTES = 1 << 16
WISHES = {"true": True, "1": True, "false": False, "0": False}

# Of these the file is the text, so that its characters can be counted as they come.
PLAIN_TYPES = ("text/plain", "text/markdown")
UTF8_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


@dataclass(frozen=True, slots=True)
class ReceivedForm:
    """The file as it came, lying at ``path`` until the form is left, and the other fields as text."""

    name: str
    declared_type: str | None
    path: Path
    num_bytes: int
    head: bytes
    values: dict[str, str]


@asynccontextmanager
async def received_form(
    request: Request,
    directory: Path,
    file_field: str,
    fields: Collection[str],
    limit: SizeLimit,
    text_limit: SizeLimit | None = None,
) -> AsyncIterator[ReceivedForm]:
    """The form in the body: ``file_field`` once, and each of ``fields`` at most once.

    Raises while reading: ``BodyTooLarge`` at the byte that passes the limit, ``RequestInvalid`` for a body that is not
    such a form, ``StorageFull``. With a ``text_limit`` the file must be a document: ``UnsupportedMediaType`` as soon as
    the first bytes tell, and ``BodyTooLarge`` at the character of a plain text that passes it.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise RequestInvalid(
            f"send the body as multipart/form-data, with a boundary and the field {file_field}", None, "invalid_body"
        )
    limit.check(announced_bytes(request) - ROOM_BYTES)
    async with open_spool(directory) as spool:
        form = _Form(spool, file_field, fields)
        try:
            parser = MultipartParser(boundary, form.callbacks(), max_size=float("inf"))
            async for piece in request.stream():
                parser.write(piece)
                limit.check(form.num_bytes)
                if text_limit is not None and form.name is not None and len(spool.head) == HEAD_BYTES:
                    if supported_media_type(form.name, form.declared_type, spool.head) in PLAIN_TYPES:
                        text_limit.check(form.num_characters)
                await spool.flush_if_full()
            parser.finalize()
        except FormParserError as error:
            raise RequestInvalid("the body is not valid multipart/form-data", None, "invalid_body") from error
        if form.name is None or not form.is_complete:
            raise RequestInvalid(
                f"{file_field} is missing: send it as a multipart field with its bytes", file_field, "missing_field"
            )
        await spool.flush()
        yield ReceivedForm(form.name, form.declared_type, spool.path, form.num_bytes, spool.head, form.values)


@asynccontextmanager
async def spooled_file(
    request: Request, directory: Path, limit: SizeLimit, text_limit: SizeLimit
) -> AsyncIterator[Upload]:
    """The part ``file`` of a multipart body, as an upload, with what the part ``read`` says. The spool file is gone
    afterwards unless taken. Raises what :func:`received_form` raises."""
    async with received_form(request, directory, "file", ("read",), limit, text_limit) as form:
        said = form.values.get("read")
        wish = None if said is None else WISHES.get(said.strip().lower())
        if said is not None and wish is None:
            raise RequestInvalid(f"read is {said!r}, which is neither true nor false", "read")
        yield Upload(form.name, form.declared_type, form.path, form.num_bytes, form.head, wish)


@dataclass(slots=True)
class _Form:
    """A form on its way; the parser calls it back."""

    spool: Spool
    file_field: str
    fields: Collection[str]
    name: str | None = None
    declared_type: str | None = None
    num_bytes: int = 0
    num_characters: int = 0
    is_complete: bool = False
    values: dict[str, str] = field(default_factory=dict)
    _field: str | None = None
    _value: bytearray = field(default_factory=bytearray)
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
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = text_of(options.get(b"name", b""))
        if name != self.file_field and name not in self.fields:
            raise RequestInvalid(
                f"{name or 'a part without a name'} is not a field that is known here; leave it out",
                name or None,
                "unknown_field",
            )
        if name in self.values or (name == self.file_field and self.name is not None):
            raise RequestInvalid(f"{name} was sent twice; send it once", name)
        self._field = name
        if name == self.file_field:
            own = options.get(b"filename")
            self.name = clean_name(_encoded_name(disposition) if own is None else text_of(own))
            self.declared_type = text_of(self._headers.get(b"content-type", b"")).strip() or None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self.file_field:
            piece = data[start:end]
            self.num_bytes += len(piece)
            # Characters if this is UTF-8, and no more than there are in any encoding of one byte or more each.
            self.num_characters += len(piece.translate(None, UTF8_CONTINUATION_BYTES + b"\0"))
            self.spool.put(piece)
            return
        self._value += data[start:end]
        if len(self._value) > MAX_VALUE_BYTES:
            raise RequestInvalid(f"{self._field} has more than {MAX_VALUE_BYTES} bytes", self._field)

    def _end(self) -> None:
        if self._field == self.file_field:
            self.is_complete = True
        elif self._field is not None:
            self.values[self._field] = text_of(bytes(self._value))
        self._field = None
        self._value.clear()


def _encoded_name(disposition: bytes) -> str:
    """The name as ``filename*`` has it, in the manner of RFC 2231; forms should not (RFC 7578, 4.2), urllib3 1 does."""
    message = Message()
    message["Content-Disposition"] = " ".join(text_of(disposition).split())
    return message.get_filename("")
