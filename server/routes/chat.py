"""Chat completions as OpenAI has them, with documents as an extension."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from server.answer_form import answer_form
from server.chat_schema import ChatRequest
from server.chat_shape import ChatShape
from server.citations import Citation
from server.delivery import while_connected, whole_answer, with_error_event
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.errors import RequestInvalid, UnknownModel
from server.inquiry import AnswerDone, AnswerText, ChoiceDone, GivenFact, Inquiry
from server.prompt import Turn
from server.replies import Answer
from server.schemas import Recall, error_responses
from server.sse import DONE, EventStreamResponse, event, with_keep_alive
from server.within import asked_parts, whole_start

router = APIRouter(prefix="/v1", tags=["chat"], responses=error_responses(400, 401, 404, 409, 413, 429, 503, 504))


async def admit_chat(
    request: Request,
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
        sampling=body.sampling,
        max_passages=body.fano.max_passages or state.settings.max_passages,
        started=arrival,
        form=answer_form(body.fano.start, body.fano.question_place, state.settings),
        policy=body.fano.policy.over(services.model.policy) if body.fano.policy else None,
        session=_session(body),
        may_skip=_recall(body) == "grounded" and not body.fano.facts,
        facts=tuple(
            GivenFact(fact.text, fact.key, f"fano.facts.{place}") for place, fact in enumerate(body.fano.facts or ())
        ),
        within=asked_parts(body.fano.within, "fano.within"),
        fact_kinds=tuple(body.fano.fact_kinds or ()),
    )
    inquiry = services.answering.decided(inquiry)
    if services.answering.is_in_doubt(inquiry):
        inquiry = await while_connected(request, services.answering.weighed(inquiry))
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
    """Reply to a conversation; with `fano.documents`, from passages of these documents.

    With `fano.session` the conversation has a name: what of `messages` the session holds is not read again, and its
    tokens are safe on the disk when the reply ends. `messages` is the whole conversation all the same.
    """
    shape = ChatShape(services.model, services.tokenizer, answer.sources, body.num_logprobs is not None)
    if not body.stream:
        done, logprobs = await whole_answer(request, answer)
        return JSONResponse(shape.completion(done, logprobs))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    events = with_error_event(_events(answer, shape, body.num_choices, include_usage), None)
    return EventStreamResponse(with_keep_alive(events, state.settings.keepalive_seconds))


def _recall(body: ChatRequest) -> Recall:
    """The recall mode, where it goes together with the rest. Raises ``RequestInvalid``."""
    recall = body.fano.recall or ("grounded" if body.fano.documents else "free")
    if not body.fano.documents:
        if recall != "free":
            raise RequestInvalid(f"fano.recall is {recall!r}, which needs fano.documents", "fano.recall")
        for key in ("max_passages", "start", "question_place", "facts", "within", "fact_kinds"):
            if getattr(body.fano, key) is not None:
                raise RequestInvalid(f"fano.{key} needs fano.documents", f"fano.{key}")
        return recall
    whole_start(body.fano.start, body.fano.within, "fano.start")
    if recall == "free":
        raise RequestInvalid("fano.recall is 'free', which uses no documents; leave out one of them", "fano.recall")
    last = len(body.messages) - 1
    if body.messages[last].role != "user":
        raise RequestInvalid("with fano.documents the last message is the question and is from the user",
                             f"messages.{last}.role")  # fmt: skip
    if not body.messages[last].text.strip():
        raise RequestInvalid("the question is empty", f"messages.{last}.content")
    if body.num_choices > 1:
        raise RequestInvalid("n cannot be more than 1 with fano.documents: one answer is searched for and cited", "n")
    if recall == "verbatim" and body.stop_strings:
        raise RequestInvalid("stop cannot be used with fano.recall 'verbatim': quotes are not cut", "stop")
    if recall == "verbatim" and body.logprobs:
        raise RequestInvalid(
            "logprobs cannot be used with fano.recall 'verbatim': the reply is the document's text, not tokens",
            "logprobs",
        )
    return recall


def _session(body: ChatRequest) -> str | None:
    """The session, where the request can be one of its turns. Raises ``RequestInvalid``."""
    if body.fano.session is not None and body.num_choices > 1:
        raise RequestInvalid("n cannot be more than 1 with fano.session: a session has one history", "n")
    return body.fano.session


async def _events(answer: Answer, shape: ChatShape, num_choices: int, include_usage: bool) -> AsyncIterator[bytes]:
    """The chunks of each choice: role, text, each citation when it is certain, finish reason; then the usage if asked
    for. Clients that join deltas append lists, so all annotations together are those of the whole reply."""
    usage = {"usage": None} if include_usage else {}
    for choice in range(num_choices):
        yield event(shape.opening(choice) | usage)
    async for each in answer.events():
        match each:
            case AnswerText():
                yield event(shape.piece(each) | usage)
            case Citation():
                yield event(shape.cited(0, [each]) | usage)
            case ChoiceDone():
                yield event(shape.closing(each) | usage)
            case AnswerDone():
                if include_usage:
                    # The official client keeps the last usage it sees, so this chunk is the last.
                    yield event(shape.billed(each))
                yield DONE
