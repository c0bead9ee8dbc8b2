"""Chat completions as OpenAI has them, with documents as an extension."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from server.answers.citations import Citation
from server.answers.inquiry import AnswerDone, AnswerProgress, AnswerText, ChoiceDone
from server.answers.replies import Answer
from server.chat.files import chat_files
from server.chat.inquiry import chat_inquiry
from server.chat.schema import ChatRequest
from server.chat.shape import ChatShape
from server.chat.tooling import with_tools
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.error_table import envelope
from server.errors import UnknownModel
from server.schemas import STREAMED, error_responses
from server.services import Services
from server.settings import Settings
from server.streams.delivery import while_connected, whole_answer, with_error_event
from server.streams.patience import patience_with, patient_stream, takes_long
from server.streams.sse import DONE, EventStreamResponse, event

router = APIRouter(prefix="/v1", tags=["chat"], responses=error_responses(400, 401, 404, 409, 413, 429, 503, 504))


@dataclass(frozen=True, slots=True)
class Admitted:
    """A reply that is under way, and its shape."""

    answer: Answer
    shape: ChatShape


async def admit_chat(
    request: Request,
    body: ChatRequest,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> AsyncIterator[Admitted | AsyncGenerator[bytes]]:
    """The reply to a conversation; its stream, where a file of it has to be read first, or so much of it searched, that
    this may take long."""
    admitted = _admitted(request, body, services, tenant, state.settings, request_id, arrival)
    if not (body.stream and (body.file_parts or takes_long(body.num_characters))):
        async with admitted as reply:
            yield reply
        return
    patience = patience_with(body.num_characters, state.settings.keepalive_seconds)
    async with patient_stream(admitted, lambda reply: _stream(reply, body), _refused, patience) as stream:
        yield stream


@asynccontextmanager
async def _admitted(
    request: Request,
    body: ChatRequest,
    services: Services,
    tenant: str,
    settings: Settings,
    request_id: str,
    arrival: float,
) -> AsyncIterator[Admitted]:
    """The reply, ready to be told. Raises on entry whatever refuses it."""
    if body.model != services.model.name:
        raise UnknownModel(body.model, services.model.name)
    files = await while_connected(request, chat_files(services, tenant, body)) if body.file_parts else ()
    inquiry = chat_inquiry(body, tenant, request_id, arrival, settings, services.model, files)
    if asked := body.response_format and body.response_format.schema_asked:
        constraint = await anyio.to_thread.run_sync(services.grammars.of_json, *asked)
        inquiry = replace(inquiry, constraint=constraint)
    inquiry = await anyio.to_thread.run_sync(with_tools, inquiry, body, services.tokenizer, services.grammars)
    inquiry = services.answering.decided(inquiry)
    if services.answering.is_in_doubt(inquiry):
        inquiry = await while_connected(request, services.answering.weighed(inquiry))
    async with services.answering.answer(inquiry) as answer:
        has_logprobs = body.num_logprobs is not None
        shape = ChatShape(services.model, services.tokenizer, answer.sources, has_logprobs, files, bool(inquiry.tools))
        yield Admitted(answer, shape)


@router.post("/chat/completions", responses=STREAMED)
async def create_chat_completion(
    request: Request,
    body: ChatRequest,
    admitted: Annotated[Admitted | AsyncGenerator[bytes], Depends(admit_chat)],
    state: StateDep,
) -> Response:
    """Reply to a conversation; with `fano.documents` or files among the messages, from passages of these documents.

    With `fano.session` the conversation has a name: what of `messages` the session holds is not read again, and its
    tokens are safe on the disk when the reply ends. `messages` is the whole conversation all the same.

    A prompt longer than the window is searched itself for what its last paragraph asks, and read whole; a stream tells
    how far that is.
    """
    if not isinstance(admitted, Admitted):
        return EventStreamResponse(admitted, state.settings.keepalive_seconds)
    if not body.stream:
        done, logprobs = await whole_answer(request, admitted.answer)
        return JSONResponse(admitted.shape.completion(done, logprobs))
    return EventStreamResponse(_stream(admitted, body), state.settings.keepalive_seconds)


def _stream(admitted: Admitted, body: ChatRequest) -> AsyncGenerator[bytes]:
    """The chunks on the wire, a failure among them as the last event."""
    return with_error_event(_events(admitted.answer, admitted.shape, body.num_choices, body.includes_usage), None)


def _refused(error: Exception) -> bytes:
    return event(envelope(error))


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
