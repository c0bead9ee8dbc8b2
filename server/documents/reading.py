"""Read once, ask many: documents are read by the model in the background, and what it remembers is kept.

A document becomes the session ``document:{id}``. It is read in pieces, each a background request whose prompt is all of
the document so far, so that it goes on from the checkpoint that the piece before left; every other request goes first.
"""

import asyncio
import logging
import secrets
import sqlite3
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio.to_thread

from model.engine.request import GenerationRequest, Keep, RequestUsage, SamplingParams
from model.errors import EngineDraining, EngineStopped, ModelError, QueueFull
from model.policy import AttentionPolicy, PolicyName
from retrieval.errors import RetrievalError, UnknownDocument
from retrieval.passage import Document
from server.answers.prompt import ChatTokenizer
from server.chat.conversation import PartTokenizer
from server.documents.surprise import Placement, SurpriseFinder
from server.engine_thread.bridge import EngineThread
from server.logs import log_event
from server.sessions.errors import SessionError
from server.sessions.refusals import SessionBusy
from server.sessions.register import DOCUMENT_PREFIX

if TYPE_CHECKING:
    from retrieval.library import Library

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIECE_TOKENS = 8192
# A kill loses no more of the reading than this, and what is read while it is written.
SAVE_SECONDS = 5.0
QUEUE_FULL_SECONDS = 1.0
BUSY_SECONDS = 0.05


class DocumentSessions(Protocol):
    """What a reader needs of ``server.sessions.readings.Readings``; every method raises ``SessionBusy``."""

    async def put_document(
        self,
        tenant: str,
        document_id: str,
        token_ids: Sequence[int],
        *,
        is_complete: bool,
        policy: AttentionPolicy | None = None,
    ) -> None:
        """``token_ids`` are all that was read, now durable. Raises ``UnknownDocument`` for one that was deleted."""

    async def open_document(self, tenant: str, document_id: str) -> "array[int] | None":
        """What was read of a document, with its state at hand as far as it was saved; None where nothing was."""

    async def save(self, tenant: str, name: str) -> None:
        """Write the session's state to the disk."""


class Reader:
    """Reads one document after another, the oldest first. Belongs to one event loop, but for ``wake``."""

    def __init__(
        self,
        library: "Library",
        bridge: EngineThread,
        tokenizer: ChatTokenizer,
        sessions: DocumentSessions,
        policy: AttentionPolicy,
        max_context_tokens: int,
        measure_information: bool = False,
        piece_tokens: int = PIECE_TOKENS,
        save_seconds: float = SAVE_SECONDS,
        finds_surprises: bool = False,
    ) -> None:
        self._library = library
        self._bridge = bridge
        self._tokenizer = tokenizer
        self._sessions = sessions
        self._policy = reading_policy(policy)
        self._max_context_tokens = max_context_tokens
        self._measure_information = measure_information
        self._piece_tokens = piece_tokens
        self._save_seconds = save_seconds
        self._finds_surprises = finds_surprises
        self._given_up: set[str] = set()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, first with what an earlier run left."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(_tell_failure)

    def wake(self) -> None:
        """There may be something to read. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop has ended, and with it all reading.
                self._loop.call_soon_threadsafe(self._news.set)

    async def stop(self) -> None:
        """End after what is being written; what was saved is gone on from by the next start. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                document = await anyio.to_thread.run_sync(self._next)
                if document is None:
                    await self._news.wait()
                    continue
                await self._read(document)
            except UnknownDocument:
                logger.info("a document was deleted while it was read")
            except QueueFull:
                await asyncio.sleep(QUEUE_FULL_SECONDS)
            except (EngineDraining, EngineStopped):
                return
            except (ModelError, SessionError, RetrievalError, sqlite3.Error, OSError) as trouble:
                # Others wait behind it. It can be asked all the same, from its passages.
                logger.exception("document %s could not be read", document.id if document else "?")
                await self._leave_out(document, f"{type(trouble).__name__}: {trouble}")

    def _next(self) -> Document | None:
        waiting = self._library.unread(1 + len(self._given_up))
        return next((each for each in waiting if each.id not in self._given_up), None)

    async def _leave_out(self, document: Document | None, note: str) -> None:
        if document is None:
            return
        self._given_up.add(document.id)
        with suppress(UnknownDocument, sqlite3.Error, OSError):
            await anyio.to_thread.run_sync(self._library.end_reading, document.id, note)

    async def _read(self, document: Document) -> None:
        most = self._max_context_tokens
        ids = None
        if document.num_tokens is None or document.num_tokens <= most:  # The form adds few tokens.
            ids = await anyio.to_thread.run_sync(self._token_ids, document)
        if ids is None or len(ids) > most:
            num_tokens = document.num_tokens if ids is None else len(ids)
            note = f"not read: its {num_tokens} tokens are more than the context of {most} (context_length_exceeded)"
            log_event(logger, "document left out", document=document.id, reason=note)
            await self._leave_out(document, note)
            return
        known = await self._patiently(lambda: self._sessions.open_document(document.tenant, document.id))
        kept = len(known) if known is not None and ids[: len(known)] == known else 0
        finder, first = await anyio.to_thread.run_sync(self._finder, document, ids, kept)
        await self._tell(document, first, len(ids), None)
        started = saved = time.monotonic()
        done, usage = first, None
        try:
            while done < len(ids):
                begin = done
                # Also after a restart a piece ends where it would have.
                done = min(len(ids), (done // self._piece_tokens + 1) * self._piece_tokens)
                usage = await self._read_piece(document, ids[:done], None if finder is None else begin)
                if finder is not None:
                    read = ids[begin:done]
                    await anyio.to_thread.run_sync(self._tell_surprises, document, finder, begin, read, usage)
                seconds_left = (time.monotonic() - started) / (done - first) * (len(ids) - done)
                await self._tell(document, done, len(ids), seconds_left)
                if kept < done < len(ids) and time.monotonic() - saved >= self._save_seconds:
                    await self._keep(document, ids[:done], is_complete=False)
                    saved = time.monotonic()
            await self._keep(document, ids, is_complete=True)
            await anyio.to_thread.run_sync(self._library.end_reading, document.id)
        except UnknownDocument:
            await self._forget(document, ids)
            raise
        log_event(
            logger,
            "document read",
            document=document.id,
            tokens=len(ids),
            of_them_now=len(ids) - first,
            seconds=round(time.monotonic() - started, 3),
            information_bits=usage.information_bits if usage else None,
        )

    def _token_ids(self, document: Document) -> "array[int]":
        return document_ids(self._tokenizer, self._library.text(document.tenant, document.id))

    def _finder(self, document: Document, ids: "array[int]", kept: int) -> tuple[SurpriseFinder | None, int]:
        """What looks for surprises in the document, of which ``kept`` tokens are remembered; and where to read on, not
        behind what was looked at."""
        if not self._finds_surprises:
            return None, kept
        tenant, document_id = document.tenant, document.id
        num_told = self._library.surprises.num_told(document_id)
        if num_told >= len(ids):
            return None, kept
        placement = Placement.of(self._tokenizer, self._library.text(tenant, document_id))
        if placement is None:
            log_event(logger, "surprises left out", document=document_id, reason="the prompt says another text")
            return None, kept
        first = min(kept, num_told)
        finder = SurpriseFinder(
            self._tokenizer, placement, lambda start, end: self._library.text(tenant, document_id, start, end)
        )
        finder.skip(ids[:first])
        return finder, first

    def _tell_surprises(
        self, document: Document, finder: SurpriseFinder, begin: int, ids: "array[int]", usage: RequestUsage | None
    ) -> None:
        """Keep what is surprising in the tokens that were read from ``begin`` on."""
        bits = None if usage is None else usage.surprisals
        assert bits is not None, "surprisals were asked for"
        # The first token of all tells nothing, for nothing stands before it.
        found = finder.find(ids, [0.0] * (len(ids) - len(bits)) + list(bits))
        self._library.surprises.tell(document.id, begin, begin + len(ids), found)

    async def _tell(self, document: Document, done: int, total: int, seconds_left: float | None) -> None:
        await anyio.to_thread.run_sync(self._library.tell_reading, document.id, done, total, seconds_left)

    async def _read_piece(
        self, document: Document, ids: "array[int]", told_from: int | None = None
    ) -> RequestUsage | None:
        """Read up to the end of ``ids``, and keep fewer checkpoints the longer ago they are; with ``told_from`` the
        surprisals from there on are in the usage."""
        # What is deleted must not be read again from its beginning, where its checkpoints were.
        await anyio.to_thread.run_sync(self._library.get, document.tenant, document.id)
        request = GenerationRequest(
            request_id=f"read.{document.id}.{secrets.token_hex(4)}",
            prompt_ids=ids,
            sampling=SamplingParams(max_tokens=0),
            policy=self._policy,
            tenant=document.tenant,
            keep=Keep(),
            measure_information=self._measure_information,
            surprisals_from=None if told_from is None else max(1, told_from),
            is_background=True,
            select_from=len(ids),
        )
        usage = None
        async with self._bridge.generate(request) as events:
            async for event in events:
                usage = event.usage
        tree, wanted = (document.tenant, self._policy), spared(len(ids), self._piece_tokens)
        await self._bridge.call(lambda engine: engine.checkpoints.thin(tree, ids, wanted))
        return usage

    async def _keep(self, document: Document, ids: "array[int]", is_complete: bool) -> None:
        """Make durable what was read: the tokens, and the state after them."""
        tenant, policy = document.tenant, self._policy
        await self._sessions.put_document(tenant, document.id, ids, is_complete=is_complete, policy=policy)
        await self._patiently(lambda: self._sessions.save(tenant, DOCUMENT_PREFIX + document.id))

    async def _patiently(self, use: Callable[[], Awaitable[T]]) -> T:
        """Use the document's session once nobody else does."""
        while True:
            with suppress(SessionBusy):
                return await use()
            await asyncio.sleep(BUSY_SECONDS)

    async def _forget(self, document: Document, ids: "array[int]") -> None:
        """What was read since the document was deleted goes, too."""
        tenant, policy = document.tenant, self._policy
        # The template's own beginning is everyone's.
        empty = document_ids(self._tokenizer, "")
        same = [general == own for general, own in zip(empty, ids, strict=False)]
        num_general = same.index(False) if False in same else len(same)
        await self._bridge.call(lambda engine: engine.forget(tenant, policy, ids, num_general))


def _tell_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.error("no more documents are read until the next start", exc_info=failure)


def reading_policy(own: AttentionPolicy) -> AttentionPolicy:
    """Documents are read under ``window``, so that what is held of them on the device does not grow with them. Under
    ``archive`` they are, too, and what left the window is kept on the host for those who ask."""
    return AttentionPolicy(PolicyName.WINDOW) if own.name is PolicyName.FULL else own


def document_ids(tokenizer: PartTokenizer, text: str) -> "array[int]":
    """The tokens a document is read as: those that a conversation begins with whose first message it is."""
    ids = array("i")
    for part in tokenizer.chat_parts([{"role": "user", "content": text}], add_generation_prompt=False):
        ids.extend([part] if isinstance(part, int) else tokenizer.encode_ids(part))
    return ids


def spared(num_tokens: int, piece_tokens: int) -> Callable[[int], bool]:
    """Which checkpoints a reading keeps after ``num_tokens``: the last, and the further back, the fewer.

    At most two for each doubling of the distance, and what is not kept once is not wanted later either.
    """

    def is_spared(place: int) -> bool:
        if place % piece_tokens or place >= num_tokens:
            return place == num_tokens
        age = -(-(num_tokens - place) // piece_tokens)
        return place // piece_tokens % (1 << (age.bit_length() - 1)) == 0

    return is_spared
