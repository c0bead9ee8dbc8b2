"""Facts that a request brings along: texts of its documents that must be in the prompt, some under a key."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from retrieval.contents import cut
from retrieval.keys import fold, query_keys
from retrieval.passage import Passage, Span, Standing, Value
from retrieval.scope import Scope
from server.answers.inquiry import GivenFact
from server.errors import RequestInvalid

if TYPE_CHECKING:
    from retrieval.library import Library

FOUND_BY = ("fact",)
SHOWN_CHARACTERS = 64


def fact_passages(
    library: "Library",
    tenant: str,
    documents: Sequence[str],
    facts: Sequence[GivenFact],
    question: str,
    scope: Scope,
) -> list[Passage]:
    """The sentence of each fact, each once, in their order; under a key that ``question`` asks for with its value.

    A text that stands in several places is taken at the first. Raises ``RequestInvalid`` for one that stands nowhere,
    and ``DocumentNotReady``.
    """
    passages: dict[tuple[str, Span], Passage] = {}
    for fact in facts:
        places = library.locate(tenant, documents, fact.text, 1, scope)
        if not places:
            shown = fact.text if len(fact.text) <= SHOWN_CHARACTERS else f"{fact.text[:SHOWN_CHARACTERS]}..."
            asked = "parts of documents" if scope.parts else "documents"
            raise RequestInvalid(
                f"{fact.param}.text is {shown!r}, which stands in none of the {asked} asked; send it as it is "
                "written there, or add the document that has it",
                f"{fact.param}.text",
            )
        ((document_id, span),) = places
        sentence = library.sentence(tenant, document_id, span)
        sentence = cut(sentence, _around(span, scope.parts.get(document_id))) or sentence
        passage = passages.get((document_id, sentence)) or Passage(
            document_id=document_id,
            document_name=library.get(tenant, document_id).name,
            span=sentence,
            text=library.text(tenant, document_id, sentence.start, sentence.end),
            page=library.page(tenant, document_id, sentence.start),
            score=1.0,
            found_by=FOUND_BY,
        )
        if (value := _under_key(fact, span, sentence, question)) is not None:
            passage = replace(passage, evidence=sentence, values=(*passage.values, value))
        passages[document_id, sentence] = passage
    return list(passages.values())


def _around(span: Span, parts: Sequence[Span] | None) -> Sequence[Span] | None:
    """The part that ``span`` stands in, if there are any."""
    if parts is None:
        return None
    return [part for part in parts if part.start <= span.start and span.end <= part.end]


def is_given(passage: Passage) -> bool:
    """Whether the request brought it along."""
    return passage.found_by == FOUND_BY


def _under_key(fact: GivenFact, span: Span, sentence: Span, question: str) -> Value | None:
    if fact.key is None:
        return None
    forms = fold(fact.key)
    if not forms:
        raise RequestInvalid(
            f"{fact.param}.key is {fact.key!r}, which has no letter and no digit; a key is what the fact is asked for "
            "by",
            f"{fact.param}.key",
        )
    for rank, asked in enumerate(query_keys(question)):
        if not set(forms).isdisjoint(asked.folded):
            return Value(span, sentence, asked.raw, rank, forms[0] == asked.folded[0], Standing.PINNED)
    return None
