"""Documents: taken in, watched, read, deleted."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.parsers import supported_media_type
from retrieval.passage import Document, DocumentStatus
from server.dependencies import ServicesDep, StateDep, TenantDep
from server.documents.forms import spooled_file
from server.documents.uploads import SizeLimit, Upload, clean_name, read_body, spooled_text
from server.error_table import envelope
from server.errors import RequestInvalid
from server.invalid_fields import invalid_fields
from server.readiness import Stage
from server.rendering import document_view
from server.schemas import (
    DocumentDeleted,
    DocumentList,
    DocumentText,
    DocumentView,
    TextDocument,
    error_responses,
)
from server.services import Services
from server.streams.sse import EventStreamResponse, event

UPLOAD_PATH = "/v1/documents"
POLL_SECONDS = 0.2
# JSON may spell a character in six bytes (and one outside the basic plane in twelve).
JSON_BYTES_PER_CHARACTER = 6

router = APIRouter(prefix=UPLOAD_PATH, tags=["documents"], responses=error_responses(400, 401, 404, 503))

UPLOAD_BODIES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "read": {"type": "boolean", "description": "Whether the model reads it to its end."},
                    },
                }
            },
            "application/json": {"schema": TextDocument.model_json_schema()},
        },
    }
}


class Page(BaseModel):
    """Which documents of the list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Range(BaseModel):
    """Which code points of the text."""

    model_config = ConfigDict(extra="forbid")

    start: Annotated[int, Field(ge=0)] = 0
    end: Annotated[int, Field(ge=0)] | None = None


class Deletion(BaseModel):
    """Whether sessions that contain the document go with it."""

    model_config = ConfigDict(extra="forbid")

    cascade: bool = False


@router.post(
    "",
    status_code=202,
    response_model=DocumentView,
    responses={200: {"model": DocumentView, "description": "The same content was there"}, **error_responses(413, 415)},
    openapi_extra=UPLOAD_BODIES,
)
async def create_document(request: Request, services: ServicesDep, tenant: TenantDep, state: StateDep) -> Response:
    """Take a document: multipart field `file`, or JSON `{"text", "name"}`. It is safe on disk when the 202 leaves.

    A file is text, Markdown, HTML, PDF or Word (.docx), told by its bytes before its name; any other is a 415.
    With `read` false the model does not read it to its end, and it is ready as soon as it is indexed.
    """
    settings = state.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    text_limit = SizeLimit("the text", settings.max_text_characters, "FANO_MAX_TEXT_CHARACTERS", "characters")
    if kind == "multipart/form-data":
        file_limit = SizeLimit("the file", settings.max_upload_bytes, "FANO_MAX_UPLOAD_BYTES")
        async with spooled_file(request, services.spool_dir, file_limit, text_limit) as upload:
            return await _accept(services, tenant, upload, upload.read)
    if kind == "application/json":
        body_limit = SizeLimit(
            "the body", text_limit.most * JSON_BYTES_PER_CHARACTER + 4096, "FANO_MAX_TEXT_CHARACTERS"
        )
        body = await read_body(request, body_limit)
        sent = await anyio.to_thread.run_sync(_parse_text, body)
        text_limit.check(len(sent.text))
        async with spooled_text(clean_name(sent.name), sent.text, services.spool_dir) as upload:
            return await _accept(services, tenant, upload, sent.read)
    raise RequestInvalid(
        "send the document as multipart/form-data with the field file, or as application/json with text and name",
        None,
        "invalid_body",
    )


@router.get("", response_model=DocumentList)
async def list_documents(services: ServicesDep, tenant: TenantDep, page: Annotated[Page, Query()]) -> DocumentList:
    """Documents oldest first, a page at a time."""
    # One more than asked for tells whether there are more.
    found = await anyio.to_thread.run_sync(services.library.list, tenant, page.after, page.limit + 1)
    data = [document_view(document) for document in found[: page.limit]]
    return DocumentList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > page.limit,
    )


@router.get("/{document_id}", response_model=DocumentView)
async def retrieve_document(document_id: str, services: ServicesDep, tenant: TenantDep) -> DocumentView:
    """One document, and how far it is."""
    return document_view(await _get(services, tenant, document_id))


@router.get("/{document_id}/events", responses={200: {"content": {"text/event-stream": {}}}})
async def watch_document(document_id: str, services: ServicesDep, tenant: TenantDep, state: StateDep) -> Response:
    """The document as `progress` events whenever it changes, until a last one named `ready` or `failed`."""
    document = await _get(services, tenant, document_id)

    async def changes() -> AsyncGenerator[bytes]:
        shown: Document | None = None
        current = document
        while True:
            if current != shown:
                ended = current.status in (DocumentStatus.READY, DocumentStatus.FAILED)
                yield event(document_view(current).model_dump(), current.status.value if ended else "progress")
                shown = current
                if ended:
                    return
            # A drain must not wait for a document, and the client can come back to another process.
            if state.readiness.stage is Stage.DRAINING:
                return
            await asyncio.sleep(POLL_SECONDS)
            try:
                current = await _get(services, tenant, document_id)
            except UnknownDocument as deleted:
                yield event(envelope(deleted), "error")
                return

    return EventStreamResponse(changes(), state.settings.keepalive_seconds)


@router.get("/{document_id}/text", response_model=DocumentText, responses=error_responses(409))
async def read_text(
    document_id: str, services: ServicesDep, tenant: TenantDep, span: Annotated[Range, Query()]
) -> DocumentText:
    """The stored text from `start` to `end`, in Unicode code points; all of it by default."""
    document = await _get(services, tenant, document_id)
    if document.num_characters is None:
        raise DocumentNotReady(document)
    end = document.num_characters if span.end is None else span.end
    if span.start > end:
        raise RequestInvalid(f"start is {span.start}, which is beyond the end {end}", "start")
    if end > document.num_characters:
        raise RequestInvalid(f"end is {end}, but the text has {document.num_characters} characters", "end")
    text = await anyio.to_thread.run_sync(services.library.text, tenant, document_id, span.start, end)
    return DocumentText(
        document=document_id, start=span.start, end=end, num_characters=document.num_characters, text=text
    )


@router.delete("/{document_id}", response_model=DocumentDeleted, responses=error_responses(409, 507))
async def delete_document(
    document_id: str, services: ServicesDep, tenant: TenantDep, deletion: Annotated[Deletion, Query()]
) -> DocumentDeleted:
    """Delete the document and its reading; nothing of it stays on disk.

    409 `document_in_use` names the sessions that contain it; `?cascade=true` deletes them too. 507: the disk has no
    room for it; deleting it again once there is finishes what was begun.
    """
    await services.eraser.erase(tenant, document_id, deletion.cascade)
    await services.files.document_deleted(tenant, document_id)
    return DocumentDeleted(id=document_id)


async def _get(services: Services, tenant: str, document_id: str) -> Document:
    return await anyio.to_thread.run_sync(services.library.get, tenant, document_id)


async def _accept(services: Services, tenant: str, upload: Upload, read: bool | None) -> JSONResponse:
    media_type = await anyio.to_thread.run_sync(
        supported_media_type, upload.name, upload.declared_type, upload.head, upload.path
    )
    is_to_be_read = services.reads_documents if read is None else read
    while True:
        document, is_new = await anyio.to_thread.run_sync(
            services.ingestor.accept, tenant, upload, media_type, is_to_be_read
        )
        # What a file was made is now a document in its own right.
        if is_new or await services.files.keep_posted(tenant, document.id):
            break
        await asyncio.sleep(POLL_SECONDS)
    return JSONResponse(
        document_view(document).model_dump(),
        status_code=202 if is_new else 200,
        headers={"Location": f"{UPLOAD_PATH}/{document.id}"},
    )


def _parse_text(body: bytes) -> TextDocument:
    try:
        return TextDocument.model_validate_json(body)
    except ValidationError as error:
        located = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise invalid_fields(located, "application/json") from None
