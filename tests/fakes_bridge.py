"""A request for the bridge, and ways to wait for what becomes of it."""

import asyncio
from collections.abc import Callable

from model.engine.request import GenerationRequest, SamplingParams, TokenEvent
from server.engine_thread.bridge import EventStream


def request(request_id: str = "a") -> GenerationRequest:
    return GenerationRequest(request_id, (1, 2, 3), SamplingParams(max_tokens=16))


async def collect(events: EventStream) -> list[TokenEvent]:
    return [event async for event in events]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)
