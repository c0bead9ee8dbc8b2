import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from fakes_bridge import collect, request, until
from fakes_engine import FakeEngine

from model.engine.request import EvidenceSpan, FinishReason, TokenEvent
from model.engine.stats import EngineStats
from model.errors import (
    EngineDraining,
    EngineStopped,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
)
from server.engine_thread.bridge import EngineThread

pytestmark = pytest.mark.timeout(120)


async def test_streams_the_text_and_ends_with_reason_usage_and_spans(engine: FakeEngine, bridge: EngineThread) -> None:
    span = EvidenceSpan(0, 3, 9)
    engine.enqueue("thirty days of notice", finish_reason=FinishReason.LENGTH, spans=(span,))
    async with bridge.generate(request()) as events:
        got = await collect(events)
    assert "".join(event.text for event in got) == "thirty days of notice"
    assert [event.finish_reason for event in got[:-1]] == [None] * (len(got) - 1)
    assert got[-1].finish_reason is FinishReason.LENGTH
    assert got[-1].spans == (span,)
    assert got[-1].usage is not None and got[-1].usage.num_prompt_tokens == 3
    assert sum(len(event.token_ids) for event in got) == 4


@pytest.mark.parametrize(
    "refusal", [QueueFull(4, 4, 7), PromptTooLong(900, 16, 512), InvalidRequest("temperature", -1, "0 or more")]
)
async def test_a_refusal_is_raised_on_entry(engine: FakeEngine, bridge: EngineThread, refusal: Exception) -> None:
    engine.refuse(refusal)  # type: ignore[arg-type]
    with pytest.raises(type(refusal)) as raised:
        async with bridge.generate(request()):
            pytest.fail("entered")
    assert raised.value is refusal
    async with bridge.generate(request()) as events:
        assert "".join([event.text async for event in events]) == "ok"


async def test_leaving_the_block_aborts(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("one two three")
    engine.stall()
    async with bridge.generate(request()):
        await until(lambda: bridge.stats().num_running == 1)
    await until(lambda: engine.aborted == ["a"])
    assert bridge.stats().num_running == 0


async def test_a_finished_request_is_not_aborted(engine: FakeEngine, bridge: EngineThread) -> None:
    async with bridge.generate(request()) as events:
        await collect(events)
    async with bridge.generate(request("b")) as events:
        await collect(events)
    assert engine.aborted == []


async def test_cancelling_the_reader_aborts_even_while_nothing_comes(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.stall()

    async def read() -> None:
        async with bridge.generate(request()) as events:
            await collect(events)

    task = asyncio.create_task(read())
    await until(lambda: bridge.stats().num_running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: engine.aborted == ["a"])


async def test_cancelling_before_acceptance_leaves_nothing_behind(engine: FakeEngine, bridge: EngineThread) -> None:
    async def read() -> None:
        async with bridge.generate(request()) as events:
            await collect(events)

    engine.stall()
    task = asyncio.create_task(read())
    await asyncio.sleep(0)  # the request is in the inbox, its acceptance is not read yet
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    engine.go_on()
    async with bridge.generate(request("b")) as events:
        await collect(events)
    assert bridge.stats().num_running == 0
    assert engine.aborted in (["a"], [])


async def test_a_refused_duplicate_does_not_abort_the_first(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("first answer")
    engine.stall()
    async with bridge.generate(request()) as events:
        with pytest.raises(InvalidRequest):
            async with bridge.generate(request()):
                pytest.fail("entered")
        engine.go_on()
        assert "".join(event.text for event in await collect(events)) == "first answer"
    assert engine.aborted == []


async def test_a_slow_reader_gets_all_text_in_few_events(engine: FakeEngine, bridge: EngineThread) -> None:
    pieces = [f"{number} " for number in range(200)]
    engine.enqueue("", pieces=list(pieces))
    async with bridge.generate(request()) as events:
        await until(lambda: bridge.stats().num_finished == 1)
        got = await collect(events)
    assert "".join(event.text for event in got) == "".join(pieces)
    assert got[-1].finish_reason is FinishReason.STOP
    assert sum(len(event.token_ids) for event in got) == 200
    assert len(got) < 5


async def test_a_blocked_loop_collects_no_callbacks(engine: FakeEngine, bridge: EngineThread) -> None:
    loop = asyncio.get_running_loop()
    calls = 0
    threadsafe = loop.call_soon_threadsafe

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return threadsafe(*args, **kwargs)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counting  # type: ignore[method-assign,assignment]
    engine.enqueue("", pieces=["x"] * 200)
    engine.stall()
    async with bridge.generate(request()) as events:
        engine.go_on()
        wait = threading.Event()
        while bridge.stats().num_finished == 0:  # on purpose without await: the loop stands still
            wait.wait(0.002)
        assert calls <= 2
        assert len("".join([event.text async for event in events])) == 200


async def test_a_step_calls_a_loop_once_for_all_its_readers(engine: FakeEngine, bridge: EngineThread) -> None:
    loop = asyncio.get_running_loop()
    calls = 0
    threadsafe = loop.call_soon_threadsafe

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return threadsafe(*args, **kwargs)  # type: ignore[arg-type]

    engine.stall()
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for number in range(6):
            engine.enqueue(f"answer {number}")
            streams.append(await stack.enter_async_context(bridge.generate(request(f"r{number}"))))
        loop.call_soon_threadsafe = counting  # type: ignore[method-assign,assignment]
        engine.go_on()
        texts = ["".join(event.text for event in got) for got in await asyncio.gather(*map(collect, streams))]
    assert texts == [f"answer {number}" for number in range(6)]
    assert 1 <= calls <= 3  # the steps: two pieces, and the end


async def test_readers_of_a_closed_loop_are_given_up_and_others_read_on(
    engine: FakeEngine, bridge: EngineThread
) -> None:
    engine.stall()
    engine.enqueue("", pieces=["x"] * 200)
    left_open = bridge.generate(request("gone"))
    entered = threading.Thread(target=lambda: _run_and_close(left_open.__aenter__()))
    entered.start()
    await until(lambda: not entered.is_alive())
    async with bridge.generate(request("here")) as events:
        engine.go_on()
        assert "".join(event.text for event in await collect(events)) == "ok"
    await until(lambda: engine.aborted == ["gone"])


def _run_and_close(coroutine: Coroutine[Any, Any, object]) -> None:
    """As asyncio.run, but what was begun is neither cancelled nor closed: the loop is gone under it."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(coroutine)
    loop.close()


async def test_a_failed_request_raises_its_error_and_others_go_on(engine: FakeEngine, bridge: EngineThread) -> None:
    failure = GenerationFailed(RuntimeError("x"))
    engine.stall()
    engine.enqueue("half an", error=failure)
    engine.enqueue("whole answer")
    async with bridge.generate(request("a")) as first, bridge.generate(request("b")) as second:
        engine.go_on()
        with pytest.raises(GenerationFailed) as raised:
            await collect(first)
        assert raised.value is failure
        assert "".join(event.text for event in await collect(second)) == "whole answer"
    assert bridge.ready


async def test_a_crash_answers_every_waiter_and_ends_readiness(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.stall()
    async with bridge.generate(request("a")) as first, bridge.generate(request("b")) as second:
        engine.crash(ValueError("broken law"))
        engine.go_on()
        for events in (first, second):
            with pytest.raises(EngineStopped, match="ValueError"):
                await collect(events)
            assert await collect(events) == []
    assert not bridge.ready
    assert bridge.failure == "after ValueError"
    with pytest.raises(EngineStopped):
        async with bridge.generate(request("c")):
            pytest.fail("entered")


async def test_a_crash_answers_who_was_not_looked_at_yet(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stepping, may_fail = threading.Event(), threading.Event()

    def step() -> list[TokenEvent]:
        stepping.set()
        may_fail.wait(10)
        raise ValueError("broken law")

    monkeypatch.setattr(engine, "step", step)
    bridge = EngineThread(engine)
    bridge.start()

    async def enter() -> None:
        async with bridge.generate(request("b")):
            pytest.fail("entered")

    async with bridge.generate(request("a")) as events:
        await until(stepping.is_set)
        late = asyncio.create_task(enter())
        await asyncio.sleep(0.01)
        may_fail.set()
        for waiter in (late, collect(events)):
            with pytest.raises(EngineStopped, match="ValueError"):
                async with asyncio.timeout(60):
                    await waiter
    await asyncio.to_thread(bridge.stop)


async def test_waiting_in_short_turns_loses_nothing(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("one two three four")
    engine.stall()
    text, timeouts = "", 0
    async with bridge.generate(request()) as events:
        while True:
            event = await events.next_within(0.003)
            if event is None:
                timeouts += 1
                if timeouts == 3:
                    engine.go_on()
                continue
            text += event.text
            if event.finish_reason is not None:
                break
    assert text == "one two three four"
    assert timeouts >= 3


async def test_drain_refuses_new_and_waits_for_old(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.enqueue("last words")
    engine.stall()
    async with bridge.generate(request()) as events:
        assert await bridge.drain(0.03) is False
        assert not bridge.ready
        with pytest.raises(EngineDraining):
            async with bridge.generate(request("b")):
                pytest.fail("entered")
        engine.go_on()
        assert "".join(event.text for event in await collect(events)) == "last words"
    assert await bridge.drain(5) is True


async def test_stop_answers_who_still_waits(engine: FakeEngine) -> None:
    bridge = EngineThread(engine)
    bridge.start()
    engine.stall()
    async with bridge.generate(request()) as events:
        reader = asyncio.create_task(collect(events))
        await asyncio.to_thread(bridge.stop)
        with pytest.raises(EngineStopped):
            await reader
    bridge.stop()
    assert not bridge.ready
    with pytest.raises(RuntimeError, match="started before"):
        bridge.start()


async def test_nothing_is_accepted_before_start(engine: FakeEngine) -> None:
    bridge = EngineThread(engine)
    assert not bridge.ready
    with pytest.raises(EngineStopped, match="not started"):
        async with bridge.generate(request()):
            pytest.fail("entered")


async def test_each_step_is_reported(engine: FakeEngine) -> None:
    seen: list[EngineStats] = []
    bridge = EngineThread(engine, on_step=seen.append)
    bridge.start()
    engine.enqueue("a b c")
    async with bridge.generate(request()) as events:
        await collect(events)
    await asyncio.to_thread(bridge.stop)
    assert [stats.num_steps for stats in seen] == [1, 2, 3]


async def test_many_requests_at_once_get_their_own_text(engine: FakeEngine, bridge: EngineThread) -> None:
    async def ask(number: int) -> str:
        async with bridge.generate(request(str(number))) as events:
            return "".join([event.text async for event in events])

    for number in range(40):
        engine.enqueue(f"answer number {number} and no other")
    engine.stall()
    tasks = [asyncio.create_task(ask(number)) for number in range(40)]
    await until(lambda: bridge.stats().num_running == 40)
    engine.go_on()
    answers = await asyncio.gather(*tasks)
    order = [int(request.request_id) for request in engine.requests]
    assert [answers[number] for number in order] == [f"answer number {n} and no other" for n in range(40)]


def test_a_loop_that_is_gone_frees_its_request(engine: FakeEngine, bridge: EngineThread) -> None:
    engine.stall()
    engine.enqueue("", pieces=["x"] * 10)

    async def enter_and_never_leave() -> object:
        context = bridge.generate(request())
        await context.__aenter__()
        return context

    loop = asyncio.new_event_loop()
    context = loop.run_until_complete(enter_and_never_leave())
    loop.close()
    engine.go_on()
    for _ in range(500):
        if engine.aborted:
            break
        threading.Event().wait(0.01)
    assert engine.aborted == ["a"]
    del context


async def test_each_choice_has_its_own_text_and_the_last_event_the_usage(
    engine: FakeEngine, bridge: EngineThread
) -> None:
    engine.enqueue("one two three four", "five", "six seven")
    async with bridge.generate(replace(request(), num_choices=3)) as events:
        got = await collect(events)
    texts = ["".join(event.text for event in got if event.choice == choice) for choice in range(3)]
    assert texts == ["one two three four", "five", "six seven"]
    assert [event.usage is None for event in got] == [True] * (len(got) - 1) + [False]
    assert sorted(event.choice for event in got if event.finish_reason is not None) == [0, 1, 2]
    assert got[-1].usage is not None and got[-1].usage.num_completion_tokens == 7


async def test_events_are_told_as_the_engine_made_them(engine: FakeEngine) -> None:
    told: list[TokenEvent] = []
    bridge = EngineThread(engine, on_event=told.append)
    bridge.start()
    engine.enqueue("a b c d")
    engine.stall()
    async with bridge.generate(request()) as events:
        engine.go_on()
        await until(lambda: bridge.stats().num_finished == 1)
        await collect(events)
    await asyncio.to_thread(bridge.stop)
    assert [event.gap_seconds for event in told] == [None, 0.002, 0.002, 0.002]


async def test_a_call_runs_on_the_engine_thread_between_two_steps(bridge: EngineThread, engine: FakeEngine) -> None:
    engine.enqueue("", pieces=["word "] * 200)
    async with bridge.generate(request()) as events:
        names = {await bridge.call(lambda _: threading.current_thread().name) for _ in range(3)}
        assert await bridge.call(lambda each: each) is engine
        assert "".join(event.text for event in await collect(events)) == "word " * 200
    assert names == {"engine"}


async def test_what_a_call_raises_is_its_callers_alone(bridge: EngineThread) -> None:
    def fail(_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await bridge.call(fail)
    assert await bridge.call(lambda _: 7) == 7


async def test_a_caller_that_leaves_hurts_nobody(bridge: EngineThread) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        begun.set()
        may_end.wait(10)

    ran: list[str] = []
    first = asyncio.create_task(bridge.call(wait))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    second = asyncio.create_task(bridge.call(lambda _: ran.append("left before it began")))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.wait({first, second})
    may_end.set()
    assert await bridge.call(lambda _: 7) == 7
    assert ran == []


async def test_a_call_to_an_engine_that_stopped_says_so(bridge: EngineThread, engine: FakeEngine) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        begun.set()
        may_end.wait(10)

    holding = asyncio.create_task(bridge.call(hold))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    stopping = asyncio.create_task(asyncio.to_thread(bridge.stop))
    await asyncio.sleep(0.05)
    late = asyncio.create_task(bridge.call(lambda _: 7))
    await asyncio.sleep(0.05)
    may_end.set()
    await asyncio.wait({holding, stopping, late})
    assert isinstance(late.exception(), EngineStopped)
    with pytest.raises(EngineStopped):
        await bridge.call(lambda _: 7)
