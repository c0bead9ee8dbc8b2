"""The engine on a thread of its own, asyncio beside it.

One thread is the only one that touches the engine. Requests, aborts and the order to stop reach it
through an inbox; text leaves it through one mailbox per request, which wakes the event loop that
waits there. A reader that falls behind has its own request paused until it catches up, and loses it
when it takes nothing for long; nobody else waits for it.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from model.engine.request import GenerationRequest, TokenEvent
from model.engine.stats import EngineStats
from model.errors import EngineDraining, EngineStopped, ModelError
from server.engine_thread.mailbox import Mailbox, wake
from server.engine_thread.stepped import SteppedEngine
from server.errors import ReaderStalled

logger = logging.getLogger(__name__)

T = TypeVar("T")

STALLED_READER_SECONDS = 60.0
# A thread cannot be told to wait for any number of seconds.
LONGEST_WAIT_SECONDS = 3600.0
# After a step that found nothing it could do, because all the room is held by requests that are paused.
NO_ROOM_SECONDS = 0.01


class EventStream:
    """The events of one accepted request, of each choice in order; the last one has the usage.

    Waiting for the next event may be cancelled (by a keep-alive timer, say) without losing one.
    Raises the event's error when the request failed, ``EngineStopped`` when the engine did.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._finished = False

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self._finished:
            raise StopAsyncIteration
        event = await self._mailbox.take()
        self._finished = _is_last(event)
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

    ``on_step`` is called after each step, on the engine's thread; ``on_event`` for each event that is read, as the
    engine made it and before it is joined to others, on the reader's.
    """

    def __init__(
        self,
        engine: SteppedEngine,
        on_step: Callable[[EngineStats], None] = lambda _: None,
        on_event: Callable[[TokenEvent], None] = lambda _: None,
        stalled_reader_seconds: float = STALLED_READER_SECONDS,
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_event = on_event
        self._stalled_reader_seconds = stalled_reader_seconds
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Resume | _Call | _Stop] = queue.SimpleQueue()
        self._mailboxes: dict[str, Mailbox] = {}
        self._paused: dict[str, Mailbox] = {}
        self._has_room = True
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
        mailbox = Mailbox(
            asyncio.get_running_loop(),
            request.num_choices,
            on_room=lambda: self._inbox.put(_Resume(request.request_id, mailbox)),
            on_event=self._on_event,
        )
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

    async def call(self, function: Callable[[SteppedEngine], T]) -> T:
        """What ``function`` returns or raises, run on the engine's thread between two steps; also while draining.

        A caller that is cancelled takes its call back if it has not begun; one that has begun is finished.
        Raises ``EngineStopped`` when it was not run.
        """
        outcome: Future[T] = Future()

        def run() -> None:
            if not outcome.set_running_or_notify_cancel():
                return
            try:
                result = function(self._engine)
            except Exception as failure:  # noqa: BLE001  (raised again where the result is awaited)
                outcome.set_exception(failure)
            else:
                outcome.set_result(result)

        def refuse(refusal: EngineStopped) -> None:
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(refusal)

        with self._lock:
            if self._closed is not None:
                raise EngineStopped(self._closed)
            self._inbox.put(_Call(run, refuse))
        return await asyncio.wrap_future(outcome)

    def _run(self) -> None:
        reason = "it was asked to"
        try:
            while self._work_through_inbox():
                if self._idle_seconds() == 0:
                    self._step()
                self._drop_stalled_readers()
        except Exception as failure:
            logger.exception("the engine thread failed; the server takes no more requests")
            reason = f"after {type(failure).__name__}"
        self._close(reason)

    def _step(self) -> None:
        num_steps = self._engine.stats().num_steps
        events = self._engine.step()
        self._wake(list(filter(None, map(self._deliver, events))))
        stats = self._engine.stats()
        ran = stats.num_steps != num_steps  # and did not only end requests whose time was up
        self._has_room = ran or bool(events)
        if ran:
            self._on_step(stats)

    def _idle_seconds(self) -> float | None:
        """How long the engine has nothing to do if nothing arrives: 0 for a step that is due, None for ever."""
        return 0.0 if self._engine.has_work() else self._engine.next_deadline()

    def _work_through_inbox(self) -> bool:
        """Handle what has arrived, waiting for something while nothing is to be done. False means stop."""
        idle = self._idle_seconds()
        if idle == 0 and not self._has_room:
            idle = NO_ROOM_SECONDS
        waits = [seconds for seconds in (idle, self._stalled_seconds()) if seconds is not None]
        seconds = min(*waits, LONGEST_WAIT_SECONDS) if waits else None
        while True:
            try:
                command = self._inbox.get(block=seconds != 0, timeout=seconds)
            except queue.Empty:
                return True
            seconds = 0
            match command:
                case _Submit():
                    self._submit(command)
                case _Abort():
                    self._abort(command)
                case _Resume():
                    self._resume(command)
                case _Call():
                    command.run()
                    self._engine.refresh()  # it may have changed what is kept
                case _Stop():
                    return False

    def _submit(self, command: "_Submit") -> None:
        try:
            self._engine.submit(command.request)
        except ModelError as refusal:
            command.mailbox.refuse(refusal)
        else:
            self._mailboxes[command.request.request_id] = command.mailbox
            command.mailbox.accept()
        self._wake([command.mailbox])

    def _abort(self, command: "_Abort") -> None:
        # A refused duplicate leaves its context too, and must not take the first request with it.
        if self._mailboxes.get(command.request_id) is command.mailbox:
            self._forget(command.request_id)
            self._engine.abort(command.request_id)

    def _resume(self, command: "_Resume") -> None:
        if self._paused.get(command.request_id) is command.mailbox:
            del self._paused[command.request_id]
            self._engine.resume(command.request_id)

    def _deliver(self, event: TokenEvent) -> Mailbox | None:
        """Where the event lies now; its reader was not told yet."""
        request_id = event.request_id
        mailbox = self._mailboxes.get(request_id)
        if mailbox is None:
            return None
        mailbox.put(event)
        if _is_last(event):
            self._forget(request_id)
        elif mailbox.is_full and request_id not in self._paused:
            self._paused[request_id] = mailbox
            self._engine.pause(request_id)
        return mailbox

    def _wake(self, mailboxes: Collection[Mailbox]) -> None:
        """Tell the readers; requests that have lost theirs are aborted."""
        if unread := wake(mailboxes):
            for request_id, mailbox in list(self._mailboxes.items()):
                if mailbox in unread:
                    self._abort(_Abort(request_id, mailbox))

    def _stalled_seconds(self) -> float | None:
        """Seconds until a reader has taken nothing for too long; None while all of them keep up."""
        if not self._paused:
            return None
        oldest = min(mailbox.read_at for mailbox in self._paused.values())
        return max(0.0, oldest + self._stalled_reader_seconds - time.monotonic())

    def _drop_stalled_readers(self) -> None:
        now = time.monotonic()
        for request_id, mailbox in list(self._paused.items()):
            if mailbox.is_full and now - mailbox.read_at >= self._stalled_reader_seconds:
                self._abort(_Abort(request_id, mailbox))
                mailbox.put(TokenEvent(request_id, "", error=ReaderStalled(self._stalled_reader_seconds)))
                self._wake([mailbox])

    def _forget(self, request_id: str) -> None:
        del self._mailboxes[request_id]
        self._paused.pop(request_id, None)

    def _close(self, reason: str) -> None:
        with self._lock:
            self._closed = reason
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put(TokenEvent(request_id, "", error=EngineStopped(reason)))
        waiting = list(self._mailboxes.values())
        self._mailboxes.clear()
        self._paused.clear()
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Submit):
                command.mailbox.refuse(EngineStopped(reason))
                waiting.append(command.mailbox)
            elif isinstance(command, _Call):
                command.refuse(EngineStopped(reason))
        wake(waiting)


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest
    mailbox: Mailbox


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    mailbox: Mailbox


@dataclass(frozen=True, slots=True)
class _Resume:
    request_id: str
    mailbox: Mailbox


@dataclass(frozen=True, slots=True)
class _Call:
    run: Callable[[], None]
    refuse: Callable[[EngineStopped], None]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


def _is_last(event: TokenEvent) -> bool:
    """Whether the request ends with this event, and not only one of its choices."""
    return event.usage is not None or event.error is not None
