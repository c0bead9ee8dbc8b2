"""What the store knows of a document besides its text: how far it is, and what its contents hang on."""

import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol, Self

from retrieval.passage import Document, DocumentError, DocumentStatus, Progress


class Stage(StrEnum):
    """What is to be done next to a document. The order is the order of work."""

    QUEUED = "queued"
    PARSING = "parsing"
    INDEXING = "indexing"
    DENSE = "dense"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class Reading(StrEnum):
    """Where the reading of a document is that somebody wants read to its end."""

    WANTED = "wanted"
    DONE = "done"
    LEFT_OUT = "left_out"


UNFINISHED = (Stage.QUEUED, Stage.PARSING, Stage.INDEXING, Stage.DENSE)

_STATUS = {
    Stage.QUEUED: DocumentStatus.QUEUED,
    Stage.PARSING: DocumentStatus.PARSING,
    Stage.INDEXING: DocumentStatus.INDEXING,
    Stage.DENSE: DocumentStatus.INDEXING,
    Stage.READY: DocumentStatus.READY,
    Stage.FAILED: DocumentStatus.FAILED,
}


class Listed(Protocol):
    """What a search needs to know of a document; see ``Record``."""

    @property
    def number(self) -> int:
        """What its contents hang on."""

    @property
    def id(self) -> str:
        """What the world calls it."""

    @property
    def name(self) -> str:
        """What its tenant calls it."""

    @property
    def num_characters(self) -> int | None:
        """The length of its text."""

    @property
    def num_rows(self) -> int:
        """How many rows get a vector."""

    @property
    def chunks_revision(self) -> int | None:
        """Of the store when its chunks were completed."""

    @property
    def vectors_revision(self) -> int | None:
        """Of the store when its vectors were completed."""


class Entry(NamedTuple):
    """A document among many that are asked together: a record takes ten times as long to read."""

    number: int
    id: str
    name: str
    is_answerable: int
    num_characters: int | None
    num_rows: int
    chunks_revision: int | None
    vectors_revision: int | None


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the store: the document as its tenant sees it, and what only this package needs.

    ``number`` is the short key its contents hang on. The revisions are those of the store when its chunks
    and its vectors were completed; None until then. ``recognisers`` is the revision of those that found its facts.
    """

    document: Document
    number: int
    stage: Stage
    sha256: str
    num_rows: int
    fingerprint: str | None
    chunks_revision: int | None
    vectors_revision: int | None
    reading: Reading | None
    recognisers: int

    @property
    def id(self) -> str:
        """The id of the document."""
        return self.document.id

    @property
    def name(self) -> str:
        """The name of the document."""
        return self.document.name

    @property
    def num_characters(self) -> int | None:
        """The length of the document's text."""
        return self.document.num_characters

    @classmethod
    def of(cls, row: sqlite3.Row, has_reader: bool) -> Self:
        """The record in a row of documents joined with its blob; ``has_reader`` as in ``Store``."""
        stage = Stage(row["stage"])
        status = status_of(stage, row["reading"], has_reader)
        progress = Progress(stage.value, row["done"], row["total"], None, row["reading_note"])
        if status is DocumentStatus.READING:
            progress = Progress(status.value, 0, row["num_tokens"] or 0, None)
        error = DocumentError(row["error_code"], row["error_message"]) if row["error_code"] is not None else None
        document = Document(
            id=row["id"],
            tenant=row["tenant"],
            name=row["name"],
            media_type=row["media_type"],
            status=status,
            answerable=bool(row["answerable"]),
            progress=progress,
            num_bytes=row["num_bytes"],
            num_characters=row["num_characters"],
            num_tokens=row["num_tokens"],
            created_at=row["created_at"],
            error=error,
        )
        return cls(
            document=document,
            number=row["number"],
            stage=stage,
            sha256=row["sha256"],
            num_rows=row["num_rows"] or 0,
            fingerprint=row["fingerprint"],
            chunks_revision=row["chunks_revision"],
            vectors_revision=row["vectors_revision"],
            reading=Reading(row["reading"]) if row["reading"] is not None else None,
            recognisers=row["recognisers"],
        )


def status_of(stage: Stage, reading: str | None, has_reader: bool) -> DocumentStatus:
    """What its tenant is told of a document."""
    if stage is Stage.READY and reading == Reading.WANTED and has_reader:
        return DocumentStatus.READING
    return _STATUS.get(stage, DocumentStatus.FAILED)
