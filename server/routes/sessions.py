"""Sessions: listed, saved, restored, forked, deleted. Chat requests make them and go on with them."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from server.dependencies import ServicesDep, TenantDep
from server.rendering import session_view
from server.schemas import SessionDeleted, SessionFork, SessionList, SessionObject, error_responses

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=error_responses(400, 401, 404, 409, 503))


class Page(BaseModel):
    """Which sessions of the list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Annotated[str, Field(min_length=1, max_length=200)] | None = None


@router.get("", response_model=SessionList)
async def list_sessions(services: ServicesDep, tenant: TenantDep, page: Annotated[Page, Query()]) -> SessionList:
    """Sessions by name, a page at a time; among them `document:{id}`, the readings of documents."""
    # One more than asked for tells whether there are more.
    found = await services.book.page(tenant, page.after, page.limit + 1)
    data = [session_view(session) for session in found[: page.limit]]
    return SessionList(
        data=data,
        first_id=data[0].name if data else None,
        last_id=data[-1].name if data else None,
        has_more=len(found) > page.limit,
    )


@router.get("/{name}", response_model=SessionObject)
async def retrieve_session(name: str, services: ServicesDep, tenant: TenantDep) -> SessionObject:
    """One session, and where its state is."""
    return session_view(await services.book.get(tenant, name))


@router.post("/{name}/save", response_model=SessionObject, responses=error_responses(429, 507))
async def save_session(name: str, services: ServicesDep, tenant: TenantDep) -> SessionObject:
    """Write the state after the whole history to the disk. It is safe there when the reply leaves.

    What of the history was not read yet, or is not in memory any more, is read first, at its own pace.
    """
    return session_view(await services.book.save(tenant, name))


@router.post("/{name}/restore", response_model=SessionObject, responses=error_responses(507))
async def restore_session(name: str, services: ServicesDep, tenant: TenantDep) -> SessionObject:
    """Bring the saved state back, every byte of it verified, and with it the history it was saved with.

    409 `session_fingerprint` where it was saved under other weights, tokenizer, policy, type or kernels;
    409 `session_damaged` where a file was altered; 409 `session_not_saved` where there is nothing to restore.
    """
    return session_view(await services.book.restore(tenant, name))


@router.post("/{name}/fork", response_model=SessionObject, status_code=201, responses=error_responses(507))
async def fork_session(name: str, body: SessionFork, services: ServicesDep, tenant: TenantDep) -> SessionObject:
    """Make a second session with the same history and state, in constant time; both go on independently."""
    return session_view(await services.book.fork(tenant, name, body.to))


@router.delete("/{name}", response_model=SessionDeleted)
async def delete_session(name: str, services: ServicesDep, tenant: TenantDep) -> SessionDeleted:
    """Delete the session: nothing of it stays on the disk or in memory."""
    await services.book.delete(tenant, name)
    return SessionDeleted(name=name)
