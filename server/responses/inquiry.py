"""A response request as an inquiry: what goes together, and what is refused by name; for the response and its count."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.errors import PromptTooLong
from server.answers.form import answer_form
from server.answers.inquiry import GivenFact, Inquiry, Sampling, ServedModel
from server.answers.prompt import ChatTokenizer, Turn, build_chat
from server.answers.within import asked_parts, whole_start
from server.chat.searched_fields import check_without_documents, needs_long, needs_search
from server.errors import RequestInvalid
from server.files.files import cuttings_of
from server.files.nouns import StoreDocument
from server.responses.input_items import turns_of
from server.responses.schema import ResponseInput, ResponseRequest
from server.responses.store import StoredResponse
from server.schemas import Recall
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """The documents that a response may rest on: those of the vector stores, and those that messages brought along,
    of earlier turns too. ``is_brought_now`` is whether the last input did."""

    of_stores: tuple[StoreDocument, ...] = ()
    brought: tuple[StoreDocument, ...] = ()
    is_brought_now: bool = False


def conversation(body: ResponseInput, before: Sequence[StoredResponse]) -> tuple[Turn, ...]:
    """All turns: the request's own instructions, what was said before, the input. Raises ``RequestInvalid``."""
    items = [item for response in before for item in (*response.input, *response.object["output"])]
    calls = {item["call_id"] for item in items if item["type"] == "function_call"}
    for place, item in enumerate(body.input):
        if item.type == "function_call":
            calls.add(item.call_id)
        elif item.type == "function_call_output" and item.call_id not in calls:
            raise RequestInvalid(
                f"input.{place}.call_id is {item.call_id!r}, which is of no call before it; send the call as well, or "
                "go on from its response with previous_response_id",
                f"input.{place}.call_id",
            )
    turns = turns_of([*items, *(item.view() for item in body.input)])
    return (*([Turn("system", body.instructions)] if body.instructions else []), *turns)


def response_inquiry(
    body: ResponseInput,
    turns: tuple[Turn, ...],
    asked: Asked,
    tenant: str,
    request_id: str,
    arrival: float,
    settings: Settings,
    model: ServedModel,
) -> Inquiry:
    """What ``body`` asks. Raises ``RequestInvalid``."""
    fano = body.fano
    documents = tuple(
        dict.fromkeys([*fano.documents, *(each.document_id for each in (*asked.brought, *asked.of_stores))])
    )
    recall = _recall(body, documents)
    own_number = body.file_search.max_num_results if body.file_search else None
    return Inquiry(
        request_id=request_id,
        tenant=tenant,
        turns=turns,
        documents=documents,
        recall=recall,
        sampling=_sampling(body),
        max_passages=own_number or fano.max_passages or settings.max_passages,
        started=arrival,
        form=answer_form(fano.start, fano.question_place, settings),
        policy=fano.policy.over(model.policy) if fano.policy else None,
        may_skip=recall == "grounded" and not (fano.facts or body.must_search or asked.is_brought_now),
        facts=tuple(
            GivenFact(fact.text, fact.key, f"fano.facts.{place}") for place, fact in enumerate(fano.facts or ())
        ),
        within=asked_parts(fano.within, "fano.within"),
        fact_kinds=tuple(fano.fact_kinds or ()),
        # Nobody waits for what is made in the background.
        is_streamed=isinstance(body, ResponseRequest) and bool(body.stream or body.background),
        needs_search=None if documents or body.file_search else needs_search(fano),
        needs_long=needs_long(fano),
        min_score=body.file_search.score_threshold if body.file_search else 0.0,
        cuttings=cuttings_of(asked.of_stores),
    )


def shortened(inquiry: Inquiry, tokenizer: ChatTokenizer, refusal: PromptTooLong) -> Inquiry:
    """The inquiry without as many of its earliest turns as must go for the rest to fit, and at least one; instructions
    stay. Raises ``refusal`` where only the last turn is left.

    Reads the rest a few times, each time half of what is in question.
    """
    turns = inquiry.turns
    num_kept = 1 if turns[0].role == "system" else 0
    head, rest = turns[:num_kept], turns[num_kept:]
    least, most = 1, len(rest) - 1
    if most < least:
        raise refusal
    room = refusal.max_context_tokens - refusal.max_tokens
    while least < most:
        middle = (least + most) // 2
        if len(build_chat(tokenizer, (*head, *rest[middle:])).ids) <= room:
            most = middle
        else:
            least = middle + 1
    return replace(inquiry, turns=(*head, *rest[least:]))


def _sampling(body: ResponseInput) -> Sampling:
    if not isinstance(body, ResponseRequest):
        return Sampling()
    return Sampling(
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=body.num_logprobs,
    )


def _recall(body: ResponseInput, documents: Sequence[str]) -> Recall:
    """The recall mode, where it goes together with the rest. Raises ``RequestInvalid``."""
    recall = body.fano.recall or ("grounded" if documents else "free")
    if not documents:
        check_without_documents(body.fano, "file_search, a file or fano.documents")
        if recall == "verbatim":
            _check_quoting(body)
        # A vector store may have no files yet: then there is nothing to search.
        return "free" if body.file_search is not None else recall
    whole_start(body.fano.start, body.fano.within, "fano.start")
    if recall == "free":
        raise RequestInvalid("fano.recall is 'free', which uses no documents; leave out one of them", "fano.recall")
    last = len(body.input) - 1
    if body.input[last].role != "user":
        raise RequestInvalid("with documents the last item is the question and is from the user", f"input.{last}.role")
    if not body.input[last].text.strip():
        raise RequestInvalid("the question is empty", f"input.{last}.content")
    if body.form.schema_asked is not None:
        raise RequestInvalid(
            "text.format cannot be used with documents: an answer from them is a quotation, or says what was searched "
            "where nothing was found; ask for the form in a second request that goes on from the answer",
            "text.format",
        )
    if recall == "verbatim":
        _check_quoting(body)
    return recall


def _check_quoting(body: ResponseInput) -> None:
    """Refuse what does not go together with quotations, by its name here. Raises ``RequestInvalid``."""
    if body.form.schema_asked is not None:
        raise RequestInvalid(
            "text.format cannot be used with fano.recall 'verbatim': an answer that is a quotation has no other form",
            "text.format",
        )
    if isinstance(body, ResponseRequest) and body.num_logprobs is not None:
        raise RequestInvalid(
            "logprobs cannot be included with fano.recall 'verbatim': the reply is the text as it stands, not tokens",
            "include",
        )
