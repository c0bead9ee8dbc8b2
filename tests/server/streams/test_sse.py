"""A stream of events: comments in its silences, one message for each event, and an end that leaves nothing behind."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from server.streams.sse import KEEP_ALIVE, EventStreamResponse, event

KEEPALIVE_SECONDS = 0.05

pytestmark = pytest.mark.timeout(120)


class Client:
    """What was sent, and a window that can be closed as a reader's is that takes nothing."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.times: list[float] = []
        self.num_waiting = 0
        self.window = asyncio.Event()
        self.window.set()

    async def send(self, message: Message) -> None:
        self.num_waiting += 1
        await self.window.wait()
        self.num_waiting -= 1
        self.messages.append(message)
        self.times.append(time.monotonic())

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]


async def test_each_event_is_one_message_and_the_last_message_ends_the_body() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield event({"a": 1})
        yield event({"a": 2}, "named")

    client = Client()
    await EventStreamResponse(events(), KEEPALIVE_SECONDS).stream_response(client.send)
    assert client.messages[0]["type"] == "http.response.start" and client.messages[0]["status"] == 200
    assert client.bodies == [b'data: {"a":1}\n\n', b'event: named\ndata: {"a":2}\n\n', b""]
    assert [message.get("more_body") for message in client.messages[1:]] == [True, True, False]


async def test_comments_come_in_silences_alone() -> None:
    client = Client()

    async def events() -> AsyncGenerator[bytes]:
        while client.bodies.count(KEEP_ALIVE) < 3:
            await asyncio.sleep(KEEPALIVE_SECONDS / 10)
        for _ in range(10):
            yield b"busy"
            await asyncio.sleep(KEEPALIVE_SECONDS / 5)

    await EventStreamResponse(events(), KEEPALIVE_SECONDS).stream_response(client.send)
    assert set(client.bodies[: client.bodies.index(b"busy")]) == {KEEP_ALIVE}
    # A machine that is busy elsewhere sleeps longer between the events: what holds is the silence before each comment.
    silences = [
        client.times[place] - client.times[place - 1]
        for place, message in enumerate(client.messages)
        if message.get("body") == KEEP_ALIVE
    ]
    assert len(silences) >= 3 and min(silences) >= 0.9 * KEEPALIVE_SECONDS


async def test_a_client_that_does_not_read_gets_no_comments_on_top() -> None:
    client = Client()

    async def events() -> AsyncGenerator[bytes]:
        client.window.clear()
        for number in range(3):
            yield b"%d" % number

    response = asyncio.create_task(EventStreamResponse(events(), KEEPALIVE_SECONDS).stream_response(client.send))
    await asyncio.sleep(4 * KEEPALIVE_SECONDS)
    assert client.num_waiting == 1
    client.window.set()
    await response
    assert client.bodies == [b"0", b"1", b"2", b""]


@pytest.mark.parametrize("is_blocked", [False, True])
async def test_whoever_leaves_closes_the_events_and_hears_nothing_more(is_blocked: bool) -> None:
    closed = asyncio.Event()
    client = Client()

    async def events() -> AsyncGenerator[bytes]:
        try:
            while True:
                if is_blocked:
                    client.window.clear()
                yield b"more"
                await asyncio.sleep(10 * KEEPALIVE_SECONDS)
        finally:
            closed.set()

    kept = EventStreamResponse(events(), KEEPALIVE_SECONDS)  # or dropping it would close the events, too
    response = asyncio.create_task(kept.stream_response(client.send))
    await asyncio.sleep(KEEPALIVE_SECONDS / 2)
    response.cancel()
    with pytest.raises(asyncio.CancelledError):
        await response
    assert closed.is_set()
    client.window.set()
    num_messages = len(client.messages)
    await asyncio.sleep(3 * KEEPALIVE_SECONDS)
    assert len(client.messages) == num_messages


async def test_a_failure_of_the_events_ends_the_comments() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield b"some"
        raise LookupError("gone")

    client = Client()
    with pytest.raises(LookupError, match="gone"):
        await EventStreamResponse(events(), KEEPALIVE_SECONDS).stream_response(client.send)
    await asyncio.sleep(3 * KEEPALIVE_SECONDS)
    assert client.bodies == [b"some"]
