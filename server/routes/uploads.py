"""Files that come in parts."""

import re
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request

from server.dependencies import ServicesDep, StateDep, TenantDep
from server.documents.forms import received_form
from server.documents.uploads import SizeLimit, clean_name
from server.files.nouns import NewFile, Upload
from server.files.upload_schemas import CompleteUpload, NewUpload, PartObject, UploadObject
from server.files.upload_table import PART_BYTES
from server.files.views import part_view, upload_view
from server.routes.files import describe
from server.schemas import error_responses

PARTS_PATH = re.compile(r"/v1/uploads/[^/]*/parts")

router = APIRouter(prefix="/v1/uploads", tags=["files"], responses=error_responses(400, 401, 404, 503))

PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("", response_model=UploadObject, responses=error_responses(413))
async def create_upload(new: NewUpload, services: ServicesDep, tenant: TenantDep, state: StateDep) -> UploadObject:
    """Begin an upload. It takes parts for an hour."""
    SizeLimit("the file", state.settings.max_upload_bytes, "FANO_MAX_UPLOAD_BYTES").check(new.bytes)
    seconds = new.expires_after.seconds if new.expires_after is not None else None
    upload = await anyio.to_thread.run_sync(
        services.files.uploads.add, tenant, clean_name(new.filename), new.purpose, new.mime_type, new.bytes, seconds
    )
    return upload_view(upload)


@router.post(
    "/{upload_id}/parts", response_model=PartObject, responses=error_responses(413, 507), openapi_extra=PART_BODY
)
async def create_part(request: Request, upload_id: str, services: ServicesDep, tenant: TenantDep) -> PartObject:
    """Add a part of at most 64 MiB: multipart field `data`. It is on the disk when the reply leaves."""
    await anyio.to_thread.run_sync(services.files.uploads.pending, tenant, upload_id)
    limit = SizeLimit("the part", PART_BYTES, "the number of parts")
    async with received_form(request, services.spool_dir, "data", (), limit) as form:
        part = await anyio.to_thread.run_sync(services.files.uploads.add_part, tenant, upload_id, form.path)
    return part_view(part)


@router.post("/{upload_id}/complete", response_model=UploadObject, responses=error_responses(507))
async def complete_upload(
    upload_id: str, said: CompleteUpload, services: ServicesDep, tenant: TenantDep
) -> UploadObject:
    """Join the parts, in the order given, to a file. It has to have the announced number of bytes, and the `md5` if one
    is named."""
    upload, file = await anyio.to_thread.run_sync(
        services.files.uploads.complete, tenant, upload_id, said.part_ids, said.md5, _describe
    )
    return upload_view(upload, file)


@router.post("/{upload_id}/cancel", response_model=UploadObject)
async def cancel_upload(upload_id: str, services: ServicesDep, tenant: TenantDep) -> UploadObject:
    """Take no more parts, and forget those there are."""
    return upload_view(await anyio.to_thread.run_sync(services.files.uploads.cancel, tenant, upload_id))


def _describe(upload: Upload, head: bytes, path: Path) -> NewFile:
    seconds = upload.file_expires_after_seconds
    return describe(upload.filename, upload.purpose, upload.declared_type, head, path, seconds)
