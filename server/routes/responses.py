"""Responses as OpenAI has them: made, streamed, gone on from, retrieved, deleted."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from server.chat_fields import FieldRefused
from server.delivery import while_connected
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.errors import RequestInvalid, is_known
from server.pages import CursorQuery, ListPage, list_page
from server.responses.admission import Admission
from server.responses.errors import NotCancellable
from server.responses.events import ResponseEvents
from server.responses.schema import CountRequest, Include, ResponseRequest
from server.responses.shape import included
from server.schemas import STREAMED, error_responses
from server.sse import EventStreamResponse, event

logger = logging.getLogger(__name__)

router = APIRouter(
    prefix="/v1/responses", tags=["responses"], responses=error_responses(400, 401, 404, 409, 413, 429, 503, 504, 507)
)


async def admission(
    request: Request,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> Admission:
    """The request as one for a response."""
    return Admission(request, services, tenant, state.settings, request_id, arrival)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A response that nothing refuses any more, and whether its events are wanted."""

    events: ResponseEvents
    is_streamed: bool


async def admit_response(
    body: ResponseRequest, admission: Annotated[Admission, Depends(admission)]
) -> AsyncIterator[Admitted]:
    """The response of the body."""
    async with admission.respond(body) as events:
        yield Admitted(events, body.stream is True)


class Inclusion(BaseModel):
    """What is to come with the stored response; the official client spells arrays with brackets."""

    model_config = ConfigDict(extra="forbid")

    include: list[Include] = Field(default_factory=list)
    include_brackets: list[Include] = Field(default_factory=list, alias="include[]")

    @property
    def named(self) -> Sequence[str]:
        """However they were spelled."""
        return (*self.include, *self.include_brackets)


class Retrieval(Inclusion):
    """How a response is retrieved. ``include_obfuscation`` does nothing: there is no padding to leave out."""

    stream: bool | None = None
    starting_after: int | None = None
    include_obfuscation: bool | None = None


class ItemQuery(CursorQuery, Inclusion):
    """Which input items."""


class ResponseDeleted(BaseModel):
    """Nobody can retrieve the response any more."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTokens(BaseModel):
    """How many tokens the prompt would have."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post("", responses=STREAMED)
async def create_response(
    request: Request, admitted: Annotated[Admitted, Depends(admit_response)], state: StateDep
) -> Response:
    """Reply to a text or a conversation; with the tool `file_search`, from passages of the files in vector stores.

    With `previous_response_id` the conversation of a stored response goes on: what of it is remembered is not read
    again. Any response may be gone on from more than once. Stored responses are kept for 30 days.
    """
    if not admitted.is_streamed:
        return JSONResponse(await while_connected(request, _whole(admitted.events)))
    return EventStreamResponse(_framed(admitted.events), state.settings.keepalive_seconds)


@router.post("/input_tokens")
async def count_input_tokens(body: CountRequest, admission: Annotated[Admission, Depends(admission)]) -> InputTokens:
    """Count the tokens of a response's prompt without making it; documents are searched as they would be for it."""
    return InputTokens(input_tokens=await admission.count(body))


@router.post("/compact")
async def compact_response(_: ServicesDep) -> None:
    """Refused: contexts are not compacted. The state has a fixed size, whatever was read."""
    raise RequestInvalid(
        "compaction is not supported: go on with previous_response_id, whose turns are not read again",
        None,
        "unsupported_route",
    )


@router.get("/{response_id}")
async def retrieve_response(
    response_id: str, services: ServicesDep, tenant: TenantDep, query: Annotated[Retrieval, Query()]
) -> JSONResponse:
    """A stored response."""
    if query.stream or query.starting_after is not None:
        raise FieldRefused("stream" if query.stream else "starting_after", "only a response that is being made streams")
    stored = await services.conversations.get(tenant, response_id)
    return JSONResponse(included(stored.object, query.named))


@router.delete("/{response_id}")
async def delete_response(response_id: str, services: ServicesDep, tenant: TenantDep) -> ResponseDeleted:
    """Delete a stored response. While others go on from it, what was said in it stays in their conversation."""
    await services.conversations.delete(tenant, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, services: ServicesDep, tenant: TenantDep) -> None:
    """Refused as OpenAI does: only responses made in the background can be cancelled, and none is."""
    await services.conversations.get(tenant, response_id)
    raise NotCancellable


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str, services: ServicesDep, tenant: TenantDep, query: Annotated[ItemQuery, Query()]
) -> ListPage[dict[str, Any]]:
    """All that the response was made from: the items of the responses before it, their output, its own input."""
    *before, own = await services.conversations.line(tenant, response_id)
    items = [item for each in before for item in (*each.input, *included(each.object, query.named)["output"])]
    items += own.input
    if query.order == "desc":
        items.reverse()
    page, has_more = _page(items, query)
    return list_page(page, has_more, lambda item: item, lambda item: str(item["id"]))


def _page(items: list[dict[str, Any]], query: CursorQuery) -> tuple[list[dict[str, Any]], bool]:
    places = {item["id"]: place for place, item in enumerate(items)}
    for name in ("after", "before"):
        cursor = getattr(query, name)
        if cursor is not None and cursor not in places:
            raise RequestInvalid(f"{name} is {cursor!r}, which is no input item of this response", name)
    first = 0 if query.after is None else places[query.after] + 1
    end = len(items) if query.before is None else places[query.before]
    between = items[first:end]
    if query.before is not None and query.after is None:
        return between[-query.limit :], len(between) > query.limit
    return between[: query.limit], len(between) > query.limit


async def _whole(events: ResponseEvents) -> dict[str, Any]:
    """The response at its end. Raises what ended it early."""
    last: dict[str, Any] = {}
    async for each in events.events():
        last = each
    response: dict[str, Any] = last["response"]
    return response


async def _framed(events: ResponseEvents) -> AsyncGenerator[bytes]:
    """The events on the wire; a failure becomes the last one, for the status is sent."""
    try:
        async for each in events.events():
            yield event(each, each["type"])
    except Exception as error:
        if not is_known(error):
            logger.exception("a response failed")
        failed = await events.failed(error)
        yield event(failed, failed["type"])
