"""A library in memory with the API of ``retrieval.library.Library``: no disk, no indexes, words instead of meaning.

``process`` makes a document answerable and ready in one go. ``search`` returns the sentences that share
a word with the question, best first; ``plant`` overrides the result.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.library_stats import LibraryStats
from retrieval.passage import (
    Cutting,
    Document,
    DocumentError,
    DocumentStatus,
    Passage,
    Progress,
    SearchResult,
    Span,
)
from retrieval.scope import Scope
from retrieval.surprises import Surprise


def _is_in(span: Span, parts: Sequence[Span] | None) -> bool:
    return parts is None or any(part.start <= span.start and span.end <= part.end for part in parts)


@dataclass
class FakeSurprises:
    """The API of ``retrieval.surprises.Surprises``; ``found`` holds what was told of each document."""

    told: dict[str, int] = field(default_factory=dict)
    found: dict[str, list[Surprise]] = field(default_factory=dict)

    def num_told(self, document_id: str) -> int:
        return self.told.get(document_id, 0)

    def tell(self, document_id: str, first: int, last: int, found: Sequence[Surprise]) -> bool:
        if self.num_told(document_id) != first:
            return False
        self.told[document_id] = last
        self.found.setdefault(document_id, []).extend(found)
        return True


@dataclass
class FakeLibrary:
    """Set ``hold`` to keep ``process`` from finishing, ``fail`` to make it fail documents."""

    documents: dict[str, Document] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    planted: tuple[Passage, ...] | None = None
    fail: DocumentError | None = None
    processed: list[str] = field(default_factory=list)
    to_be_read: list[str] = field(default_factory=list)
    progress_told: list[tuple[int, int, float | None]] = field(default_factory=list)
    has_reader: bool = False
    closed: bool = False
    half_deleted: set[str] = field(default_factory=set)
    surprises: FakeSurprises = field(default_factory=FakeSurprises)
    cut_at: dict[tuple[str, Cutting], Sequence[Span]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._may_process = threading.Event()
        self._may_process.set()
        self._pending: list[str] = []
        self._by_content: dict[tuple[str, str], str] = {}

    def hold(self) -> None:
        """Let documents stay queued."""
        self._may_process.clear()

    def release(self) -> None:
        """End a hold."""
        self._may_process.set()

    def put(self, text: str, name: str = "note.txt", tenant: str = "default", is_to_be_read: bool = False) -> str:
        """A document that is ready, but perhaps for its reading; returns its id."""
        document = self._new(tenant, name, "text/plain", text)
        if is_to_be_read:
            self.to_be_read.append(document.id)
        self._finish(document.id)
        return document.id

    def add(
        self,
        tenant: str,
        name: str,
        media_type: str,
        blob_path: Path,
        is_to_be_read: bool = False,
        document_id: str | None = None,
    ) -> tuple[Document, bool]:
        data = blob_path.read_bytes()
        known = self._by_content.get((tenant, hashlib.sha256(data).hexdigest()))
        if known is not None:
            return self.documents[known], False
        document = self._new(tenant, name, media_type, data.decode(), document_id)
        self._pending.append(document.id)
        if is_to_be_read:
            self.to_be_read.append(document.id)
        return document, True

    def process(self, document_id: str, stop: Callable[[], bool] = lambda: False) -> None:
        while not self._may_process.wait(0.01):
            if stop():
                return
        self.processed.append(document_id)
        if document_id not in self.documents:
            return
        if self.fail is not None:
            self._set(document_id, status=DocumentStatus.FAILED, error=self.fail)
            self._pending.remove(document_id)
            return
        self._finish(document_id)

    def pending(self, most: int = -1) -> list[str]:
        waiting_first = sorted(self._pending, key=lambda each: self.documents[each].answerable)
        return waiting_first if most < 0 else waiting_first[:most]

    def is_answerable(self, document_id: str) -> bool:
        if document_id not in self.documents:
            raise UnknownDocument(document_id)
        return self.documents[document_id].answerable

    def get(self, tenant: str, document_id: str) -> Document:
        document = self.documents.get(document_id)
        if document is None or document.tenant != tenant:
            raise UnknownDocument(document_id)
        return document

    def get_all(self, tenant: str, document_ids: Sequence[str]) -> Sequence[Document]:
        return [self.get(tenant, each) for each in document_ids]

    def list(self, tenant: str, after: str | None = None, limit: int = 20) -> list[Document]:
        mine = [document for document in self.documents.values() if document.tenant == tenant]
        start = 0 if after is None else mine.index(self.get(tenant, after)) + 1
        return mine[start : start + limit]

    def text(self, tenant: str, document_id: str, start: int = 0, end: int | None = None) -> str:
        self.get(tenant, document_id)
        return self.texts[document_id][start:end]

    def page(self, tenant: str, document_id: str, position: int) -> int | None:
        """A form feed ends a page."""
        return 1 + self.text(tenant, document_id, 0, position).count("\f")

    def delete(self, tenant: str, document_id: str) -> None:
        if document_id in self.half_deleted:
            self.half_deleted.discard(document_id)
            return
        self.get(tenant, document_id)
        del self.documents[document_id], self.texts[document_id]
        self._pending = [each for each in self._pending if each != document_id]
        self._by_content = {key: each for key, each in self._by_content.items() if each != document_id}

    def is_half_deleted(self, tenant: str, document_id: str) -> bool:
        return document_id in self.half_deleted

    def plant(self, *passages: Passage) -> None:
        """Let every search find these."""
        self.planted = passages

    def search(
        self,
        tenant: str,
        query: str,
        document_ids: Sequence[str],
        max_passages: int = 5,
        scope: Scope | None = None,
        cuttings: Mapping[str, Sequence[Cutting | None]] | None = None,
    ) -> SearchResult:
        documents = [self.get(tenant, document_id) for document_id in document_ids]
        for document in documents:
            if not document.answerable:
                raise DocumentNotReady(document)
        parts = (scope or Scope()).parts
        sentences = [
            passage
            for document in documents
            for cutting in (cuttings or {}).get(document.id, (None,))
            for passage in (self._sentences(document) if cutting is None else self._pieces(document, cutting))
            if _is_in(passage.span, parts.get(document.id))
        ]
        if self.planted is not None:
            passages = self.planted
        else:
            words = set(re.findall(r"\w{4,}", query.lower()))
            scored = [(len(words & set(re.findall(r"\w+", p.text.lower()))), p) for p in sentences]
            best = sorted((item for item in scored if item[0]), key=lambda item: -item[0])
            passages = tuple(replace(passage, score=float(score)) for score, passage in best)
        return SearchResult(
            passages=passages[:max_passages],
            found=bool(passages),
            reason="searched by words",
            num_facts=sum(1 for passage in passages if passage.evidence),
            num_chunks_searched=len(sentences),
            seconds={"lexical": 0.001},
        )

    def is_cut(self, tenant: str, document_id: str, cutting: Cutting) -> bool:
        return (self.get(tenant, document_id).id, cutting) in self.cut_at

    def cut(self, tenant: str, document_id: str, cutting: Cutting, pieces: Sequence[Span]) -> None:
        self.cut_at[self.get(tenant, document_id).id, cutting] = pieces

    def locate(
        self, tenant: str, document_ids: Sequence[str], text: str, limit: int = 100, scope: Scope | None = None
    ) -> Sequence[tuple[str, Span]]:
        places = []
        for document_id in document_ids:
            whole = self.text(tenant, document_id)
            places += [(document_id, Span(*match.span())) for match in re.finditer(re.escape(text), whole)]
        parts = (scope or Scope()).parts
        return [place for place in places if _is_in(place[1], parts.get(place[0]))][:limit]

    def page_spans(self, tenant: str, document_id: str) -> Sequence[Span]:
        whole = self.text(tenant, document_id)
        if "\f" not in whole:
            return ()
        return [Span(*match.span()) for match in re.finditer(r"[^\f]*\f|[^\f]+$", whole)]

    def sections(self, tenant: str, document_id: str) -> Sequence[tuple[tuple[str, ...], Span]]:
        """A line with a # before it is a heading."""
        whole = self.text(tenant, document_id)
        return [((match[1],), Span(*match.span())) for match in re.finditer(r"# (.*)\n[^#]*", whole)]

    def sentence(self, tenant: str, document_id: str, span: Span) -> Span:
        whole = self.text(tenant, document_id)
        start = whole.rfind(". ", 0, span.start) + 2 if ". " in whole[: span.start] else 0
        end = whole.find(". ", span.end)
        return Span(start, len(whole) if end < 0 else end + 1)

    def stats(self) -> LibraryStats:
        counts = dict.fromkeys((status.value for status in DocumentStatus), 0)
        for document in self.documents.values():
            counts[document.status.value] += 1
        return LibraryStats(counts, 7, 3, {"index": 1000, "embeddings": 500}, {"store": 4000, "index": 2000})

    def close(self) -> None:
        self.closed = True

    def _sentences(self, document: Document) -> Sequence[Passage]:
        return [
            Passage(document.id, document.name, Span(match.start(), match.end()), match[0], 1, 1.0, ("lexical",))
            for match in re.finditer(r"\S[^.]*\.?", self.texts[document.id])
        ]

    def _pieces(self, document: Document, cutting: Cutting) -> Sequence[Passage]:
        text = self.texts[document.id]
        return [
            Passage(
                document.id, document.name, span, text[span.start : span.end], 1, 1.0, ("lexical",), cutting=cutting
            )
            for span in self.cut_at[document.id, cutting]
        ]

    def _new(self, tenant: str, name: str, media_type: str, text: str, document_id: str | None = None) -> Document:
        data = text.encode()
        document_id = document_id or f"doc_{len(self.documents)}{hashlib.sha256(data).hexdigest()[:12]}"
        self.texts[document_id] = text
        self.documents[document_id] = Document(
            id=document_id,
            tenant=tenant,
            name=name,
            media_type=media_type,
            status=DocumentStatus.QUEUED,
            answerable=False,
            progress=Progress("queued", 0, 1, 12.4),
            num_bytes=len(data),
            num_characters=None,
            num_tokens=None,
            created_at=1_700_000_000,
            error=None,
        )
        self._by_content[tenant, hashlib.sha256(data).hexdigest()] = document_id
        return self.documents[document_id]

    def unread(self, most: int = -1) -> Sequence[Document]:
        waiting = [each for each in self.documents.values() if each.id in self.to_be_read and each.answerable]
        return waiting if most < 0 else waiting[:most]

    def tell_reading(self, document_id: str, done: int, total: int, seconds_left: float | None) -> None:
        if document_id not in self.documents:
            raise UnknownDocument(document_id)
        self.progress_told.append((done, total, seconds_left))
        self._set(document_id, progress=Progress("reading", done, total, seconds_left))

    def end_reading(self, document_id: str, note: str | None = None) -> None:
        if document_id not in self.documents:
            raise UnknownDocument(document_id)
        self.to_be_read.remove(document_id)
        self._set(document_id, status=DocumentStatus.READY, progress=Progress("ready", 1, 1, None, note))

    def _finish(self, document_id: str) -> None:
        is_reading = self.has_reader and document_id in self.to_be_read
        self._set(
            document_id,
            status=DocumentStatus.READING if is_reading else DocumentStatus.READY,
            answerable=True,
            progress=Progress("reading", 0, 0, None) if is_reading else Progress("ready", 1, 1, 0.0),
            num_characters=len(self.texts[document_id]),
        )
        self._pending = [each for each in self._pending if each != document_id]

    def _set(self, document_id: str, **changes: object) -> None:
        self.documents[document_id] = replace(self.documents[document_id], **changes)
