"""The bill of a request before it runs, and the whole bill now."""

from array import array
from contextlib import suppress

import anyio.to_thread
from fastapi import APIRouter, Depends

from model.engine.request import GenerationRequest, SamplingParams
from model.errors import EngineStopped
from server.answers.groundwork import is_unanswerable
from server.bills.schema import (
    BillView,
    ForecastView,
    PlanRequest,
    PromptBeside,
    ReadingForecast,
    bill_view,
    forecast_view,
)
from server.chat.inquiry import chat_inquiry
from server.chat.schema import ChatMessage, ChatRequest
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep, watcher
from server.errors import NotReady, UnknownModel
from server.long_prompts.stream_rule import Remembered
from server.schemas import error_responses
from server.services import Services
from server.sessions.manifest import SavedCheckpoint
from server.settings import Settings

router = APIRouter(prefix="/v1", tags=["bill"])


@router.get("/memory", dependencies=[Depends(watcher)], responses=error_responses(401, 503))
async def read_memory(state: StateDep) -> BillView:
    """Every byte of state by pool and tier, and what of the process is in no pool.

    Needs a key as `/metrics` does, whose numbers are the same.
    """
    if state.services is None:
        raise NotReady(state.readiness.reason)
    with suppress(EngineStopped):
        await state.services.book.look()
    return bill_view(await anyio.to_thread.run_sync(state.services.bookkeeper.bill))


@router.post("/plan", responses=error_responses(400, 401, 404, 409, 413, 503))
async def plan_request(
    body: PlanRequest,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> ForecastView:
    """What a request would hold on the device and in the archive at its last token, and whether there is room; nothing
    is reserved.

    Documents are searched for the last message, as the question would be; where nothing is found, or an answer is
    looked up, no model would be asked, and the bill is nought. What a session holds would not be read again.
    Where the model itself would be asked if documents need be searched, they are taken to be. A prompt longer than the
    window is searched itself, as it would be for its answer. `reading_seconds` is what reading the rest would take at
    the pace of late if nobody else asked, null where nothing was read yet.
    """
    if body.model not in (None, services.model.name):
        raise UnknownModel(str(body.model), services.model.name)
    pace = services.pace
    asked: GenerationRequest | None
    returning: tuple[int, ...]
    beside = PromptBeside()
    if body.messages is None:
        asked, returning = _by_number(body, services, tenant, request_id), ()
    else:
        asked, returning, beside = await _asked(
            body, body.messages, services, tenant, state.settings, request_id, arrival
        )
    cached_tokens = None if body.messages is None else 0
    held = Remembered()
    if asked is not None and body.messages is not None:
        held = await services.stream_rule.remembered(
            tenant, asked.policy, asked.prompt_ids, asked.measure_information, asked.select_from
        )
        cached_tokens = max((held.num_tokens, *returning)) + beside.num_cached
    stats = services.bridge.stats()
    forecast = None if asked is None else services.forecaster.forecast(asked, stats, held.num_archived)
    num_unread = 0 if asked is None else len(asked.prompt_ids) + beside.num_tokens - (cached_tokens or 0)
    reading = ReadingForecast(pace.seconds(num_unread), services.stream_rule.is_needed(num_unread))
    return forecast_view(
        forecast, services.model, services.forecaster.max_context_tokens, cached_tokens, reading, beside.num_tokens
    )


def _by_number(body: PlanRequest, services: Services, tenant: str, request_id: str) -> GenerationRequest:
    """A request with a prompt of so many tokens."""
    assert body.prompt_tokens is not None, "the body has messages or a number of tokens"
    policy = body.fano.policy.over(services.model.policy) if body.fano.policy else None
    room = services.model.max_context_tokens - body.prompt_tokens
    max_tokens = body.max_tokens or max(1, min(services.answering.limits.chat_max_tokens, room))
    prompt = array("i", bytes(array("i").itemsize * body.prompt_tokens))
    sampling = SamplingParams(max_tokens=max_tokens)
    return GenerationRequest(request_id, prompt, sampling, policy=policy, num_choices=body.n, tenant=tenant)


async def _asked(
    body: PlanRequest,
    messages: list[ChatMessage],
    services: Services,
    tenant: str,
    settings: Settings,
    request_id: str,
    arrival: float,
) -> tuple[GenerationRequest | None, tuple[int, ...], PromptBeside]:
    """The request that the engine would get, None where no model would be asked; the numbers of its tokens after which
    there are states on the disk that would come back for it; and what would be read beside it."""
    model, answering = services.model, services.answering
    chat = ChatRequest(model=model.name, messages=messages, max_tokens=body.max_tokens, n=body.n, fano=body.options)
    inquiry = answering.decided(chat_inquiry(chat, tenant, request_id, arrival, settings, model))
    saved: tuple[SavedCheckpoint, ...] = ()
    if inquiry.session is None:
        inquiry, history = await answering.begin(inquiry)
    else:
        preview = await services.book.preview(tenant, inquiry.session, inquiry.policy)
        inquiry, history = answering.go_on(inquiry, preview)
        saved = preview.returning
    found = await answering.groundwork(inquiry, is_asked=False, history=history)
    if is_unanswerable(inquiry, found) or found.is_certain:
        return None, (), PromptBeside()
    beside = PromptBeside()
    if found.to_read is not None:
        beside = PromptBeside(len(found.to_read.ids), await answering.num_cached(inquiry, found.to_read))
    asked = answering.request(inquiry, found)
    num_kept = found.conversation.num_kept if found.conversation is not None else 0
    policy = asked.policy or model.policy
    told = [
        each
        for each in saved
        if each.num_tokens <= num_kept
        and each.selected_from == policy.selected_from(each.num_tokens, asked.select_from)
        and (each.information_bits is not None or not asked.measure_information)
    ]
    return asked, () if found.to_read else tuple(each.num_tokens for each in told), beside
