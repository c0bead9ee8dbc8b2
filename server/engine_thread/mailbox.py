"""One request's place of exchange between the engine's thread and the task that reads the answer.

What arrives before the reader comes is joined, choice by choice, so that a reader who is late gets few
events; the reader does it, for while the engine's thread is busy with that, no step runs. What may lie
here is bounded: a mailbox that is full asks for a pause, and tells when there is room again. A slow reader
costs the tokens up to that mark, and holds nobody else up.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from model.engine.request import TokenEvent, TokenLogprob
from model.errors import ModelError

# Unread tokens of one choice above which the request is paused, and below which it goes on.
HIGH_WATER_TOKENS = 256
LOW_WATER_TOKENS = 64


class Mailbox:
    """The engine's thread puts, one task on ``loop`` takes. ``on_room``, and ``on_event`` for each event as it was put,
    are called on the loop's thread.

    Events of one choice keep their order; the event that ends the request is taken last. The task learns of what
    ``accept``, ``refuse`` and ``put`` brought by ``wake``, which is one call for all the mailboxes of a step.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        num_choices: int,
        on_room: Callable[[], None],
        on_event: Callable[[TokenEvent], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._on_event = on_event
        self._high_water = HIGH_WATER_TOKENS * num_choices
        self._low_water = LOW_WATER_TOKENS * num_choices
        self._on_room = on_room
        self._lock = threading.Lock()
        self._changed = asyncio.Event()
        self._accepted = False
        self._refusal: ModelError | None = None
        self._arrived: list[TokenEvent] = []
        self._choices: dict[int, _Joined] = {}
        self._failure: TokenEvent | None = None
        self._num_unread = 0
        self._is_full = False
        self._read_at = 0.0
        self._wake_is_due = False

    @property
    def is_full(self) -> bool:
        """Whether the mark was reached and ``on_room`` is still to come."""
        return self._is_full

    @property
    def num_unread(self) -> int:
        """Tokens that lie here."""
        return self._num_unread

    @property
    def read_at(self) -> float:
        """Monotonic time since which a full mailbox has not been read."""
        return self._read_at

    async def accepted(self) -> None:
        """Wait for the engine's word; raise its refusal."""
        while not self._accepted:
            if self._refusal is not None:
                raise self._refusal
            await self._changed.wait()
            self._changed.clear()

    async def take(self) -> TokenEvent:
        """Everything that came for one of the choices, as one event; the choice that has waited longest first."""
        while (event := self._next()) is None:
            await self._changed.wait()
            self._changed.clear()
        return event

    def accept(self) -> None:
        """The engine has taken the request."""
        self._accepted = True

    def refuse(self, refusal: ModelError) -> None:
        """The engine has not taken the request."""
        self._refusal = refusal

    def put(self, event: TokenEvent) -> None:
        """Lay an event down."""
        with self._lock:
            self._arrived.append(event)
            self._num_unread += len(event.token_ids)
            is_last = event.usage is not None or event.error is not None
            if not is_last and self._num_unread >= self._high_water and not self._is_full:
                self._is_full, self._read_at = True, time.monotonic()

    def _next(self) -> TokenEvent | None:
        self._join()
        if not self._choices:
            event, self._failure = self._failure, None
            return event
        event = self._choices.pop(next(iter(self._choices))).as_event()
        with self._lock:
            self._num_unread -= len(event.token_ids)
            self._read_at = time.monotonic()
            has_room = self._is_full and self._num_unread <= self._low_water
            self._is_full = self._is_full and not has_room
        if has_room:
            self._on_room()
        return event

    def _join(self) -> None:
        """What has arrived, by choice. An error is not joined to the text before it, which is still worth reading."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for event in arrived:
            self._on_event(event)
            if event.error is not None:
                self._failure = event
                continue
            self._choices.setdefault(event.choice, _Joined()).add(event)
            if event.usage is not None:  # the end of the request is taken last
                self._choices[event.choice] = self._choices.pop(event.choice)

    def _owes_wake(self) -> bool:
        """Whether the loop is to be told: not while it has not yet heard what it was told last, for one that stalls
        must not collect callbacks."""
        with self._lock:
            is_new, self._wake_is_due = not self._wake_is_due, True
        return is_new

    def _woken(self) -> None:
        with self._lock:
            self._wake_is_due = False
        self._changed.set()


def wake(mailboxes: Iterable[Mailbox]) -> list[Mailbox]:
    """Let the readers look, with one call to each loop; the mailboxes that nobody will read, for their loop was closed.

    A call wakes a thread, and the kernel may put it where the engine runs: one for each token would stop the engine as
    often.
    """
    due: defaultdict[asyncio.AbstractEventLoop, list[Mailbox]] = defaultdict(list)
    for mailbox in mailboxes:
        if mailbox._owes_wake():
            due[mailbox._loop].append(mailbox)
    unread: list[Mailbox] = []
    for loop, told in due.items():
        try:
            loop.call_soon_threadsafe(_wake_all, told)
        except RuntimeError:  # the loop was closed under us
            unread += told
    return unread


def _wake_all(mailboxes: list[Mailbox]) -> None:
    for mailbox in mailboxes:
        mailbox._woken()


class _Joined:
    """Events of one choice, to be read as one. The time between its tokens is not kept: it was theirs."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self._last: TokenEvent | None = None

    def add(self, event: TokenEvent) -> None:
        self._texts.append(event.text)
        self._token_ids.extend(event.token_ids)
        self._logprobs.extend(event.logprobs)
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = event.prompt_logprobs
        self._last = event

    def as_event(self) -> TokenEvent:
        last = self._last
        assert last is not None, "joined nothing"
        return TokenEvent(
            request_id=last.request_id,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=last.finish_reason,
            usage=last.usage,
            spans=last.spans,
            choice=last.choice,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
        )
