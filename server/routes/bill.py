"""The bill of a request before it runs, and the whole bill now."""

from array import array
from contextlib import suppress

import anyio.to_thread
from fastapi import APIRouter, Request

from model.engine.request import GenerationRequest, SamplingParams
from model.errors import EngineStopped
from server.answer_form import answer_form
from server.bill_schema import BillView, ForecastView, PlanRequest, bill_view, forecast_view
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.errors import NotReady, RequestInvalid, UnknownModel
from server.inquiry import Inquiry, Sampling
from server.prompt import Turn
from server.schemas import error_responses
from server.services import Services
from server.settings import Settings

router = APIRouter(prefix="/v1", tags=["bill"])


@router.get("/memory", responses=error_responses(401, 503))
async def read_memory(request: Request, state: StateDep) -> BillView:
    """Every byte of state by pool and tier, and what of the process is in no pool.

    Needs a key as `/metrics` does, whose numbers are the same.
    """
    if not (state.settings.on_loopback or state.settings.open_metrics):
        state.tenants.tenant_of(request.headers.get("authorization"))
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
    """What a request would hold on the device at its last token, and whether there is room; nothing is reserved.

    With `documents` they are searched for the last message, as the question would be; where nothing is found no model
    would be asked, and the bill is nought.
    """
    if body.model not in (None, services.model.name):
        raise UnknownModel(str(body.model), services.model.name)
    asked = await _asked(body, services, tenant, state.settings, request_id, arrival)
    stats = services.bridge.stats()
    forecast = None if asked is None else services.forecaster.forecast(asked, stats)
    cached_tokens = None
    if asked is not None and body.messages is not None:
        policy = asked.policy or services.forecaster.policy
        held = await services.bridge.call(lambda engine: engine.holding(tenant, policy, asked.prompt_ids))
        cached_tokens = held.num_tokens
    return forecast_view(forecast, services.model, services.forecaster.max_context_tokens, cached_tokens)


async def _asked(
    body: PlanRequest, services: Services, tenant: str, settings: Settings, request_id: str, arrival: float
) -> GenerationRequest | None:
    """The request that the body describes; None where no model would be asked."""
    policy = body.fano.policy.over(services.model.policy) if body.fano.policy else None
    if body.prompt_tokens is not None:
        num_prompt_tokens, limits = body.prompt_tokens, services.answering.limits
        room = services.model.max_context_tokens - num_prompt_tokens
        max_tokens = body.max_tokens or max(1, min(limits.chat_max_tokens, room))
        prompt = array("i", bytes(array("i").itemsize * num_prompt_tokens))
        sampling = SamplingParams(max_tokens=max_tokens)
        return GenerationRequest(request_id, prompt, sampling, policy=policy, num_choices=body.n, tenant=tenant)
    assert body.messages is not None, "the body has messages or a number of tokens"
    if body.documents and body.messages[-1].role != "user":
        raise RequestInvalid("with documents the last message is the question and is from the user", "messages")
    inquiry = Inquiry(
        request_id=request_id,
        tenant=tenant,
        turns=tuple(Turn("system" if m.role == "developer" else m.role, m.text) for m in body.messages),
        documents=tuple(dict.fromkeys(body.documents)),
        recall="grounded" if body.documents else "free",
        sampling=Sampling(max_tokens=body.max_tokens, num_choices=body.n),
        max_passages=settings.max_passages,
        started=arrival,
        policy=policy,
        form=answer_form(None, None, settings),
        may_skip=True,
    )
    inquiry = services.answering.decided(inquiry)
    inquiry, history = await services.answering.begin(inquiry)
    found = await services.answering.groundwork(inquiry, is_asked=False, history=history)
    if inquiry.documents and not found.sources:
        return None
    return services.answering.request(inquiry, found)
