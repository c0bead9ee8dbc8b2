"""Responses that are made while nobody waits: begun by one request; looked at, followed and cancelled by others."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from server.error_table import is_known
from server.responses.events import Event, ResponseEvents

logger = logging.getLogger(__name__)

# How long what was told stays, so that a stream that broke off can be taken up again.
FOLLOWED_SECONDS = 600.0


class Running:
    """A response that is made in the background, or was a short while ago, and what was told of it."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._told: list[Event] = []
        self.has_ended = False
        self._news = asyncio.Event()

    @property
    def num_told(self) -> int:
        """How many events there are by now; they are numbered from 0."""
        return len(self._told)

    def tell(self, event: Event) -> None:
        """One more event."""
        self._told.append(event)
        self._wake()

    def end(self) -> None:
        """There is no more."""
        self.has_ended = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int = -1) -> AsyncIterator[Event]:
        """The events with a greater number than ``after``, those to come too."""
        at = max(0, after + 1)
        while True:
            news = self._news
            while at < len(self._told):
                yield self._told[at]
                at += 1
            if self.has_ended:
                return
            await news.wait()


class Background:
    """All responses in the background. For the event loop."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Running] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._is_stopping = False

    async def begin(
        self, tenant: str, admitted: AbstractAsyncContextManager[ResponseEvents]
    ) -> tuple[ResponseEvents, Running]:
        """Make the response; returns when nothing refuses it any more. Raises what does."""
        accepted: asyncio.Future[ResponseEvents] = asyncio.get_running_loop().create_future()
        running = Running()
        task = asyncio.create_task(self._make(admitted, running, accepted))
        try:
            events = await accepted
        except BaseException:
            task.cancel()
            await asyncio.wait({task})
            raise
        key = (tenant, events.response_id)
        self._running[key], self._tasks[key] = running, task
        task.add_done_callback(lambda _: self._made(key))
        return events, running

    def find(self, tenant: str, response_id: str) -> Running | None:
        """The response, if it is being made or was a short while ago."""
        return self._running.get((tenant, response_id))

    async def cancel(self, tenant: str, response_id: str) -> None:
        """End the making, if it is still under way; what was said so far is stored on return."""
        task = self._tasks.get((tenant, response_id))
        if task is not None:
            self._running[tenant, response_id].is_cancelled = True
            task.cancel()
            await asyncio.wait({task})

    def forget(self, tenant: str, response_id: str) -> None:
        """What was told is not to be had any more."""
        self._running.pop((tenant, response_id), None)

    async def stop(self) -> None:
        """End all; the next start of the server says of those under way that they failed."""
        self._is_stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _made(self, key: tuple[str, str]) -> None:
        del self._tasks[key]
        if not self._is_stopping:
            asyncio.get_running_loop().call_later(FOLLOWED_SECONDS, self._running.pop, key, None)

    async def _make(
        self,
        admitted: AbstractAsyncContextManager[ResponseEvents],
        running: Running,
        accepted: "asyncio.Future[ResponseEvents]",
    ) -> None:
        try:
            async with admitted as events:
                accepted.set_result(events)
                await _tell(events, running)
        except asyncio.CancelledError:
            if not accepted.done():
                raise
        except Exception as error:
            if accepted.done():
                logger.exception("a response in the background failed after its end")
            else:
                accepted.set_exception(error)
        finally:
            running.end()


async def _tell(events: ResponseEvents, running: Running) -> None:
    try:
        async for event in events.events():
            running.tell(event)
    except asyncio.CancelledError:
        if not running.is_cancelled:
            raise
        running.tell(await events.cancelled())
    except Exception as error:
        if not is_known(error):
            logger.exception("a response in the background failed")
        running.tell(await events.failed(error))
