"""Server-sent events: how they look on the wire, and a comment when nothing was said for a while."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import StreamingResponse

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class EventStreamResponse(StreamingResponse):
    """A stream of events that no proxy is to hold back."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)


def event(data: object, name: str | None = None) -> bytes:
    """One event. ``data`` is JSON on one line; ASCII escapes keep every line separator of Unicode out of it."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


async def with_keep_alive(events: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """The events, and a comment whenever ``seconds`` pass without one. Closing this closes ``events``."""
    upcoming: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({upcoming}, timeout=seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            finished, upcoming = upcoming.result(), None
            if finished is None:
                return
            yield finished
    finally:
        if upcoming is not None and upcoming.cancel():
            with suppress(asyncio.CancelledError):
                await upcoming
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)
