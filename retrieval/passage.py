"""The nouns of the archive: spans, chunks, facts, documents, passages.

Every position is a half-open range of Unicode code points of the stored text, so that
``text[start:end]`` is the quote (law 6). Pages count from 1.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """``text[start:end]``."""

    start: int
    end: int

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.end, f"span {self.start}..{self.end}"

    def __len__(self) -> int:
        return self.end - self.start


def page_at(pages: Sequence[Span], position: int) -> int | None:
    """The page, counted from 1, on which a code point stands, or after which if between two; None without pages.

    ``pages`` ascend.
    """
    return max(1, bisect_right(pages, position, key=lambda page: page.start)) if pages else None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document between sentence borders. ``heading`` is the path of titles above it."""

    span: Span
    text: str
    page: int | None
    heading: str


class FactKind(StrEnum):
    """What a span is: what a recogniser takes it for, or that somebody pinned it, or that it surprised the model."""

    IDENTIFIER = "identifier"
    AMOUNT = "amount"
    DATE = "date"
    DURATION = "duration"
    ORGANISATION = "organisation"
    PERSON = "person"
    TERM = "term"
    OBLIGATION = "obligation"
    KEY_VALUE = "key_value"
    PIN = "pin"
    SURPRISING = "surprising"


# A name stands on many pages: a question with one in it asks for its other words there, so it leads nowhere alone.
KINDS_THAT_DO_NOT_LEAD = (FactKind.ORGANISATION, FactKind.PERSON, FactKind.SURPRISING)


@dataclass(frozen=True, slots=True)
class Fact:
    """A verbatim span that must be recalled exactly.

    ``keys`` are its normalised forms. ``evidence`` is the sentence or row it stands in,
    which is what an answer may quote on a key hit.
    """

    kind: FactKind
    span: Span
    text: str
    keys: tuple[str, ...]
    evidence: Span
    source: str
    score: float


class DocumentStatus(StrEnum):
    """Where a document is on its way."""

    QUEUED = "queued"
    PARSING = "parsing"
    INDEXING = "indexing"
    READING = "reading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the current stage is. ``seconds_left`` is None while there is nothing to judge by, ``note`` says what was
    left out on the way and why."""

    stage: str
    done: int
    total: int
    seconds_left: float | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentError:
    """Why a document failed."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One stored document as its tenant sees it."""

    id: str
    tenant: str
    name: str
    media_type: str
    status: DocumentStatus
    answerable: bool
    progress: Progress
    num_bytes: int
    num_characters: int | None
    num_tokens: int | None
    created_at: int
    error: DocumentError | None


@dataclass(frozen=True, slots=True)
class Nearest:
    """The stretch of a passage nearest in meaning to the question, mostly a sentence, and its inner product."""

    span: Span
    score: float


class Standing(StrEnum):
    """How a value stands under its key: a user pinned it there; the text has it so, as a ``key: value`` line or the
    cell of a table; or it is another fact of the sentence that the key stands in."""

    PINNED = "pinned"
    NAMED = "named"
    BESIDE = "beside"


@dataclass(frozen=True, slots=True)
class Value:
    """What the text says under a key of the question: ``span``, which lies in ``evidence``, a sentence or row.

    ``key`` is the piece of the question, as written, that is its ``rank``-th likeliest key. ``is_raw``: text and
    question write the key alike. ``is_asked``: all that the question says beside the key stands in the evidence.
    ``is_whole`` is False for the rest of a row with several cells, of which an answer is a part.
    """

    span: Span
    evidence: Span
    key: str
    rank: int = 0
    is_raw: bool = True
    standing: Standing = Standing.NAMED
    is_asked: bool = True
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Cutting:
    """How the passages of a document are cut: pieces of at most ``max_tokens`` tokens of the serving model, which share
    ``overlap_tokens``, at most half of them, with the one before."""

    max_tokens: int
    overlap_tokens: int

    def __post_init__(self) -> None:
        assert 0 <= 2 * self.overlap_tokens <= self.max_tokens, f"{self.overlap_tokens} of {self.max_tokens} tokens"


@dataclass(frozen=True, slots=True)
class Copy:
    """Another place that says what a passage says."""

    document_id: str
    document_name: str
    span: Span
    page: int | None


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a stored document that may hold the answer.

    ``found_by`` says which searches returned it ("key", "hop", "lexical", "dense"). On a key hit
    ``evidence`` is the sentence or row that holds the key, else None. ``nearest`` is None where the search by meaning
    did not return the passage. ``values`` are what stands under the keys of the question, in reading order, at every
    place where a key was met: equal keys may have several. Each lies in the passage. ``also`` are places of nearly
    the same text, which are no passages of their own. The question names the documents of passages that are
    ``is_named`` and not those of others. ``cutting`` is how the document's text was to be cut, None for a passage that
    was put together for the question.
    """

    document_id: str
    document_name: str
    span: Span
    text: str
    page: int | None
    score: float
    found_by: tuple[str, ...]
    evidence: Span | None = None
    nearest: Nearest | None = None
    values: tuple[Value, ...] = ()
    also: tuple[Copy, ...] = ()
    is_named: bool = False
    cutting: Cutting | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Passages best first, and what was searched.

    ``confidence`` is the calibrated probability that the answer stands in the passages. ``found`` is False when a
    key led nowhere and the confidence is too low; the nearest passages may be given all the same.
    """

    passages: tuple[Passage, ...]
    found: bool
    reason: str
    num_facts: int
    num_chunks_searched: int
    seconds: dict[str, float]
    confidence: float = 1.0
