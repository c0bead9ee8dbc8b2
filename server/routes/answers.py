"""Questions about documents."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from server.answers.citations import Citation
from server.answers.form import answer_form
from server.answers.inquiry import AnswerDone, AnswerText, GivenFact, Inquiry, Sampling, ServedModel
from server.answers.prompt import Turn
from server.answers.replies import Answer
from server.answers.schema import DocumentQuestion, Question
from server.answers.within import asked_parts, whole_start
from server.dependencies import ArrivalDep, RequestIdDep, ServicesDep, StateDep, TenantDep
from server.rendering import answer_view, citation_view, source_view
from server.schemas import STREAMED, AnswerView, error_responses
from server.settings import Settings
from server.streams.delivery import whole_answer, with_error_event
from server.streams.sse import EventStreamResponse, event

router = APIRouter(prefix="/v1", tags=["answers"], responses=error_responses(400, 401, 404, 409, 413, 429, 503, 504))


async def admit_question(
    body: Question,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> AsyncIterator[Answer]:
    """The answer to a question about the documents of the body."""
    inquiry = _inquiry(body, tuple(dict.fromkeys(body.documents)), tenant, request_id, arrival, state.settings)
    async with services.answering.answer(inquiry) as answer:
        yield answer


async def admit_document_question(
    document_id: str,
    body: DocumentQuestion,
    services: ServicesDep,
    tenant: TenantDep,
    state: StateDep,
    request_id: RequestIdDep,
    arrival: ArrivalDep,
) -> AsyncIterator[Answer]:
    """The answer to a question about the document of the path."""
    inquiry = _inquiry(body, (document_id,), tenant, request_id, arrival, state.settings)
    async with services.answering.answer(inquiry) as answer:
        yield answer


@router.post("/ask", response_model=AnswerView, responses=STREAMED)
async def ask(
    request: Request,
    body: Question,
    answer: Annotated[Answer, Depends(admit_question)],
    services: ServicesDep,
    state: StateDep,
) -> Response:
    """Answer a question from documents. With `stream`: events `sources`, `token`, `citation`, `done` or `error`."""
    return await _reply(request, body.stream, answer, services.model, state.settings.keepalive_seconds)


@router.post("/documents/{document_id}/ask", response_model=AnswerView, responses=STREAMED)
async def ask_document(
    request: Request,
    body: DocumentQuestion,
    answer: Annotated[Answer, Depends(admit_document_question)],
    services: ServicesDep,
    state: StateDep,
) -> Response:
    """Answer a question from one document, like `/v1/ask`."""
    return await _reply(request, body.stream, answer, services.model, state.settings.keepalive_seconds)


def _inquiry(
    body: DocumentQuestion,
    documents: tuple[str, ...],
    tenant: str,
    request_id: str,
    arrival: float,
    settings: Settings,
) -> Inquiry:
    whole_start(body.start, body.within, "start")
    return Inquiry(
        request_id=request_id,
        tenant=tenant,
        turns=(Turn("user", body.question),),
        documents=documents,
        recall=body.recall,
        sampling=Sampling(max_tokens=body.max_tokens),
        max_passages=settings.max_passages,
        started=arrival,
        facts=tuple(GivenFact(fact.text, fact.key, f"facts.{place}") for place, fact in enumerate(body.facts or ())),
        form=answer_form(body.start, body.question_place, settings),
        within=asked_parts(body.within, "within"),
        fact_kinds=tuple(body.fact_kinds or ()),
        question_param="question",
    )


async def _reply(
    request: Request, stream: bool, answer: Answer, model: ServedModel, keepalive_seconds: float
) -> Response:
    if not stream:
        done, _ = await whole_answer(request, answer)
        return JSONResponse(answer_view(done, answer.sources, model).model_dump())
    events = with_error_event(_events(answer, model), "error")
    return EventStreamResponse(events, keepalive_seconds)


async def _events(answer: Answer, model: ServedModel) -> AsyncIterator[bytes]:
    yield event([source_view(source).model_dump() for source in answer.sources], "sources")
    async for each in answer.events():
        if isinstance(each, AnswerText):
            yield event({"text": each.text}, "token")
        elif isinstance(each, Citation):
            yield event(citation_view(each).model_dump(), "citation")
        elif isinstance(each, AnswerDone):
            yield event(answer_view(each, answer.sources, model).model_dump(exclude={"sources"}), "done")
