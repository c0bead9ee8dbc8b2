"""Chat completions as OpenAI has them, with documents as an extension."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from server.answering import Answer
from server.chat_schema import ChatRequest
from server.citations import Citation, Source
from server.delivery import whole_answer, with_error_event
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.errors import RequestInvalid, UnknownModel
from server.inquiry import AnswerDone, AnswerText, Inquiry, Sampling, ServedModel
from server.prompt import Turn
from server.rendering import usage_view
from server.schemas import Recall, error_responses
from server.sse import DONE, EventStreamResponse, event, with_keep_alive

router = APIRouter(prefix="/v1", tags=["chat"], responses=error_responses(400, 401, 404, 409, 413, 429, 503))


async def admit_chat(
    body: ChatRequest,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> AsyncIterator[Answer]:
    """The reply to a conversation."""
    if body.model != services.model.name:
        raise UnknownModel(body.model, services.model.name)
    inquiry = Inquiry(
        request_id=request_id,
        tenant=tenant,
        turns=tuple(Turn("system" if m.role == "developer" else m.role, m.text) for m in body.messages),
        documents=tuple(dict.fromkeys(body.fano.documents)),
        recall=_recall(body),
        sampling=Sampling(body.answer_tokens, body.temperature, body.top_p, body.seed, body.stop_strings),
        max_passages=body.fano.max_passages or state.settings.max_passages,
        started=arrival,
        policy=body.fano.policy.over(services.model.policy) if body.fano.policy else None,
    )
    async with services.answering.answer(inquiry) as answer:
        yield answer


@router.post("/chat/completions")
async def create_chat_completion(
    request: Request,
    body: ChatRequest,
    answer: Annotated[Answer, Depends(admit_chat)],
    services: ServicesDep,
    state: StateDep,
) -> Response:
    """Reply to a conversation; with `fano.documents`, from passages of these documents."""
    shape = _Shape(services.model, answer.sources)
    if not body.stream:
        return JSONResponse(shape.completion(await whole_answer(request, answer)))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    events = with_error_event(_events(answer, shape, include_usage), None)
    return EventStreamResponse(with_keep_alive(events, state.settings.keepalive_seconds))


def _recall(body: ChatRequest) -> Recall:
    """The recall mode, where it goes together with the rest. Raises ``RequestInvalid``."""
    recall = body.fano.recall or ("grounded" if body.fano.documents else "free")
    if not body.fano.documents:
        if recall != "free":
            raise RequestInvalid(f"fano.recall is {recall!r}, which needs fano.documents", "fano.recall")
        if body.fano.max_passages is not None:
            raise RequestInvalid("fano.max_passages needs fano.documents", "fano.max_passages")
        return recall
    if recall == "free":
        raise RequestInvalid("fano.recall is 'free', which uses no documents; leave out one of them", "fano.recall")
    last = len(body.messages) - 1
    if body.messages[last].role != "user":
        raise RequestInvalid("with fano.documents the last message is the question and is from the user",
                             f"messages.{last}.role")  # fmt: skip
    if not body.messages[last].text.strip():
        raise RequestInvalid("the question is empty", f"messages.{last}.content")
    if recall == "verbatim" and body.stop_strings:
        raise RequestInvalid("stop cannot be used with fano.recall 'verbatim': quotes are not cut", "stop")
    return recall


async def _events(answer: Answer, shape: "_Shape", include_usage: bool) -> AsyncIterator[bytes]:
    """The chunks: role, text, citations in one delta, finish reason, usage if asked for, and the end mark."""
    usage = {"usage": None} if include_usage else {}
    yield event(shape.chunk({"role": "assistant", "content": ""}) | usage)
    citations: list[Citation] = []
    async for each in answer.events():
        if isinstance(each, AnswerText):
            yield event(shape.chunk({"content": each.text}) | usage)
        elif isinstance(each, Citation):
            citations.append(each)
        else:
            if citations:
                yield event(shape.chunk({"annotations": shape.annotations(citations)}) | usage)
            yield event(shape.chunk({}, each.finish_reason.value) | usage)
            if include_usage:
                # The official client keeps the last usage it sees, so this chunk is the last.
                yield event(shape.usage_chunk(each))
            yield DONE


class _Shape:
    """The objects of one completion: they share id, time and model."""

    def __init__(self, model: ServedModel, sources: Sequence[Source]) -> None:
        self._model = model
        self._names = {source.passage.document_id: source.passage.document_name for source in sources}
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}

    def completion(self, done: AnswerDone) -> dict[str, Any]:
        """The whole reply."""
        message: dict[str, Any] = {"role": "assistant", "content": done.text, "refusal": None}
        if done.citations:
            message["annotations"] = self.annotations(done.citations)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish_reason.value}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_view(done, self._model).model_dump(),
        }

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of a streamed reply."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, done: AnswerDone) -> dict[str, Any]:
        """The last chunk, which has no choice."""
        usage = usage_view(done, self._model).model_dump()
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def annotations(self, citations: Sequence[Citation]) -> list[dict[str, Any]]:
        """OpenAI's file citations (``index`` is where in the reply the quote ends), with the place in the document."""
        return [
            {
                "type": "file_citation",
                "file_id": citation.document,
                "filename": self._names[citation.document],
                "index": citation.answer_end,
                "quote": citation.quote,
                "start_char": citation.start,
                "end_char": citation.end,
                "page": citation.page,
            }
            for citation in citations
        ]
