"""The facts of a document: listed, pinned, unpinned."""

from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from fastapi import APIRouter, Query
from starlette.responses import JSONResponse

from retrieval.errors import DocumentNotReady
from retrieval.passage import Span
from server.dependencies import ServicesDep, TenantDep
from server.documents.fact_schema import EvidenceView, FactDeleted, FactList, FactQuery, FactView, Pin
from server.errors import RequestInvalid
from server.schemas import error_responses

if TYPE_CHECKING:
    from retrieval.fact_book import ListedFact
    from retrieval.library import Library

router = APIRouter(
    prefix="/v1/documents/{document_id}/facts", tags=["facts"], responses=error_responses(400, 401, 404, 503)
)


@router.get("", response_model=FactList)
async def list_facts(
    document_id: str, services: ServicesDep, tenant: TenantDep, query: Annotated[FactQuery, Query()]
) -> FactList:
    """Facts in reading order, a page at a time; of one kind, from one source or under one key if so asked."""
    return await anyio.to_thread.run_sync(_list, services.library, tenant, document_id, query)


@router.post(
    "",
    status_code=201,
    response_model=FactView,
    responses={200: {"model": FactView, "description": "The same pin was there"}, **error_responses(409)},
)
async def pin_fact(document_id: str, pin: Pin, services: ServicesDep, tenant: TenantDep) -> JSONResponse:
    """Pin `start` to `end` of the text, in code points. It is safe on disk when the reply leaves."""
    library = services.library
    document = await anyio.to_thread.run_sync(library.get, tenant, document_id)
    if document.num_characters is None:
        raise DocumentNotReady(document)
    if pin.end > document.num_characters:
        raise RequestInvalid(f"end is {pin.end}, but the text has {document.num_characters} characters", "end")
    if pin.start >= pin.end:
        raise RequestInvalid(
            f"start is {pin.start}, which is not before the end {pin.end}; pin a character at least", "start"
        )
    view, is_new = await anyio.to_thread.run_sync(_pin, library, tenant, document_id, pin)
    return JSONResponse(view.model_dump(), status_code=201 if is_new else 200)


@router.delete("/{fact_id}", response_model=FactDeleted, responses=error_responses(409))
async def unpin_fact(document_id: str, fact_id: str, services: ServicesDep, tenant: TenantDep) -> FactDeleted:
    """Forget a pin. What was recognised in the text cannot be taken back: 409 `fact_not_pinned`."""
    await anyio.to_thread.run_sync(services.library.unpin, tenant, document_id, fact_id)
    return FactDeleted(id=fact_id)


def _list(library: "Library", tenant: str, document_id: str, query: FactQuery) -> FactList:
    # One more than asked for tells whether there are more.
    found = library.facts(
        tenant,
        document_id,
        after=query.after,
        limit=query.limit + 1,
        kind=query.kind,
        source=query.source,
        key=query.key,
    )
    data = [_view(library, tenant, document_id, fact) for fact in found[: query.limit]]
    return FactList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > query.limit,
        dropped=dict(library.dropped_facts(tenant, document_id)),
    )


def _pin(library: "Library", tenant: str, document_id: str, pin: Pin) -> tuple[FactView, bool]:
    span = Span(pin.start, pin.end)
    if not library.text(tenant, document_id, span.start, span.end).strip():
        raise RequestInvalid(f"start {pin.start} to end {pin.end} is blank; pin a character at least", "start")
    fact, is_new = library.pin(tenant, document_id, span, pin.key)
    return _view(library, tenant, document_id, fact), is_new


def _view(library: "Library", tenant: str, document_id: str, fact: "ListedFact") -> FactView:
    return FactView(
        id=fact.id,
        kind=fact.kind.value,
        text=library.text(tenant, document_id, fact.span.start, fact.span.end),
        start=fact.span.start,
        end=fact.span.end,
        keys=list(fact.keys),
        key=fact.key,
        source=fact.source,
        score=fact.score,
        evidence=EvidenceView(start=fact.evidence.start, end=fact.evidence.end),
        page=library.page(tenant, document_id, fact.span.start),
    )
