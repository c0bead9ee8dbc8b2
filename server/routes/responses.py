"""Responses as OpenAI has them: made, streamed, gone on from, retrieved, deleted."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from server.chat.fields import FieldRefused
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.error_table import envelope, is_known
from server.errors import RequestInvalid
from server.pages import CursorQuery, ListPage, list_page
from server.responses.admission import Admission
from server.responses.background import Running
from server.responses.errors import NotCancellable
from server.responses.events import ResponseEvents
from server.responses.schema import CountRequest, Include, ResponseRequest
from server.responses.shape import included
from server.schemas import STREAMED, error_responses
from server.streams.delivery import while_connected
from server.streams.patience import patience_with, patient_stream, takes_long
from server.streams.sse import EventStreamResponse, event

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
    """A response that nothing refuses any more, and whether its events are wanted; ``running`` where it is made in the
    background."""

    events: ResponseEvents
    is_streamed: bool
    running: Running | None = None


async def admit_response(
    body: ResponseRequest,
    admission: Annotated[Admission, Depends(admission)],
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
) -> AsyncIterator[Admitted | AsyncGenerator[bytes]]:
    """The response of the body; its stream, where a file of it has to be read first, or so much of it searched, that
    this may take long."""
    if body.background:
        events, running = await services.background.begin(tenant, admission.respond(body))
        yield Admitted(events, body.stream is True, running)
        return
    if body.stream and (body.brings_files or takes_long(body.num_characters)):
        patience = patience_with(body.num_characters, state.settings.keepalive_seconds)
        async with patient_stream(admission.respond(body), _framed, _refused, patience) as stream:
            yield stream
        return
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
    """How a response is retrieved: with ``stream`` its events, from the one after ``starting_after`` on.
    ``include_obfuscation`` does nothing: there is no padding to leave out."""

    stream: bool | None = None
    starting_after: Annotated[int, Field(ge=0)] | None = None
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
    request: Request,
    admitted: Annotated[Admitted | AsyncGenerator[bytes], Depends(admit_response)],
    state: StateDep,
) -> Response:
    """Reply to a text or a conversation; with the tool `file_search`, from passages of the files in vector stores.

    With `previous_response_id` the conversation of a stored response goes on: what of it is remembered is not read
    again. Any response may be gone on from more than once. Stored responses are kept for 30 days.

    An input longer than the window is searched itself for what its last paragraph asks, and read whole; a stream tells
    how far that is in more events `response.in_progress`, whose `prompt_progress` is as in chats.

    With `background` the reply says that the response is in progress, and it is made whether the client stays or not:
    retrieve it until its status is another, or follow its events.
    """
    if not isinstance(admitted, Admitted):
        return EventStreamResponse(admitted, state.settings.keepalive_seconds)
    if admitted.running is not None:
        if not admitted.is_streamed:
            return JSONResponse(admitted.events.opening())
        return EventStreamResponse(_followed(admitted.running, -1), state.settings.keepalive_seconds)
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


@router.get("/{response_id}", responses=STREAMED)
async def retrieve_response(
    response_id: str, services: ServicesDep, tenant: TenantDep, state: StateDep, query: Annotated[Retrieval, Query()]
) -> Response:
    """A stored response. One that is made in the background can be streamed, until ten minutes after its end: from its
    beginning, or from the event after `starting_after` on. What its events include was said when it was begun."""
    stored = await services.conversations.get(tenant, response_id)
    if not query.stream:
        if query.starting_after is not None:
            raise RequestInvalid("starting_after needs stream: true", "starting_after")
        return JSONResponse(included(stored.object, query.named))
    if query.named:
        raise RequestInvalid("include cannot be used with stream: events are as they were made", "include")
    running = services.background.find(tenant, response_id)
    if running is None:
        reason = "only a response in the background streams, while it is made and for ten minutes more"
        raise FieldRefused("stream", reason)
    after = -1 if query.starting_after is None else query.starting_after
    if running.has_ended and after >= running.num_told - 1:
        raise RequestInvalid(
            f"starting_after is {after}, and the last event was {running.num_told - 1}; retrieve it without stream",
            "starting_after",
        )
    return EventStreamResponse(_followed(running, after), state.settings.keepalive_seconds)


@router.delete("/{response_id}")
async def delete_response(response_id: str, services: ServicesDep, tenant: TenantDep) -> ResponseDeleted:
    """Delete a stored response, and end the making of one in the background. While others go on from it, what was said
    in it stays in their conversation."""
    await services.background.cancel(tenant, response_id)
    await services.conversations.delete(tenant, response_id)
    services.background.forget(tenant, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, services: ServicesDep, tenant: TenantDep) -> JSONResponse:
    """End the making of a response in the background; what was said so far stays. One that has ended stays as it is.
    One that is not made in the background cannot be cancelled."""
    stored = await services.conversations.get(tenant, response_id)
    if not stored.object["background"]:
        raise NotCancellable
    await services.background.cancel(tenant, response_id)
    return JSONResponse(included((await services.conversations.get(tenant, response_id)).object, ()))


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


def _refused(error: Exception) -> bytes:
    """What kept a response from being made, as an event: there is no response that could have failed."""
    told = envelope(error)["error"]
    fields = {"code": told["code"], "message": told["message"], "param": told["param"]}
    return event({"type": "error", "sequence_number": 0, **fields}, "error")


async def _followed(running: Running, after: int) -> AsyncGenerator[bytes]:
    """What is told of a response in the background, on the wire."""
    async for each in running.follow(after):
        yield event(each, each["type"])


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
