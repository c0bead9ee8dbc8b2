"""Answers under way: what the model writes with its citations, and what needs no model: look-ups, and nothing found."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

import anyio.to_thread

from model.engine.request import FinishReason, TokenEvent, TokenLogprob
from server.answers.citations import Citation, Quoting, Source
from server.answers.groundwork import Groundwork
from server.answers.inquiry import AnswerDone, AnswerEvent, AnswerProgress, AnswerText, ChoiceDone, Inquiry
from server.answers.prompt import NOT_FOUND
from server.answers.recording import Recording
from server.engine_thread.bridge import EventStream
from server.errors import AnswerAborted
from server.long_prompts.progress import FIRST_SECONDS, SECONDS, ReadingProgress
from server.metrics import Metrics


class Texts(Protocol):
    """What quotations are read from: a library, or the prompt itself."""

    def text(self, tenant: str, document_id: str, /, start: int = 0, end: int | None = None) -> str:
        """Characters of a document."""

    def page(self, tenant: str, document_id: str, position: int, /) -> int | None:
        """The page a character stands on, if there are pages."""


class Answer(Protocol):
    """An answer that is under way. ``events`` is read once; the last event is ``AnswerDone``."""

    sources: tuple[Source, ...]

    def events(self) -> AsyncIterator[AnswerEvent]:
        """The pieces, each citation as soon as it is certain, then the whole. Raises when the generation fails."""


class NothingFound:
    """The answer when nothing was found: what was searched, and no model is asked."""

    def __init__(self, groundwork: Groundwork, recording: Recording) -> None:
        self.sources: tuple[Source, ...] = ()
        self._groundwork = groundwork
        self._recording = recording

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """The one sentence, and the end."""
        text = f"Nothing about this was found. {self._groundwork.searched}"
        choice = ChoiceDone(0, text, FinishReason.STOP)
        yield AnswerText(text)
        await self._recording.end(text)
        yield choice
        yield AnswerDone((choice,), False, (), None, self._groundwork.bill, None)


class LookedUp:
    """The answer where it is certain what stands under the key asked for: the values, each on a line, no model asked.

    They are never cut: ``max_tokens`` is about what a model writes.
    """

    def __init__(self, inquiry: Inquiry, groundwork: Groundwork, texts: Texts, recording: Recording) -> None:
        self.sources = groundwork.sources
        self._inquiry = inquiry
        self._groundwork = groundwork
        self._texts = texts
        self._recording = recording

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """Each value and its citation, and the end."""
        text = ""
        citations = await anyio.to_thread.run_sync(self._cited)
        for citation in citations:
            piece = f"\n{citation.quote}" if text else citation.quote
            text += piece
            yield AnswerText(piece)
            yield citation
        choice = ChoiceDone(0, text, FinishReason.STOP)
        await self._recording.end(text)
        yield choice
        seconds = time.monotonic() - self._inquiry.started
        yield AnswerDone((choice,), True, tuple(citations), None, self._groundwork.bill, seconds)

    def _cited(self) -> list[Citation]:
        citations: list[Citation] = []
        at = 0
        for piece in self._groundwork.evidence:
            passage = piece.source.passage
            start, end = piece.start, piece.start + len(piece.text)
            quote = self._texts.text(self._inquiry.tenant, passage.document_id, start, end)
            number, page = piece.source.number, passage.page
            citations.append(Citation(number, passage.document_id, start, end, quote, page, at, at + len(quote)))
            at += len(quote) + 1
        return on_their_pages(self._texts, self._inquiry.tenant, citations)


class Generated:
    """An answer that the model writes, freely or from spans of the evidence. With ``progress`` it is also told how far
    the prompt is read; ``beside`` tells it of a prompt that is read beside the answer."""

    def __init__(
        self,
        inquiry: Inquiry,
        groundwork: Groundwork,
        events: EventStream,
        texts: Texts,
        metrics: Metrics,
        recording: Recording,
        progress: ReadingProgress | None = None,
        beside: Callable[[], Awaitable[AnswerProgress]] | None = None,
    ) -> None:
        self._beside = beside
        self._recording = recording
        self._progress = progress
        self.sources = groundwork.sources
        self._inquiry = inquiry
        self._groundwork = groundwork
        self._events = events
        self._texts = texts
        self._metrics = metrics
        self._first_text: float | None = None
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        # What is quoted from evidence is known by its place, at the end; anything else by comparing words.
        self._quoting = Quoting(() if groundwork.evidence else groundwork.readings)

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """As ``Answer.events``. Raises ``AnswerAborted`` and what ended the engine."""
        pieces: list[list[str]] = [[] for _ in range(self._inquiry.sampling.num_choices)]
        ended: dict[int, ChoiceDone] = {}
        citations: list[Citation] = []
        last: TokenEvent | None = None
        async for event in self._arrivals():
            if isinstance(event, AnswerProgress):
                yield event
                continue
            self._note(event)
            self._recording.note(event.token_ids)
            if event.text or event.logprobs:
                pieces[event.choice].append(event.text)
                yield AnswerText(event.text, event.choice, event.logprobs)
            for citation in await self._cited(event.text):
                citations.append(citation)
                yield citation
            if event.finish_reason is not None:
                if event.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
                    raise AnswerAborted
                ended[event.choice] = ChoiceDone(event.choice, "".join(pieces[event.choice]), event.finish_reason)
                if not self.sources:  # with sources there is more to say
                    await self._recording.end(ended[event.choice].text)
                    yield ended[event.choice]
            last = event
        if last is None or last.usage is None or len(ended) < len(pieces):
            raise AnswerAborted
        found = True
        if self.sources:
            text, quoted = await self._rest(ended[0].text, last)
            for citation in quoted:
                citations.append(citation)
                yield citation
            found = bool(citations) if self._groundwork.evidence else text.strip() not in ("", NOT_FOUND)
            if not found:
                addition = f"{' ' if text else ''}{self._groundwork.searched}"
                yield AnswerText(addition)
                text += addition
            ended[0] = replace(ended[0], text=text)
            await self._recording.end(text)
            yield ended[0]
        choices = tuple(ended[index] for index in range(len(pieces)))
        seconds, bill = time.monotonic() - self._inquiry.started, self._groundwork.bill
        archive_bytes = bill.text_bytes + bill.index_bytes
        archive_bytes += last.usage.kv_archive_bytes + last.usage.kv_summary_bytes
        self._metrics.finished(choices[0].finish_reason.value, last.usage, seconds, archive_bytes)
        yield AnswerDone(
            choices,
            found,
            tuple(citations),
            last.usage,
            self._groundwork.bill,
            self._first_text,
            self._prompt_logprobs,
            None if self._beside is None else await self._beside(),
        )

    async def _arrivals(self) -> AsyncIterator[TokenEvent | AnswerProgress]:
        """The engine's events, and before the first of them how far the prompt is read."""
        if (progress := self._progress) is not None:
            seconds, first = FIRST_SECONDS, None
            while first is None:
                first = await self._events.next_within(seconds)
                told = await (progress.look() if first is None else progress.end(first.usage))
                if told is not None:
                    yield told
                seconds = SECONDS
            yield first
        async for event in self._events:
            yield event

    def _note(self, event: TokenEvent) -> None:
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = event.prompt_logprobs
        if event.text and self._first_text is None:
            self._first_text = time.monotonic() - self._inquiry.started
            self._metrics.first_token(self._first_text)

    async def _cited(self, text: str) -> list[Citation]:
        """The citations that a piece of the answer made certain."""
        return await self._on_their_pages(self._quoting.add(text)) if self.sources and text else []

    async def _rest(self, text: str, last: TokenEvent) -> tuple[str, list[Citation]]:
        """The answer's text, and the citations that only its end made certain."""
        if self._groundwork.evidence:
            # What is returned is the stored text; what was streamed is the same by the decoder's guarantee.
            return await anyio.to_thread.run_sync(self._quoted, last)
        return text, await self._on_their_pages(self._quoting.add("", is_last=True))

    def _quoted(self, last: TokenEvent) -> tuple[str, list[Citation]]:
        """The answer made of the spans of the stored text, and a citation for each."""
        text = ""
        citations: list[Citation] = []
        for span in last.spans:
            piece = self._groundwork.evidence[span.evidence_index]
            passage = piece.source.passage
            start, end = piece.start + span.start, piece.start + span.end
            quote = self._texts.text(self._inquiry.tenant, passage.document_id, start, end)
            text += f"{' ' if text else ''}{quote}"
            at = len(text) - len(quote)
            citations.append(
                Citation(piece.source.number, passage.document_id, start, end, quote, passage.page, at, len(text))
            )
        return text, self._paged(citations)

    async def _on_their_pages(self, citations: list[Citation]) -> list[Citation]:
        return await anyio.to_thread.run_sync(self._paged, citations) if citations else []

    def _paged(self, citations: list[Citation]) -> list[Citation]:
        """A passage may run over pages; its own page is that of its start."""
        return on_their_pages(self._texts, self._inquiry.tenant, citations)


def on_their_pages(texts: Texts, tenant: str, citations: Sequence[Citation]) -> list[Citation]:
    """The citations with the pages on which they begin, where there are pages."""
    return [
        citation
        if citation.page is None
        else replace(citation, page=texts.page(tenant, citation.document, citation.start))
        for citation in citations
    ]
