"""Chat completions as OpenAI has them, with documents as an extension."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from server.chat_files import chat_files
from server.chat_inquiry import chat_inquiry
from server.chat_schema import ChatRequest
from server.chat_shape import ChatShape
from server.citations import Citation
from server.delivery import while_connected, whole_answer, with_error_event
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.errors import UnknownModel
from server.files.nouns import StoreDocument
from server.inquiry import AnswerDone, AnswerProgress, AnswerText, ChoiceDone
from server.replies import Answer
from server.schemas import STREAMED, error_responses
from server.sse import DONE, EventStreamResponse, event
from server.tooling import with_tools

router = APIRouter(prefix="/v1", tags=["chat"], responses=error_responses(400, 401, 404, 409, 413, 429, 503, 504))


@dataclass(frozen=True, slots=True)
class Admitted:
    """A reply that is under way, the files that came with its conversation, and whether it may call functions."""

    answer: Answer
    files: tuple[StoreDocument, ...]
    has_tools: bool


async def admit_chat(
    request: Request,
    body: ChatRequest,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> AsyncIterator[Admitted]:
    """The reply to a conversation."""
    if body.model != services.model.name:
        raise UnknownModel(body.model, services.model.name)
    files = await while_connected(request, chat_files(services, tenant, body)) if body.file_parts else ()
    inquiry = chat_inquiry(body, tenant, request_id, arrival, state.settings, services.model, files)
    if asked := body.response_format and body.response_format.schema_asked:
        constraint = await anyio.to_thread.run_sync(services.grammars.of_json, *asked)
        inquiry = replace(inquiry, constraint=constraint)
    inquiry = await anyio.to_thread.run_sync(with_tools, inquiry, body, services.tokenizer, services.grammars)
    inquiry = services.answering.decided(inquiry)
    if services.answering.is_in_doubt(inquiry):
        inquiry = await while_connected(request, services.answering.weighed(inquiry))
    async with services.answering.answer(inquiry) as answer:
        yield Admitted(answer, files, bool(inquiry.tools))


@router.post("/chat/completions", responses=STREAMED)
async def create_chat_completion(
    request: Request,
    body: ChatRequest,
    admitted: Annotated[Admitted, Depends(admit_chat)],
    services: ServicesDep,
    state: StateDep,
) -> Response:
    """Reply to a conversation; with `fano.documents` or files among the messages, from passages of these documents.

    With `fano.session` the conversation has a name: what of `messages` the session holds is not read again, and its
    tokens are safe on the disk when the reply ends. `messages` is the whole conversation all the same.

    A prompt longer than the window is searched itself for what its last paragraph asks, and read whole; a stream tells
    how far that is.
    """
    answer = admitted.answer
    has_logprobs = body.num_logprobs is not None
    shape = ChatShape(
        services.model, services.tokenizer, answer.sources, has_logprobs, admitted.files, admitted.has_tools
    )
    if not body.stream:
        done, logprobs = await whole_answer(request, answer)
        return JSONResponse(shape.completion(done, logprobs))
    events = with_error_event(_events(answer, shape, body.num_choices, body.includes_usage), None)
    return EventStreamResponse(events, state.settings.keepalive_seconds)


async def _events(answer: Answer, shape: ChatShape, num_choices: int, include_usage: bool) -> AsyncIterator[bytes]:
    """The chunks of each choice: role, text, each citation when it is certain, finish reason; then the usage if asked
    for. Clients that join deltas append lists, so all annotations together are those of the whole reply."""
    usage = {"usage": None} if include_usage else {}
    for choice in range(num_choices):
        yield event(shape.opening(choice) | usage)
    async for each in answer.events():
        match each:
            case AnswerProgress():
                yield event(shape.progress(each) | usage)
            case AnswerText():
                for chunk in shape.pieces(each):
                    yield event(chunk | usage)
            case Citation():
                yield event(shape.cited(0, [each]) | usage)
            case ChoiceDone():
                for chunk in shape.closing(each):
                    yield event(chunk | usage)
            case AnswerDone():
                if include_usage:
                    # The official client keeps the last usage it sees, so this chunk is the last.
                    yield event(shape.billed(each))
                yield DONE
