"""A reader that falls behind costs a bounded number of tokens, holds nobody up, and not for ever."""

import asyncio
import time
from dataclasses import replace

import pytest
from fakes_bridge import collect, request, until
from fakes_engine import FakeEngine

from model.engine.request import TokenEvent
from model.errors import DeadlineExceeded
from server.engine_thread.bridge import NO_ROOM_SECONDS, EngineThread
from server.engine_thread.mailbox import HIGH_WATER_TOKENS
from server.errors import ReaderStalled

pytestmark = pytest.mark.timeout(120)


async def test_a_slow_reader_is_paused_at_the_mark_and_gets_everything(
    engine: FakeEngine, bridge: EngineThread
) -> None:
    pieces = [f"{number} " for number in range(5 * HIGH_WATER_TOKENS)]
    engine.enqueue("", pieces=list(pieces))
    engine.enqueue("a quick one")
    async with bridge.generate(request("slow")) as slow:
        await until(lambda: engine.paused == ["slow"])
        # Nobody else waits, and nothing more is made for the slow one.
        async with bridge.generate(request("quick")) as quick:
            assert "".join(event.text for event in await collect(quick)) == "a quick one"
        first = await anext(slow)
        assert len(first.token_ids) == HIGH_WATER_TOKENS
        got = [first]
        async for event in slow:
            got.append(event)
            assert len(event.token_ids) <= HIGH_WATER_TOKENS
            await asyncio.sleep(0.02)
    assert "".join(event.text for event in got) == "".join(pieces)
    assert engine.resumed and set(engine.resumed) == {"slow"}
    assert engine.aborted == []


async def test_many_choices_are_paused_and_resumed_as_one(engine: FakeEngine, bridge: EngineThread) -> None:
    pieces = [f"{number} " for number in range(3 * HIGH_WATER_TOKENS)]
    engine.enqueue("", pieces=list(pieces))
    async with bridge.generate(replace(request(), num_choices=4)) as events:
        await until(lambda: engine.paused == ["a"])
        texts = [""] * 4
        async for event in events:
            texts[event.choice] += event.text
            await asyncio.sleep(0)
    assert texts == ["".join(pieces)] * 4


async def test_a_paused_request_can_be_aborted(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("", pieces=["x"] * 1000)
    async with bridge.generate(request()) as events:
        await until(lambda: engine.paused == ["a"])
        await anext(events)
    await until(lambda: engine.aborted == ["a"])
    async with bridge.generate(request()) as events:
        assert [event.text for event in await collect(events)] == ["ok"]


async def test_an_engine_of_paused_requests_is_left_alone(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("", pieces=["x"] * 1000)
    async with bridge.generate(request()):
        await until(lambda: engine.paused == ["a"])
        await asyncio.sleep(0.05)
        num_calls = engine.num_calls
        await asyncio.sleep(0.2)
        assert engine.num_calls - num_calls <= 2


async def test_a_reader_that_takes_nothing_loses_its_request(engine: FakeEngine) -> None:
    bridge = EngineThread(engine, stalled_reader_seconds=0.1)
    bridge.start()
    engine.enqueue("", pieces=["x"] * 1000)
    async with bridge.generate(request()) as events:
        await until(lambda: engine.aborted == ["a"])
        assert bridge.stats().num_running == 0
        assert (await anext(events)).text == "x" * HIGH_WATER_TOKENS
        with pytest.raises(ReaderStalled, match=r"0\.1 seconds"):
            await anext(events)
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    await asyncio.to_thread(bridge.stop)
    assert engine.aborted == ["a"]


async def test_a_reader_that_takes_something_keeps_its_request(engine: FakeEngine) -> None:
    bridge = EngineThread(engine, stalled_reader_seconds=1.5)
    bridge.start()
    engine.enqueue("", pieces=["x"] * 3 * HIGH_WATER_TOKENS)
    num_characters = 0
    async with bridge.generate(request()) as events:
        async for event in events:
            num_characters += len(event.text)
            await asyncio.sleep(0.5)
    await asyncio.to_thread(bridge.stop)
    assert num_characters == 3 * HIGH_WATER_TOKENS and engine.aborted == []


async def test_a_deadline_passes_while_the_engine_is_idle(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("", pieces=["x"] * 1000)
    async with bridge.generate(replace(request(), max_seconds=1.0)) as events:
        await until(lambda: engine.paused == ["a"])
        assert not engine.has_work()
        await until(lambda: bridge.stats().num_failed == 1)
        assert len((await anext(events)).text) == HIGH_WATER_TOKENS
        with pytest.raises(DeadlineExceeded):
            await anext(events)
    assert engine.aborted == []


async def test_a_step_that_finds_no_room_is_not_tried_without_end(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_steps = 0

    def step() -> list[TokenEvent]:
        nonlocal num_steps
        num_steps += 1
        return []

    monkeypatch.setattr(engine, "step", step)
    bridge = EngineThread(engine)
    bridge.start()
    begun = time.monotonic()
    async with bridge.generate(request()):
        await asyncio.sleep(0.3)
    await until(lambda: engine.aborted == ["a"])
    assert 1 < num_steps <= 2 + (time.monotonic() - begun) / NO_ROOM_SECONDS
    await asyncio.sleep(0.05)
    num_calls = engine.num_calls
    await asyncio.sleep(0.2)
    assert engine.num_calls - num_calls <= 2
    await asyncio.to_thread(bridge.stop)
