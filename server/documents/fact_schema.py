"""Facts over the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from retrieval.keys import MAX_KEY_CHARACTERS
from retrieval.passage import FactKind
from server.schemas import Text, WireModel

Key = Annotated[Text, StringConstraints(pattern=r"[^\W_]", max_length=MAX_KEY_CHARACTERS)]


class FactQuery(BaseModel):
    """Which facts of a document. ``key`` is asked in any form that folds to the fact's."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    kind: FactKind | None = None
    source: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    key: Key | None = None


class Pin(WireModel):
    """A stretch of a document's text that must be recalled exactly, and what it is asked by."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]
    key: Key | None = None


class EvidenceView(BaseModel):
    """The sentence, row or pair a fact stands in, in code points."""

    start: int
    end: int


class FactView(BaseModel):
    """A fact: ``text`` is ``document[start:end]``. ``keys`` are the forms it is found under, ``key`` the one that its
    user gave. ``source`` is ``user`` for a pin, ``reading`` for what surprised the model, whose ``score`` are the bits
    that it told beyond the usual; else the recogniser that found it, and how sure that is, from 0 to 1."""

    id: str
    object: Literal["fact"] = "fact"
    kind: str
    text: str
    start: int
    end: int
    keys: list[str]
    key: str | None
    source: str
    score: float
    evidence: EvidenceView
    page: int | None


class FactList(BaseModel):
    """One page of facts in reading order; the next one follows ``after=last_id`` while ``has_more``. ``dropped`` counts
    by kind what was beyond the document's budget."""

    object: Literal["list"] = "list"
    data: list[FactView]
    first_id: str | None
    last_id: str | None
    has_more: bool
    dropped: dict[str, int]


class FactDeleted(BaseModel):
    """The pin is forgotten."""

    id: str
    object: Literal["fact.deleted"] = "fact.deleted"
    deleted: Literal[True] = True
