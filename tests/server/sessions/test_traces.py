"""Prompts that quote documents, and what of them the engine keeps."""

from array import array
from collections.abc import Iterator

import pytest
from fakes_engine import WINDOW, FakeEngine

from server.engine_thread.bridge import EngineThread
from server.sessions.traces import Trace, Traces

TREE = ("acme", WINDOW)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def bridge(engine: FakeEngine) -> Iterator[EngineThread]:
    thread = EngineThread(engine)
    thread.start()
    yield thread
    thread.stop()


def read(engine: FakeEngine, first: int, *documents: str) -> Trace:
    """A prompt that begins like any other for two tokens."""
    ids = array("i", [1, 2, first, 9, 9])
    engine.checkpoints.keep(TREE, ids)
    return Trace("acme", WINDOW, ids, 2, documents)


def kept(engine: FakeEngine) -> list[int]:
    return sorted(ids[2] for _, ids in engine.checkpoints.kept)


async def test_prompts_with_a_deleted_document_are_forgotten(bridge: EngineThread, engine: FakeEngine) -> None:
    traces = Traces(bridge)
    for first, documents in ((10, ["a"]), (11, ["b"]), (12, ["b", "a"])):
        await traces.note(read(engine, first, *documents))
    await traces.forget("other", "a")
    assert kept(engine) == [10, 11, 12]
    await traces.forget("acme", "a")
    assert kept(engine) == [11]
    await traces.forget("acme", "b")
    assert kept(engine) == []


async def test_of_a_prompt_that_is_noted_no_more_nothing_is_kept(bridge: EngineThread, engine: FakeEngine) -> None:
    traces = Traces(bridge, most=2)
    for first in (10, 11, 12, 13):
        await traces.note(read(engine, first, "a"))
    assert kept(engine) == [12, 13]
    await traces.forget("acme", "a")
    assert kept(engine) == []
