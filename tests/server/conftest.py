"""Fixtures of the server's tests: an app over fakes, and a client of it."""

from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from fakes_engine import FakeEngine, write_tokenizer
from fakes_server import World, WorldMaker, make_world, open_client, serving

from model.tokenizer import Tokenizer
from server.engine_thread.bridge import EngineThread


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def new_world(tmp_path: Path, tokenizer: Tokenizer) -> WorldMaker:
    return partial(make_world, tmp_path / "data", tokenizer)


@pytest.fixture
def world(new_world: WorldMaker) -> World:
    return new_world()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(world) as client:
        yield client


@pytest.fixture
def url(world: World) -> Iterator[str]:
    """The API's base of a real socket."""
    with serving(world.app) as url:
        yield f"{url}/v1"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def bridge(engine: FakeEngine) -> Iterator[EngineThread]:
    """A thread over ``engine`` with nothing above it."""
    thread = EngineThread(engine)
    thread.start()
    yield thread
    engine.go_on()
    thread.stop()
