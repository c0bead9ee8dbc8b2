"""A chat request as an inquiry: what goes together, and what is refused by name; for the chat and for its plan."""

from collections.abc import Sequence

from server.answers.form import answer_form
from server.answers.inquiry import GivenFact, Inquiry, ServedModel
from server.answers.prompt import Turn
from server.answers.within import asked_parts, whole_start
from server.chat.schema import ChatMessage, ChatRequest
from server.chat.searched_fields import check_without_documents, needs_long, needs_search
from server.errors import RequestInvalid
from server.files.nouns import StoreDocument
from server.schemas import MAX_DOCUMENTS, Recall
from server.settings import Settings


def chat_inquiry(
    body: ChatRequest,
    tenant: str,
    request_id: str,
    arrival: float,
    settings: Settings,
    model: ServedModel,
    files: Sequence[StoreDocument] = (),
) -> Inquiry:
    """What ``body`` asks; ``files`` are the documents of those in its messages. Raises ``RequestInvalid``."""
    parts = body.file_parts
    if parts and not files:
        raise RequestInvalid(
            "a file in a message cannot be planned for; post it to /v1/documents and name it in options.documents",
            parts[0][0],
        )
    documents = tuple(dict.fromkeys([*body.fano.documents, *(each.document_id for each in files)]))
    recall = _recall(body, documents)
    brings_file = bool(parts) and parts[-1][0].startswith(f"messages.{len(body.messages) - 1}.")
    return Inquiry(
        request_id=request_id,
        tenant=tenant,
        turns=tuple(_turn(message) for message in body.messages),
        documents=documents,
        recall=recall,
        sampling=body.sampling,
        max_passages=body.fano.max_passages or settings.max_passages,
        started=arrival,
        form=answer_form(body.fano.start, body.fano.question_place, settings),
        policy=body.fano.policy.over(model.policy) if body.fano.policy else None,
        session=_session(body),
        # Who sends a file along with the question asks about it.
        may_skip=recall == "grounded" and not body.fano.facts and not brings_file,
        facts=tuple(
            GivenFact(fact.text, fact.key, f"fano.facts.{place}") for place, fact in enumerate(body.fano.facts or ())
        ),
        within=asked_parts(body.fano.within, "fano.within"),
        fact_kinds=tuple(body.fano.fact_kinds or ()),
        needs_search=None if documents else needs_search(body.fano),
        needs_long=needs_long(body.fano),
        is_streamed=body.stream is True,
        tells_progress=body.return_progress,
    )


def _turn(message: ChatMessage) -> Turn:
    more: list[tuple[str, object]] = []
    if message.tool_calls:
        calls = [{**call.model_dump(), "function": call.function.told()} for call in message.tool_calls]
        more.append(("tool_calls", calls))
    if message.tool_call_id is not None:
        more.append(("tool_call_id", message.tool_call_id))
    return Turn("system" if message.role == "developer" else message.role, message.text, tuple(more))


def _recall(body: ChatRequest, documents: Sequence[str]) -> Recall:
    """The recall mode, where it goes together with the rest. Raises ``RequestInvalid``."""
    recall = body.fano.recall or ("grounded" if documents else "free")
    if len(documents) > MAX_DOCUMENTS:
        raise RequestInvalid(
            f"the question is about {len(documents)} documents, of {MAX_DOCUMENTS} at most", "messages"
        )
    if not documents:
        check_without_documents(body.fano, "fano.documents")
        return recall
    if body.response_format is not None and body.response_format.schema_asked is not None:
        raise RequestInvalid(
            "response_format cannot be used with documents: an answer from them is a quotation, or says what was "
            "searched where nothing was found; ask for the form in a second request with the answer in its messages",
            "response_format",
        )
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
