"""Files among a chat's messages: they become documents of the question."""

from typing import TYPE_CHECKING

import anyio.to_thread

from server.chat.schema import ChatRequest
from server.documents.inline_files import inline_document
from server.errors import RequestInvalid
from server.files.errors import FilesError
from server.files.nouns import StoreDocument
from server.schemas import MAX_DOCUMENTS

if TYPE_CHECKING:
    from server.services import Services


async def chat_files(services: "Services", tenant: str, body: ChatRequest) -> tuple[StoreDocument, ...]:
    """The documents of the files in the messages, in their order, once they can be asked.

    Raises ``RequestInvalid`` and what files refuse, with the path of the field that named the file.
    """
    parts = body.file_parts
    if len(parts) > MAX_DOCUMENTS:
        raise RequestInvalid(f"the messages hold {len(parts)} files, but may hold {MAX_DOCUMENTS}", "messages")
    # None is read for nothing.
    for path, part in parts:
        if part.file_id is not None:
            await anyio.to_thread.run_sync(services.files.table.get, tenant, part.file_id, f"{path}.file_id")
    found: list[StoreDocument] = []
    for path, part in parts:
        if part.file_id is None:
            assert part.file_data is not None, "a file has an id or data"
            name = part.filename or ""
            found.append(await inline_document(services, tenant, name, part.file_data, f"{path}.file_data"))
            continue
        try:
            found.append(await services.files.document_of_file(tenant, part.file_id))
        except FilesError as error:
            error.param = f"{path}.file_id"
            raise
    return tuple(found)
