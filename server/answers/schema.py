"""Questions about documents over the wire, and what they may be limited to."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from retrieval.passage import KINDS_THAT_DO_NOT_LEAD, FactKind
from server.schemas import (
    MAX_DOCUMENTS,
    DocumentId,
    DocumentRecall,
    Facts,
    Place,
    QuestionText,
    Start,
    Text,
    WireModel,
)

MAX_HEADING_CHARACTERS = 200
MAX_POSITION = 1 << 40
LEADING_KINDS = tuple(kind.value for kind in FactKind if kind not in KINDS_THAT_DO_NOT_LEAD)


class DocumentPart(WireModel):
    """A part of a document that is asked, all of it unless limited so: the characters ``start`` to ``end``, pages, or
    what stands under a heading. ``document`` may be left out where only one is asked."""

    document: DocumentId | None = None
    start: Annotated[int, Field(ge=0, le=MAX_POSITION)] | None = None
    end: Annotated[int, Field(ge=1, le=MAX_POSITION)] | None = None
    first_page: Annotated[int, Field(ge=1, le=MAX_POSITION)] | None = None
    last_page: Annotated[int, Field(ge=1, le=MAX_POSITION)] | None = None
    heading: Annotated[Text, StringConstraints(pattern=r"[^\W_]", max_length=MAX_HEADING_CHARACTERS)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [(self.start, self.end), (self.first_page, self.last_page), (self.heading,)]
        named = [way for way in ways if any(value is not None for value in way)]
        if len(named) != 1 or None in named[0]:
            raise ValueError("expected one of start and end, first_page and last_page, or heading")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"expected start, which is {self.start}, before end, which is {self.end}")
        if self.first_page is not None and self.last_page is not None and self.first_page > self.last_page:
            raise ValueError(f"expected first_page, which is {self.first_page}, not after last_page, {self.last_page}")
        return self


def _that_leads(kind: object) -> object:
    if kind not in LEADING_KINDS:
        raise ValueError(f"expected a kind of facts that keys lead to: {', '.join(LEADING_KINDS)}")
    return FactKind(str(kind))


Within = Annotated[list[DocumentPart], Field(min_length=1, max_length=MAX_DOCUMENTS)]
LeadingKind = Annotated[FactKind, BeforeValidator(_that_leads), WithJsonSchema({"enum": list(LEADING_KINDS)})]
FactKinds = Annotated[list[LeadingKind], Field(min_length=1, max_length=len(FactKind))]


class DocumentQuestion(WireModel):
    """A question about the document that the path names."""

    question: QuestionText
    stream: bool = False
    recall: DocumentRecall = "grounded"
    start: Start | None = None
    question_place: Place | None = None
    facts: Facts | None = None
    within: Within | None = None
    fact_kinds: FactKinds | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class Question(DocumentQuestion):
    """A question about one or more documents."""

    documents: Annotated[list[DocumentId], Field(min_length=1, max_length=MAX_DOCUMENTS)]
