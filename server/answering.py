"""The use case of a question: search, prompt, generate, cite. Everything refusable happens before the first event."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import anyio.to_thread

from model.config import ReadingUnit
from model.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from model.errors import PromptTooLong
from model.policy import PolicyName
from retrieval.passage import Document, Passage, Span
from server.bridge import EngineThread, EventStream
from server.citations import Citation, Source, cite
from server.errors import AnswerAborted
from server.inquiry import AnswerDone, AnswerEvent, AnswerText, Inquiry, Limits, RetrievalBill, ServedModel
from server.metrics import Metrics
from server.prompt import NOT_FOUND, Budget, ChatTokenizer, Prompt, build_chat, build_prompt

if TYPE_CHECKING:
    from retrieval.library import Library

# The reason for a question that named no documents.
NO_DOCUMENTS = "no_documents"


class Answering:
    """Answers inquiries; one for the whole server."""

    def __init__(
        self,
        library: "Library",
        bridge: EngineThread,
        tokenizer: ChatTokenizer,
        model: ServedModel,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self._library = library
        self._bridge = bridge
        self._tokenizer = tokenizer
        self._model = model
        self._metrics = metrics
        self._limits = limits

    @asynccontextmanager
    async def answer(self, inquiry: Inquiry) -> AsyncIterator["Answer"]:
        """An accepted inquiry's answer, ready to be read; what it holds is given back on leaving.

        Raises on entry whatever refuses it: ``UnknownDocument``, ``DocumentNotReady``,
        ``EvidenceTooLong``, and what the engine refuses.
        """
        if inquiry.documents:
            found = await anyio.to_thread.run_sync(self._search, inquiry)
            if not found.sources:
                yield _Nothing(found, self._metrics)
                return
        else:
            self._metrics.retrieved("skipped", NO_DOCUMENTS, {})
            found = await anyio.to_thread.run_sync(self._converse, inquiry)
        request = GenerationRequest(
            # Two clients may choose the same id for their requests.
            request_id=f"{inquiry.request_id}.{secrets.token_hex(4)}",
            prompt_ids=found.prompt.ids,
            sampling=found.sampling,
            evidence=tuple(piece.text for piece in found.evidence) or None,
            policy=inquiry.policy,
        )
        async with self._bridge.generate(request) as events:
            yield _Generated(inquiry, found, events, self._library, self._metrics)

    def _converse(self, inquiry: Inquiry) -> "_Groundwork":
        """The groundwork of a plain chat."""
        prompt = build_chat(self._tokenizer, inquiry.turns)
        max_tokens = inquiry.sampling.max_tokens
        if max_tokens is None:
            max_tokens = max(1, min(self._limits.chat_max_tokens, self._model.max_context_tokens - len(prompt.ids)))
        if len(prompt.ids) + max_tokens > self._model.max_context_tokens:
            raise PromptTooLong(len(prompt.ids), max_tokens, self._model.max_context_tokens)
        return _Groundwork(
            prompt, _sampling(inquiry, max_tokens, 1.0), (), (), (), RetrievalBill(False, NO_DOCUMENTS), ""
        )

    def _search(self, inquiry: Inquiry) -> "_Groundwork":
        """The groundwork of a document question: passages, numbered sources, prompt, evidence, bill."""
        begun = time.monotonic()
        documents = [self._library.get(inquiry.tenant, document) for document in inquiry.documents]
        question = inquiry.turns[-1].content
        result = self._library.search(inquiry.tenant, question, inquiry.documents, inquiry.max_passages)
        seconds = time.monotonic() - begun
        decision = "retrieved" if result.found and result.passages else "nothing"
        finders = "+".join(result.passages[0].found_by) if result.passages else "none"
        self._metrics.retrieved(decision, finders, {**result.seconds, "total": seconds})
        stats = self._library.stats()
        text_bytes = sum(document.num_bytes for document in documents)
        index_bytes = sum(stats.host_bytes.values())
        searched = _searched(documents, result.num_chunks_searched)
        if decision == "nothing":
            bill = RetrievalBill(True, result.reason, 0, result.num_facts, seconds, text_bytes, index_bytes)
            sampling = _sampling(inquiry, 1, 0.0)
            return _Groundwork(Prompt((), 0), sampling, (), (), (), bill, searched)
        max_tokens = inquiry.sampling.max_tokens or self._limits.answer_max_tokens
        policy = inquiry.policy or self._model.policy
        sources = tuple(Source(number, passage) for number, passage in enumerate(result.passages, start=1))
        readings = (_nearest(sources),) if self._model.reads is ReadingUnit.SENTENCE else sources
        window = policy.window if policy.name is PolicyName.WINDOW else None
        prompt = build_prompt(
            self._tokenizer,
            inquiry.turns[:-1],
            question,
            [source.passage.text for source in readings],
            Budget(max_tokens, self._model.max_context_tokens, window),
        )
        reason = result.reason
        if dropped := len(readings) - prompt.num_passages:
            reason = f"{reason}; {dropped} of {len(readings)} passages left out to fit"
            sources = readings = readings[: prompt.num_passages]
        bill = RetrievalBill(True, reason, len(readings), result.num_facts, seconds, text_bytes, index_bytes)
        evidence = _evidence(readings) if inquiry.recall == "verbatim" else ()
        return _Groundwork(prompt, _sampling(inquiry, max_tokens, 0.0), sources, readings, evidence, bill, searched)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """A piece that a verbatim answer may quote: ``document[start : start + len(text)]`` of a source."""

    source: Source
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class _Groundwork:
    """Everything that stands before the model is asked.

    ``sources`` is what was found; ``readings`` is what of it stands in the prompt, so only that is quoted (law 8).
    """

    prompt: Prompt
    sampling: SamplingParams
    sources: tuple[Source, ...]
    readings: tuple[Source, ...]
    evidence: tuple[_Evidence, ...]
    bill: RetrievalBill
    searched: str


class Answer(Protocol):
    """An answer that is under way. ``events`` is read once; the last event is ``AnswerDone``."""

    sources: tuple[Source, ...]

    def events(self) -> AsyncIterator[AnswerEvent]:
        """The pieces, then the citations, then the whole. Raises when the generation fails."""


class _Nothing:
    """The answer when nothing was found: what was searched, and no model is asked."""

    def __init__(self, groundwork: _Groundwork, metrics: Metrics) -> None:
        self.sources: tuple[Source, ...] = ()
        self._groundwork = groundwork
        self._metrics = metrics

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """The one sentence, and the end."""
        text = f"Nothing about this was found. {self._groundwork.searched}"
        yield AnswerText(text)
        yield AnswerDone(text, False, (), FinishReason.STOP, None, self._groundwork.bill, None)


class _Generated:
    """An answer that the model writes, freely or from spans of the evidence."""

    def __init__(
        self, inquiry: Inquiry, groundwork: _Groundwork, events: EventStream, library: "Library", metrics: Metrics
    ) -> None:
        self.sources = groundwork.sources
        self._inquiry = inquiry
        self._groundwork = groundwork
        self._events = events
        self._library = library
        self._metrics = metrics
        self._first_text: float | None = None
        self._last_text = 0.0

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """As ``Answer.events``. Raises ``AnswerAborted`` and what ended the engine."""
        pieces: list[str] = []
        last: TokenEvent | None = None
        async for event in self._events:
            if event.text:
                self._clock(len(event.token_ids))
                pieces.append(event.text)
                yield AnswerText(event.text)
            last = event
        if last is None or last.usage is None or last.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise AnswerAborted
        text, found, citations = "".join(pieces), True, list[Citation]()
        if self._groundwork.evidence:
            # What is returned is the stored text; what was streamed is the same by the decoder's guarantee.
            text, citations = await anyio.to_thread.run_sync(self._quoted, last)
            found = bool(citations)
        elif self.sources:
            citations = cite(text, self._groundwork.readings)
            citations = await anyio.to_thread.run_sync(self._on_their_pages, citations)
            found = text.strip() not in ("", NOT_FOUND)
        if not found:
            addition = f"{' ' if text else ''}{self._groundwork.searched}"
            yield AnswerText(addition)
            text += addition
        for citation in citations:
            yield citation
        ended = time.monotonic()
        self._metrics.finished(last.finish_reason.value, last.usage, ended - self._inquiry.started)
        yield AnswerDone(
            text, found, tuple(citations), last.finish_reason, last.usage, self._groundwork.bill, self._first_text
        )

    def _clock(self, num_tokens: int) -> None:
        now = time.monotonic()
        if self._first_text is None:
            self._first_text = now - self._inquiry.started
            self._metrics.first_token(self._first_text)
        else:
            self._metrics.next_tokens(now - self._last_text, num_tokens)
        self._last_text = now

    def _quoted(self, last: TokenEvent) -> tuple[str, list[Citation]]:
        """The answer made of the spans of the stored text, and a citation for each."""
        text = ""
        citations: list[Citation] = []
        for span in last.spans:
            piece = self._groundwork.evidence[span.evidence_index]
            passage = piece.source.passage
            start, end = piece.start + span.start, piece.start + span.end
            quote = self._library.text(self._inquiry.tenant, passage.document_id, start, end)
            text += f"{' ' if text else ''}{quote}"
            at = len(text) - len(quote)
            citations.append(
                Citation(piece.source.number, passage.document_id, start, end, quote, passage.page, at, len(text))
            )
        return text, self._on_their_pages(citations)

    def _on_their_pages(self, citations: list[Citation]) -> list[Citation]:
        """A passage may run over pages; its own page is that of its start."""
        tenant = self._inquiry.tenant
        return [
            citation
            if citation.page is None
            else replace(citation, page=self._library.page(tenant, citation.document, citation.start))
            for citation in citations
        ]


def _sampling(inquiry: Inquiry, max_tokens: int, temperature: float) -> SamplingParams:
    """The client's wishes; ``temperature`` for one that has none."""
    asked = inquiry.sampling
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=asked.seed,
        stop=asked.stop,
    )


def _evidence(sources: Sequence[Source]) -> tuple[_Evidence, ...]:
    """What may be quoted: the sentences or rows that hold a key that was asked for, else the whole passages."""
    rows = [_Evidence(source, *row) for source in sources if (row := _row(source.passage)) is not None]
    return tuple(rows) or tuple(_Evidence(source, source.passage.span.start, source.passage.text) for source in sources)


def _nearest(sources: Sequence[Source]) -> Source:
    """What a model reads that reads one sentence: the one under a key, else the nearest, else the first passage."""

    def score(source: Source) -> float:
        nearest = source.passage.nearest
        return -1.0 if nearest is None else nearest.score

    chosen = sources[0] if sources[0].passage.evidence is not None else max(sources, key=score)
    passage = chosen.passage
    span = passage.evidence if passage.evidence is not None else passage.span
    if passage.evidence is None and passage.nearest is not None:
        span = passage.nearest.span
    start, end = max(span.start, passage.span.start), min(span.end, passage.span.end)
    text = passage.text[start - passage.span.start : end - passage.span.start]
    return Source(chosen.number, replace(passage, span=Span(start, end), text=text))


def _row(passage: Passage) -> tuple[int, str] | None:
    """The part of the evidence that stands in the passage (law 8: only what was in the prompt is quoted)."""
    if passage.evidence is None:
        return None
    start = max(passage.evidence.start, passage.span.start)
    end = min(passage.evidence.end, passage.span.end)
    if start >= end:
        return None
    row = Span(start - passage.span.start, end - passage.span.start)
    return start, passage.text[row.start : row.end]


def _searched(documents: Sequence[Document], num_passages: int) -> str:
    """What was searched, as a sentence."""
    names = [f"'{document.name}'" for document in documents[:3]]
    more = [f"{len(documents) - 3} more"] if len(documents) > 3 else []
    listed = [*names, *more]
    words = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    passages = "1 passage" if num_passages == 1 else f"{num_passages} passages"
    return f"Searched {passages} of {words}."
