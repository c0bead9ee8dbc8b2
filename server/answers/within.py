"""Parts of documents as a request names them, as spans of their texts; and how they are told of."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retrieval.errors import DocumentNotReady
from retrieval.passage import Document, Span
from retrieval.scope import Scope, merged
from retrieval.words import words
from server.answers.form import AnswerStart
from server.answers.inquiry import AskedPart, Inquiry
from server.answers.schema import DocumentPart
from server.errors import RequestInvalid

if TYPE_CHECKING:
    from retrieval.library import Library

# An error names so many of the headings there are.
SHOWN_HEADINGS = 5
_NUMBERING = frozenset("section sections article chapter clause part appendix annex paragraph".split())


def asked_parts(within: Sequence[DocumentPart] | None, param: str) -> tuple[AskedPart, ...]:
    """The parts of a request, whose field ``param`` holds them."""
    return tuple(
        AskedPart(
            f"{param}.{place}", part.document, part.start, part.end, part.first_page, part.last_page, part.heading
        )
        for place, part in enumerate(within or ())
    )


def whole_start(start: str | None, within: Sequence[DocumentPart] | None, param: str) -> None:
    """Refuse to start with the memory of all of a document of which only a part is asked.

    Raises ``RequestInvalid``."""
    if within and start == AnswerStart.DOCUMENT:
        raise RequestInvalid(
            f"{param} is 'document', the memory of all of it, but within asks for a part; leave out one of them", param
        )


def scope_of(library: "Library", inquiry: Inquiry, documents: Sequence[Document]) -> Scope:
    """What of the ``documents`` that are asked is searched. Raises ``RequestInvalid`` for a part that there is not."""
    by_id = {document.id: document for document in documents}
    parts: dict[str, tuple[Span, ...]] = {}
    for asked in inquiry.within:
        document = _document(asked, by_id)
        if document.id in parts:
            raise RequestInvalid(
                f"{asked.param} is another part of {document.name!r}; send one part for each document, and ask of the "
                "other one by itself",
                asked.param,
            )
        parts[document.id] = merged(_spans(library, asked, document))
    return Scope(parts, frozenset(inquiry.fact_kinds) or None)


def told_parts(parts: Sequence[AskedPart], documents: Sequence[Document]) -> Mapping[str, str]:
    """By document what of it was asked, in words."""
    return {part.document or documents[0].id: _told(part) for part in parts}


def _document(asked: AskedPart, documents: Mapping[str, Document]) -> Document:
    if asked.document is None:
        if len(documents) > 1:
            raise RequestInvalid(
                f"{asked.param}.document is missing, but {len(documents)} documents are asked; name the one that this "
                "is a part of",
                f"{asked.param}.document",
            )
        return next(iter(documents.values()))
    if asked.document not in documents:
        raise RequestInvalid(
            f"{asked.param}.document is {asked.document!r}, which is not among the documents asked; add it to them, or "
            "leave the part out",
            f"{asked.param}.document",
        )
    return documents[asked.document]


def _spans(library: "Library", asked: AskedPart, document: Document) -> Sequence[Span]:
    if document.num_characters is None:
        raise DocumentNotReady(document)
    if asked.start is not None and asked.end is not None:
        if asked.end > document.num_characters:
            raise RequestInvalid(
                f"{asked.param}.end is {asked.end}, but {document.name!r} has {document.num_characters} characters; "
                "end there or before",
                f"{asked.param}.end",
            )
        return [Span(asked.start, asked.end)]
    if asked.first_page is not None and asked.last_page is not None:
        return [_pages(library, asked, document, asked.first_page, asked.last_page)]
    assert asked.heading is not None, "a part is named in one of three ways"
    return _sections(library, asked, document, asked.heading)


def _pages(library: "Library", asked: AskedPart, document: Document, first: int, last: int) -> Span:
    pages = library.page_spans(document.tenant, document.id)
    if not pages:
        raise RequestInvalid(
            f"{asked.param}.first_page is {first}, but {document.name!r} has no pages; name the part by start and end, "
            "or by heading",
            f"{asked.param}.first_page",
        )
    if last > len(pages):
        raise RequestInvalid(
            f"{asked.param}.last_page is {last}, but {document.name!r} has {len(pages)} pages; end there or before",
            f"{asked.param}.last_page",
        )
    span = Span(pages[first - 1].start, pages[last - 1].end)
    if not len(span):
        raise RequestInvalid(
            f"{asked.param}.first_page is {first}, but from there to page {last} {document.name!r} has no text; name "
            "pages with text on them",
            f"{asked.param}.first_page",
        )
    return span


def _sections(library: "Library", asked: AskedPart, document: Document, heading: str) -> Sequence[Span]:
    sections = library.sections(document.tenant, document.id)
    wanted = tuple(words(heading))
    found = [span for titles, span in sections if any(_is_called(title, wanted) for title in titles)]
    if found:
        return found
    there = list(dict.fromkeys(title for titles, _ in sections for title in titles))
    shown = ", ".join(repr(title) for title in there[:SHOWN_HEADINGS])
    more = f" and {len(there) - SHOWN_HEADINGS} more" if len(there) > SHOWN_HEADINGS else ""
    remedy = f"use one of those there are: {shown}{more}" if there else "it has none; name the part by start and end"
    raise RequestInvalid(
        f"{asked.param}.heading is {heading!r}, which is no heading of {document.name!r}; {remedy}",
        f"{asked.param}.heading",
    )


def _is_called(title: str, wanted: tuple[str, ...]) -> bool:
    """Whether a heading is the one asked for, as it is written or without its number."""
    own = tuple(words(title))
    first = 0
    while first < len(own) - 1 and (own[first] in _NUMBERING or any(map(str.isdigit, own[first]))):
        first += 1
    return wanted in (own, own[first:])


def _told(part: AskedPart) -> str:
    if part.heading is not None:
        return f"the section {part.heading!r}"
    if part.first_page is None:
        return f"characters {part.start} to {part.end}"
    is_one = part.first_page == part.last_page
    return f"page {part.first_page}" if is_one else f"pages {part.first_page} to {part.last_page}"
