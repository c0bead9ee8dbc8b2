"""Files of this machine on their way into a library, without a server."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.parsers import supported_media_type
from server.documents.uploads import HEAD_BYTES

if TYPE_CHECKING:
    from retrieval.library import Library
    from retrieval.passage import Document


class FileRefused(Exception):
    """A file cannot be read, or could not be made sense of."""


def check_file(file: Path, max_bytes: int) -> None:
    """Raise ``FileRefused`` for what is no file, empty or too large."""
    if not file.is_file():
        raise FileRefused(f"{file} is not a file")
    if file.stat().st_size > max_bytes:
        raise FileRefused(f"{file} has more than {max_bytes} bytes; raise FANO_MAX_UPLOAD_BYTES to read it")
    if file.stat().st_size == 0:
        raise FileRefused(f"{file} is empty")


def keep_file(library: "Library", tenant: str, file: Path, is_to_be_read: bool) -> "tuple[Document, bool]":
    """The file as a document, on the disk on return, and whether there is work to do with it.

    Raises ``UnsupportedMediaType`` for a kind that nothing here reads.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    media_type = supported_media_type(file.name, None, head, file)
    return library.add(tenant, file.name, media_type, file, is_to_be_read)
