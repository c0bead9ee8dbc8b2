"""The engine on a thread of its own, asyncio beside it.

One thread is the only one that touches the engine. Requests, aborts and the order to stop reach it
through an inbox; text leaves it through one mailbox per request, which wakes the event loop that
waits there. A mailbox holds at most one event: what arrives before the reader comes is joined to
it, so a slow reader costs its own answer's text and nothing more.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from model.engine.request import GenerationRequest, TokenEvent
from model.engine.stats import EngineStats
from model.errors import EngineDraining, EngineStopped, ModelError

logger = logging.getLogger(__name__)


class SteppedEngine(Protocol):
    """What the bridge needs of an engine; every method is called on the engine thread, ``stats`` on any."""

    def submit(self, request: GenerationRequest) -> None:
        """Accept the request or raise ``RequestRefused``."""

    def abort(self, request_id: str) -> bool:
        """Drop the request if it is there; say whether it was."""

    def step(self) -> list[TokenEvent]:
        """Do one unit of work and return what became visible."""

    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def stats(self) -> EngineStats:
        """The last published snapshot."""


class EventStream:
    """The events of one accepted request, in order; the last one has a finish reason.

    Waiting for the next event may be cancelled (by a keep-alive timer, say) without losing one.
    Raises the event's error when the request failed, ``EngineStopped`` when the engine did.
    """

    def __init__(self, mailbox: "_Mailbox") -> None:
        self._mailbox = mailbox
        self._finished = False

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self._finished:
            raise StopAsyncIteration
        event = await self._mailbox.take()
        self._finished = event.finish_reason is not None or event.error is not None
        if event.error is not None:
            raise event.error
        return event

    async def next_within(self, seconds: float) -> TokenEvent | None:
        """The next event, or None when none came in time. Raises StopAsyncIteration after the last."""
        try:
            async with asyncio.timeout(seconds):
                return await anext(self)
        except TimeoutError:
            return None


class EngineThread:
    """Runs an engine; ``generate`` is called from any number of tasks and event loops.

    A failure outside a single request's own work ends the thread: every waiter is answered with
    ``EngineStopped``, ``ready`` turns false, and so it stays.
    """

    def __init__(self, engine: SteppedEngine, on_step: Callable[[EngineStats], None] | None = None) -> None:
        self._engine = engine
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Stop] = queue.SimpleQueue()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._lock = threading.Lock()
        self._num_open = 0
        self._draining = False
        self._closed: str | None = "it was not started"
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be looked at."""
        return self._closed is None and not self._draining

    @property
    def failure(self) -> str | None:
        """Why nothing runs, or None while the thread does."""
        return self._closed

    def stats(self) -> EngineStats:
        """The engine's last snapshot: no lock, no wait."""
        return self._engine.stats()

    def start(self) -> None:
        """Start the thread. A bridge is started once."""
        if self._thread is not None:
            raise RuntimeError("the engine thread was started before; make a new EngineThread")
        self._closed = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step in progress; who still waits gets ``EngineStopped``. Idempotent, blocks."""
        if self._thread is not None:
            self._inbox.put(_Stop())
            self._thread.join()

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests and wait until every ``generate`` block is left; False when time ran out."""
        self._draining = True
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while self._num_open:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[EventStream]:
        """Submit on entry, raising ``RequestRefused`` or ``EngineStopped`` there; abort on leaving."""
        if self._draining:
            raise EngineDraining
        mailbox = _Mailbox(asyncio.get_running_loop())
        with self._lock:
            if self._closed is not None:
                raise EngineStopped(self._closed)
            self._inbox.put(_Submit(request, mailbox))
            self._num_open += 1
        try:
            await mailbox.accepted()
            yield EventStream(mailbox)
        finally:
            # The inbox keeps order, so this also reaches a request whose acceptance was not awaited to the end.
            self._inbox.put(_Abort(request.request_id, mailbox))
            with self._lock:
                self._num_open -= 1

    def _run(self) -> None:
        reason = "it was asked to"
        try:
            while self._work_through_inbox():
                if self._engine.has_work():
                    for event in self._engine.step():
                        self._deliver(event)
                    if self._on_step is not None:
                        self._on_step(self._engine.stats())
        except Exception as failure:
            logger.exception("the engine thread failed; the server takes no more requests")
            reason = f"after {type(failure).__name__}"
        self._close(reason)

    def _work_through_inbox(self) -> bool:
        """Handle what has arrived, waiting for something when the engine is idle. False means stop."""
        block = not self._engine.has_work()
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return True
            block = False
            match command:
                case _Submit():
                    self._submit(command)
                case _Abort():
                    self._abort(command)
                case _Stop():
                    return False

    def _submit(self, command: "_Submit") -> None:
        try:
            self._engine.submit(command.request)
        except ModelError as refusal:
            command.mailbox.refuse(refusal)
        else:
            self._mailboxes[command.request.request_id] = command.mailbox
            if not command.mailbox.accept():
                self._abort(_Abort(command.request.request_id, command.mailbox))

    def _abort(self, command: "_Abort") -> None:
        # A refused duplicate leaves its context too, and must not take the first request with it.
        if self._mailboxes.get(command.request_id) is command.mailbox:
            del self._mailboxes[command.request_id]
            self._engine.abort(command.request_id)

    def _deliver(self, event: TokenEvent) -> None:
        mailbox = self._mailboxes.get(event.request_id)
        if mailbox is None:
            return
        if not mailbox.put(event):
            self._abort(_Abort(event.request_id, mailbox))
        elif event.finish_reason is not None:
            del self._mailboxes[event.request_id]

    def _close(self, reason: str) -> None:
        with self._lock:
            self._closed = reason
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put(TokenEvent(request_id, "", error=EngineStopped(reason)))
        self._mailboxes.clear()
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Submit):
                command.mailbox.refuse(EngineStopped(reason))


class _Mailbox:
    """One request's place of exchange: the engine thread puts, one task on ``loop`` takes.

    The methods that return a bool say whether the loop is still there to read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._changed = asyncio.Event()
        self._accepted = False
        self._refusal: ModelError | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._last: TokenEvent | None = None
        self._wake_is_due = False

    async def accepted(self) -> None:
        """Wait for the engine's word; raise its refusal."""
        while not self._accepted:
            if self._refusal is not None:
                raise self._refusal
            await self._changed.wait()
            self._changed.clear()

    async def take(self) -> TokenEvent:
        """Everything that came since the last call, as one event."""
        while (event := self._join()) is None:
            await self._changed.wait()
            self._changed.clear()
        return event

    def accept(self) -> bool:
        self._accepted = True
        return self._wake()

    def refuse(self, refusal: ModelError) -> bool:
        self._refusal = refusal
        return self._wake()

    def put(self, event: TokenEvent) -> bool:
        with self._lock:
            self._texts.append(event.text)
            self._token_ids.extend(event.token_ids)
            self._last = event
        return self._wake()

    def _join(self) -> TokenEvent | None:
        with self._lock:
            last, self._last = self._last, None
            if last is None:
                return None
            text, self._texts = "".join(self._texts), []
            token_ids, self._token_ids = tuple(self._token_ids), []
        return TokenEvent(last.request_id, text, token_ids, last.finish_reason, last.usage, last.spans, last.error)

    def _wake(self) -> bool:
        with self._lock:
            if self._wake_is_due:  # a loop that stalls must not collect callbacks
                return True
            try:
                self._loop.call_soon_threadsafe(self._woken)
            except RuntimeError:  # the loop was closed under us: nobody will read
                return False
            self._wake_is_due = True
        return True

    def _woken(self) -> None:
        with self._lock:
            self._wake_is_due = False
        self._changed.set()


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest
    mailbox: _Mailbox


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    mailbox: _Mailbox


@dataclass(frozen=True, slots=True)
class _Stop:
    pass
