"""Files that come inside a request: base64 with a name. They become documents, as a posted file does."""

import base64
import binascii
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from retrieval.errors import UnsupportedMediaType
from retrieval.parsers import supported_media_type
from retrieval.passage import Document, DocumentStatus
from server.documents.uploads import HEAD_BYTES, Upload, clean_name, open_spool
from server.errors import RequestInvalid
from server.files.nouns import StoreDocument

if TYPE_CHECKING:
    from server.services import Services

LOOK_SECONDS = 0.02


async def inline_document(
    services: "Services", tenant: str, filename: str, file_data: str, param: str
) -> StoreDocument:
    """The document of ``file_data``, base64 or a data URL, once it can be asked; its id stands for a file's.

    Raises ``RequestInvalid`` that blames ``param`` where it is not base64 or cannot be read, and ``StorageFull``.
    """
    data, declared = _decoded(file_data, param)
    name = clean_name(filename)
    head = data[:HEAD_BYTES]
    async with open_spool(services.spool_dir) as spool:
        await spool.write(data)
        await spool.flush()
        try:
            media_type = await anyio.to_thread.run_sync(supported_media_type, name, declared, head, spool.path)
        except UnsupportedMediaType as error:
            raise RequestInvalid(f"{param} cannot be read: {error}", param, "unsupported_file") from None
        upload = Upload(name, declared, spool.path, len(data), head)
        while True:
            document, is_new = await anyio.to_thread.run_sync(
                services.ingestor.accept, tenant, upload, media_type, services.reads_documents
            )
            # What a file was made is now a document in its own right, unless it is just being deleted with the file.
            if is_new or await services.files.keep_posted(tenant, document.id):
                break
            await anyio.sleep(LOOK_SECONDS)
    while not document.answerable:
        if document.status is DocumentStatus.FAILED:
            raise RequestInvalid(f"{param} cannot be read: {_why(document)}", param, "invalid_file")
        await anyio.sleep(LOOK_SECONDS)
        document = await anyio.to_thread.run_sync(services.library.get, tenant, document.id)
    return StoreDocument(document.id, document.id, name)


def _decoded(file_data: str, param: str) -> tuple[bytes, str | None]:
    """The bytes, and the type that a data URL says they have."""
    declared = None
    if file_data[:5].lower() == "data:":
        head, comma, file_data = file_data.partition(",")
        declared, _, encoding = head[5:].partition(";")
        if not comma or encoding.rpartition(";")[2].strip().lower() != "base64":
            raise RequestInvalid(f"{param} is a data URL, but not one in base64", param)
    try:
        data = base64.b64decode(file_data, validate=True)
    except (binascii.Error, ValueError):
        raise RequestInvalid(f"{param} is not base64", param) from None
    if not data:
        raise RequestInvalid(f"{param} holds an empty file", param)
    return data, declared or None


def _why(document: Document) -> str:
    return document.error.message if document.error is not None else "its reading failed"
