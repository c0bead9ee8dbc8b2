"""Server-sent events: how they look on the wire, and a comment when nothing was said for a while."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Send
from typing_extensions import override

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

# Made once: ``json.dumps`` makes an encoder for every call that asks for other separators than its own.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class EventStreamResponse(StreamingResponse):
    """A stream of events that no proxy is to hold back, with a comment whenever ``keepalive_seconds`` pass without one.

    The end of the response, however it comes, closes ``events``.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], keepalive_seconds: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._events = events
        self._keepalive_seconds = keepalive_seconds
        self._is_sending = False
        self._sent_at = 0.0

    @override
    async def stream_response(self, send: Send) -> None:
        """Send the events as they come."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent_at = time.monotonic()
        # Beside the events, and not around each of them, which would cost a task and a timer for every token.
        keeping_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async with aclosing(self._events) as events:
                async for each in events:
                    await self._say(send, each)
        finally:
            keeping_alive.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _say(self, send: Send, said: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": said, "more_body": True})
        self._is_sending = False
        self._sent_at = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        while True:
            silence = time.monotonic() - self._sent_at
            if self._is_sending:  # to a client that does not read: it has enough to come
                silence = 0.0
            if silence >= self._keepalive_seconds:
                await self._say(send, KEEP_ALIVE)
                silence = 0.0
            await asyncio.sleep(self._keepalive_seconds - silence)


def event(data: object, name: str | None = None) -> bytes:
    """One event. ``data`` is JSON on one line; ASCII escapes keep every line separator of Unicode out of it."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {_ENCODER.encode(data)}\n\n".encode()
