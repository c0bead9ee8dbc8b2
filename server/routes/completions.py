"""Completions of texts as OpenAI had them before chats."""

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from model.engine.request import TokenLogprob
from server.answers.inquiry import AnswerDone, AnswerProgress, AnswerText, ChoiceDone, Inquiry
from server.completions.completing import Continuation, together
from server.completions.schema import CompletionRequest
from server.completions.shape import CompletionShape
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.errors import UnknownModel
from server.schemas import error_responses
from server.streams.delivery import Logprobs, while_connected, with_error_event
from server.streams.sse import DONE, EventStreamResponse, event

router = APIRouter(prefix="/v1", tags=["completions"], responses=error_responses(400, 401, 404, 413, 429, 503, 504))


async def admit_completion(
    body: CompletionRequest,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> AsyncIterator[list[Continuation]]:
    """What is written after each prompt."""
    if body.model != services.model.name:
        raise UnknownModel(body.model, services.model.name)
    inquiry = Inquiry(
        request_id=request_id,
        tenant=tenant,
        turns=(),
        documents=(),
        recall="free",
        sampling=body.sampling,
        max_passages=state.settings.max_passages,
        started=arrival,
        is_streamed=body.stream is True,
        tells_progress=body.return_progress,
    )
    async with services.completing.complete(inquiry, body.prompts) as continuations:
        yield continuations


@router.post("/completions")
async def create_completion(
    request: Request,
    body: CompletionRequest,
    continuations: Annotated[list[Continuation], Depends(admit_completion)],
    services: ServicesDep,
    state: StateDep,
) -> Response:
    """Go on with a text as it stands, or with several: without a chat's template, documents or sessions."""
    shape = CompletionShape(services.model, services.tokenizer, body)
    if not body.stream:
        done, logprobs = await while_connected(request, _read(continuations))
        return JSONResponse(shape.completion(continuations, done, logprobs))
    events = with_error_event(_events(continuations, shape, body), None)
    return EventStreamResponse(events, state.settings.keepalive_seconds)


async def _read(continuations: list[Continuation]) -> tuple[list[AnswerDone], list[Logprobs]]:
    """The end of each, and what is known of its tokens by choice. Raises what ended any of them early."""
    done: dict[int, AnswerDone] = {}
    logprobs: list[defaultdict[int, list[TokenLogprob]]] = [defaultdict(list) for _ in continuations]
    async for place, said in together([each.answer for each in continuations]):
        if isinstance(said, AnswerText):
            logprobs[place][said.choice].extend(said.logprobs)
        elif isinstance(said, AnswerDone):
            done[place] = said
    return [done[place] for place in range(len(continuations))], [*logprobs]


async def _events(
    continuations: list[Continuation], shape: CompletionShape, body: CompletionRequest
) -> AsyncIterator[bytes]:
    """The chunks of each choice: the prompt if it is echoed, text, finish reason; then the usage if asked for."""
    usage = {"usage": None} if body.includes_usage else {}
    if body.echo:
        for place, each in enumerate(continuations):
            for choice in range(body.num_choices):
                yield event(shape.echo(place, choice, each.text) | usage)
    done: dict[int, AnswerDone] = {}
    async for place, said in together([each.answer for each in continuations]):
        match said:
            case AnswerProgress():
                yield event(shape.progress(place, said) | usage)
            case AnswerText() if body.max_tokens != 0:
                yield event(shape.piece(place, said) | usage)
            case ChoiceDone():
                yield event(shape.closing(place, said) | usage)
            case AnswerDone():
                done[place] = said
    if body.includes_usage:
        # The official client keeps the last usage it sees, so this chunk is the last.
        yield event(shape.billed([done[place] for place in range(len(continuations))]))
    yield DONE
