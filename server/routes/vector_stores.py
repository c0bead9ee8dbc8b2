"""Vector stores: named sets of files that are searched together."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query

from server.dependencies import ServicesDep, TenantDep
from server.files.chunking import asked_cutting
from server.files.database import Window
from server.files.filters import parse_filter
from server.files.membership import Member
from server.files.nouns import RankingOptions, VectorStore
from server.files.schemas import (
    NewVectorStore,
    SearchPage,
    StoreSearch,
    VectorStoreDeleted,
    VectorStoreObject,
    VectorStoreUpdate,
)
from server.files.views import hit_view, store_view
from server.pages import CursorQuery, ListPage, list_page
from server.schemas import error_responses
from server.services import Services

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"], responses=error_responses(400, 401, 404, 503))


@router.post("", response_model=VectorStoreObject)
async def create_store(new: NewVectorStore, services: ServicesDep, tenant: TenantDep) -> VectorStoreObject:
    """Make a vector store, with files if `file_ids` names some, cut as `chunking_strategy` says."""
    cutting = asked_cutting(new.chunking_strategy)
    members = [Member(file_id, {}, f"file_ids.{place}", cutting) for place, file_id in enumerate(new.file_ids or [])]
    days = new.expires_after.days if new.expires_after is not None else None
    store_id = await anyio.to_thread.run_sync(
        services.files.membership.found_store,
        tenant,
        new.name or "",
        new.description,
        new.metadata or {},
        days,
        members,
    )
    services.files.wake()
    return _view(services, await _get(services, tenant, store_id))


@router.get("", response_model=ListPage[VectorStoreObject])
async def list_stores(
    services: ServicesDep, tenant: TenantDep, query: Annotated[CursorQuery, Query()]
) -> ListPage[VectorStoreObject]:
    """Vector stores, newest first unless asked otherwise, a page at a time."""
    window = Window(query.after, query.before, query.limit, query.order)
    stores, has_more = await anyio.to_thread.run_sync(services.files.stores.page, tenant, window)
    return list_page(stores, has_more, lambda store: _view(services, store), lambda store: store.id)


@router.get("/{store_id}", response_model=VectorStoreObject)
async def retrieve_store(store_id: str, services: ServicesDep, tenant: TenantDep) -> VectorStoreObject:
    """One vector store, with how many of its files are how far."""
    return _view(services, await _get(services, tenant, store_id))


@router.post("/{store_id}", response_model=VectorStoreObject)
async def update_store(
    store_id: str, update: VectorStoreUpdate, services: ServicesDep, tenant: TenantDep
) -> VectorStoreObject:
    """Change name, metadata (as a whole) or expiry; null takes a thing away."""
    changes: dict[str, object] = {}
    if "name" in update.model_fields_set:
        changes["name"] = update.name or ""
    if "metadata" in update.model_fields_set:
        changes["metadata"] = update.metadata or {}
    if "expires_after" in update.model_fields_set:
        changes["expires_days"] = update.expires_after.days if update.expires_after is not None else None
    return _view(services, await anyio.to_thread.run_sync(services.files.stores.update, tenant, store_id, changes))


@router.delete("/{store_id}", response_model=VectorStoreDeleted)
async def delete_store(store_id: str, services: ServicesDep, tenant: TenantDep) -> VectorStoreDeleted:
    """Delete a vector store; its files stay."""
    await anyio.to_thread.run_sync(services.files.stores.delete, tenant, store_id)
    return VectorStoreDeleted(id=store_id)


@router.post("/{store_id}/search", response_model=SearchPage)
async def search_store(store_id: str, search: StoreSearch, services: ServicesDep, tenant: TenantDep) -> SearchPage:
    """The passages of the store's files that may hold what the query asks for, best first."""
    filter_ = parse_filter(search.filters) if search.filters is not None else None
    options = RankingOptions(search.ranking_options.score_threshold) if search.ranking_options else None
    hits = await services.files.search(tenant, [store_id], search.query, search.max_num_results, filter_, options)
    queries = [search.query] if isinstance(search.query, str) else list(search.query)
    return SearchPage(search_query=queries, data=[hit_view(hit) for hit in hits])


async def _get(services: Services, tenant: str, store_id: str) -> VectorStore:
    return await anyio.to_thread.run_sync(services.files.stores.get, tenant, store_id)


def _view(services: Services, store: VectorStore) -> VectorStoreObject:
    return store_view(store, services.files.now())
