"""Files: sent, listed, read back, deleted."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from starlette.responses import FileResponse

from retrieval.errors import UnsupportedMediaType
from retrieval.parsers import supported_media_type
from server.dependencies import ServicesDep, StateDep, TenantDep
from server.documents.forms import received_form
from server.documents.uploads import SizeLimit
from server.errors import RequestInvalid
from server.files.database import Window
from server.files.errors import UnknownFile
from server.files.nouns import NewFile
from server.files.schemas import PURPOSES, FileDeleted, FileExpiry, FileObject, FileQuery
from server.files.views import file_view
from server.invalid_fields import invalid_fields
from server.pages import ListPage, list_page
from server.schemas import error_responses

FILES_PATH = "/v1/files"
BATCH_SECONDS = 2_592_000  # as OpenAI keeps files of this purpose that name no time of their own
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"

router = APIRouter(prefix=FILES_PATH, tags=["files"], responses=error_responses(400, 401, 404, 503))

FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        ANCHOR: {"type": "string", "enum": ["created_at"]},
                        SECONDS: {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("", response_model=FileObject, responses=error_responses(413, 507), openapi_extra=FILE_BODY)
async def create_file(request: Request, services: ServicesDep, tenant: TenantDep, state: StateDep) -> FileObject:
    """Keep a file: multipart fields `file` and `purpose`, perhaps `expires_after[anchor]` and `expires_after[seconds]`.

    It is on the disk when the reply leaves. Files of any kind are kept; whether one can be read shows when it is put
    into a vector store.
    """
    limit = SizeLimit("the file", state.settings.max_upload_bytes, "FANO_MAX_UPLOAD_BYTES")
    fields = ("purpose", ANCHOR, SECONDS)
    async with received_form(request, services.spool_dir, "file", fields, limit) as form:
        purpose = form.values.get("purpose")
        if purpose is None:
            raise RequestInvalid("purpose is missing; add it", "purpose", "missing_field")
        if purpose not in PURPOSES:
            raise RequestInvalid(f"purpose is {purpose!r}, expected one of {', '.join(PURPOSES)}", "purpose")
        expiry = _expiry(form.values)
        seconds = expiry.seconds if expiry is not None else None
        new = await anyio.to_thread.run_sync(
            describe, form.name, purpose, form.declared_type, form.head, form.path, seconds
        )
        file = await anyio.to_thread.run_sync(services.files.table.add, tenant, new, form.path)
    return file_view(file)


@router.get("", response_model=ListPage[FileObject])
async def list_files(
    services: ServicesDep, tenant: TenantDep, query: Annotated[FileQuery, Query()]
) -> ListPage[FileObject]:
    """Files, newest first unless asked otherwise, a page at a time."""
    window = Window(after=query.after, limit=query.limit, order=query.order)
    files, has_more = await anyio.to_thread.run_sync(services.files.table.page, tenant, window, query.purpose)
    return list_page(files, has_more, file_view, lambda file: file.id)


@router.get("/{file_id}", response_model=FileObject)
async def retrieve_file(file_id: str, services: ServicesDep, tenant: TenantDep) -> FileObject:
    """One file."""
    return file_view(await anyio.to_thread.run_sync(services.files.table.get, tenant, file_id))


@router.delete("/{file_id}", response_model=FileDeleted, responses=error_responses(507))
async def delete_file(file_id: str, services: ServicesDep, tenant: TenantDep) -> FileDeleted:
    """Delete a file, in all vector stores as well. The document made of it goes with the last file of its content,
    unless it was also sent to /v1/documents or a session contains it."""
    await services.files.delete_file(tenant, file_id)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The bytes as they were sent"}},
)
async def read_file(file_id: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """The bytes of a file as they were sent."""
    file = await anyio.to_thread.run_sync(services.files.table.get, tenant, file_id)
    path = services.files.table.path(file)
    try:
        stat = await anyio.to_thread.run_sync(path.stat)
    except FileNotFoundError:  # deleted since
        raise UnknownFile(file_id) from None
    # Never a type that a browser would show: the file is somebody else's content.
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return FileResponse(path, media_type="application/octet-stream", headers=headers, stat_result=stat)


def describe(
    filename: str, purpose: str, declared_type: str | None, head: bytes, path: Path, expires_after_seconds: int | None
) -> NewFile:
    """What is to be kept of a file that came whole and lies at ``path``."""
    if expires_after_seconds is None and purpose == "batch":
        expires_after_seconds = BATCH_SECONDS
    try:
        media_type, refusal = supported_media_type(filename, declared_type, head, path), None
    except UnsupportedMediaType as error:
        return NewFile(filename, purpose, None, str(error), expires_after_seconds)
    return NewFile(filename, purpose, media_type, refusal, expires_after_seconds)


def _expiry(values: dict[str, str]) -> FileExpiry | None:
    said = {field: values[name] for field, name in (("anchor", ANCHOR), ("seconds", SECONDS)) if name in values}
    if not said:
        return None
    try:
        # A form has texts only.
        return FileExpiry.model_validate(said, strict=False)
    except ValidationError as error:
        located = [{**each, "loc": ("body", "expires_after", *each["loc"])} for each in error.errors()]
        raise invalid_fields(located, "application/json") from None
