"""The files of a vector store, one by one and in batches."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query, Response

from server.dependencies import ServicesDep, TenantDep
from server.errors import RequestInvalid
from server.files.chunking import asked_cutting
from server.files.database import Window
from server.files.membership import Member
from server.files.nouns import FileStatus
from server.files.schemas import (
    BatchObject,
    ContentPage,
    NewBatch,
    NewStoreFile,
    StoreFileDeleted,
    StoreFileObject,
    StoreFileQuery,
    StoreFileUpdate,
    TextContent,
)
from server.files.views import batch_view, store_file_view
from server.pages import ListPage, list_page
from server.schemas import error_responses
from server.services import Services

# What the official clients wait between two looks, in milliseconds; without it they take a second.
POLL_HEADER = "openai-poll-after-ms"
POLL_MILLISECONDS = "200"

router = APIRouter(
    prefix="/v1/vector_stores/{store_id}", tags=["vector stores"], responses=error_responses(400, 401, 404, 503)
)


@router.post("/files", response_model=StoreFileObject)
async def add_file(
    store_id: str, new: NewStoreFile, services: ServicesDep, tenant: TenantDep, response: Response
) -> StoreFileObject:
    """Put a file into a store. It is `in_progress` until it can be searched; a file that cannot be read ends `failed`,
    with the reason in `last_error`. `chunking_strategy` says how its text is cut, in this store alone."""
    cutting = asked_cutting(new.chunking_strategy)
    member = Member(new.file_id, new.attributes or {}, "file_id", cutting)
    await anyio.to_thread.run_sync(services.files.membership.add, tenant, store_id, [member])
    services.files.wake()
    response.headers[POLL_HEADER] = POLL_MILLISECONDS
    return await _get(services, tenant, store_id, new.file_id)


@router.get("/files", response_model=ListPage[StoreFileObject])
async def list_files(
    store_id: str, services: ServicesDep, tenant: TenantDep, query: Annotated[StoreFileQuery, Query()]
) -> ListPage[StoreFileObject]:
    """The files of a store, those added last first unless asked otherwise, a page at a time."""
    return await _page(services, tenant, store_id, query)


@router.get("/files/{file_id}", response_model=StoreFileObject)
async def retrieve_file(
    store_id: str, file_id: str, services: ServicesDep, tenant: TenantDep, response: Response
) -> StoreFileObject:
    """One file of a store, and how far it is."""
    response.headers[POLL_HEADER] = POLL_MILLISECONDS
    return await _get(services, tenant, store_id, file_id)


@router.post("/files/{file_id}", response_model=StoreFileObject)
async def update_file(
    store_id: str, file_id: str, update: StoreFileUpdate, services: ServicesDep, tenant: TenantDep
) -> StoreFileObject:
    """Replace the attributes of a file in a store; null takes all of them away."""
    return store_file_view(
        await anyio.to_thread.run_sync(
            services.files.membership.update, tenant, store_id, file_id, update.attributes or {}
        )
    )


@router.delete("/files/{file_id}", response_model=StoreFileDeleted)
async def remove_file(store_id: str, file_id: str, services: ServicesDep, tenant: TenantDep) -> StoreFileDeleted:
    """Take a file out of a store; the file itself stays."""
    await anyio.to_thread.run_sync(services.files.membership.remove, tenant, store_id, file_id)
    return StoreFileDeleted(id=file_id)


@router.get("/files/{file_id}/content", response_model=ContentPage, responses=error_responses(409))
async def read_file(store_id: str, file_id: str, services: ServicesDep, tenant: TenantDep) -> ContentPage:
    """The text of a file in a store, as it is searched and cited."""
    return ContentPage(data=[TextContent(text=await services.files.text(tenant, store_id, file_id))])


@router.post("/file_batches", response_model=BatchObject)
async def create_batch(
    store_id: str, new: NewBatch, services: ServicesDep, tenant: TenantDep, response: Response
) -> BatchObject:
    """Put up to 2000 files into a store together, all or none: `file_ids`, or `files` with attributes of their own."""
    batch = await anyio.to_thread.run_sync(services.files.membership.add_batch, tenant, store_id, _members(new))
    services.files.wake()
    response.headers[POLL_HEADER] = POLL_MILLISECONDS
    return batch_view(batch)


@router.get("/file_batches/{batch_id}", response_model=BatchObject)
async def retrieve_batch(
    store_id: str, batch_id: str, services: ServicesDep, tenant: TenantDep, response: Response
) -> BatchObject:
    """One batch, with how many of its files are how far."""
    response.headers[POLL_HEADER] = POLL_MILLISECONDS
    return batch_view(await anyio.to_thread.run_sync(services.files.membership.batch, tenant, store_id, batch_id))


@router.post("/file_batches/{batch_id}/cancel", response_model=BatchObject)
async def cancel_batch(store_id: str, batch_id: str, services: ServicesDep, tenant: TenantDep) -> BatchObject:
    """Leave out the files of a batch that are not searchable yet."""
    return batch_view(
        await anyio.to_thread.run_sync(services.files.membership.cancel_batch, tenant, store_id, batch_id)
    )


@router.get("/file_batches/{batch_id}/files", response_model=ListPage[StoreFileObject])
async def list_batch_files(
    store_id: str, batch_id: str, services: ServicesDep, tenant: TenantDep, query: Annotated[StoreFileQuery, Query()]
) -> ListPage[StoreFileObject]:
    """The files of a batch that are in the store, a page at a time."""
    return await _page(services, tenant, store_id, query, batch_id)


def _members(new: NewBatch) -> list[Member]:
    if new.files is None:
        cutting = asked_cutting(new.chunking_strategy)
        # An id that is named twice is meant once.
        places = {file_id: f"file_ids.{place}" for place, file_id in reversed([*enumerate(new.file_ids or [])])}
        return [
            Member(file_id, new.attributes or {}, places[file_id], cutting)
            for file_id in dict.fromkeys(new.file_ids or [])
        ]
    members = [
        Member(
            file.file_id,
            file.attributes or {},
            f"files.{place}.file_id",
            asked_cutting(file.chunking_strategy, f"files.{place}.chunking_strategy"),
        )
        for place, file in enumerate(new.files)
    ]
    seen: set[str] = set()
    for member in members:
        if member.file_id in seen:
            raise RequestInvalid(f"{member.param} is {member.file_id!r}, which is named before; name each file once",
                                 member.param)  # fmt: skip
        seen.add(member.file_id)
    return members


async def _get(services: Services, tenant: str, store_id: str, file_id: str) -> StoreFileObject:
    return store_file_view(await anyio.to_thread.run_sync(services.files.membership.get, tenant, store_id, file_id))


async def _page(
    services: Services, tenant: str, store_id: str, query: StoreFileQuery, batch_id: str | None = None
) -> ListPage[StoreFileObject]:
    window = Window(query.after, query.before, query.limit, query.order)
    status = FileStatus(query.filter) if query.filter is not None else None
    files, has_more = await anyio.to_thread.run_sync(
        services.files.membership.page, tenant, store_id, window, status, batch_id
    )
    return list_page(files, has_more, store_file_view, lambda file: file.file_id)
