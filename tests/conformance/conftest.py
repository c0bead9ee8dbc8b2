"""One server for all of these tests, and both official clients of it."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conformance.driver import KINDS, Recorded, Recorder, StrictAsyncOpenAI, StrictOpenAI
from conformance.published import VARIABLE, Noted, Published
from fakes_engine import FakeEngine
from fakes_server import World, make_world, serving
from fakes_tools import teach

from retrieval.embedder import HashEmbedder
from retrieval.library import Library

KEY = "a-long-random-string"
PUBLISHED = pytest.StashKey[Published]()


@pytest.fixture(scope="session")
def published(pytestconfig: pytest.Config) -> Published | None:
    """OpenAI's own document, where a copy is at hand."""
    if VARIABLE not in os.environ:
        return None
    pytestconfig.stash[PUBLISHED] = Published(Path(os.environ[VARIABLE]))
    return pytestconfig.stash[PUBLISHED]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was held against the document, by operation."""
    if PUBLISHED in config.stash:
        terminalreporter.write_sep("=", "replies against the published document")
        for line in config.stash[PUBLISHED].summary():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, published: Published | None) -> Iterator[tuple[World, str]]:
    """A server on a real socket, over a library as it is and a scripted engine; its URL."""
    base = tmp_path_factory.mktemp("conformance")
    tokenizer = teach(tmp_path_factory.mktemp("tokenizer"))
    library = Library.open(base / "library", HashEmbedder(dimension=32))
    world = make_world(base / "data", tokenizer, library=library, api_key=KEY)
    if published:
        world.app.add_middleware(Noted, published=published)
    with serving(world.app) as url:
        yield world, f"{url}/v1"


@pytest.fixture
def engine(served: tuple[World, str]) -> FakeEngine:
    return served[0].engine


@pytest.fixture(params=KINDS)
async def client(
    request: pytest.FixtureRequest, served: tuple[World, str], published: Published | None
) -> AsyncIterator[Any]:
    """The official client; the test must have called, in vain or not, the helpers that it declares.

    Where OpenAI's document is at hand, what the test got must be what the document says.
    """
    recorded: Recorded = set()
    options: Any = {"base_url": served[1], "api_key": KEY, "max_retries": 0}
    if request.param == "sync":
        with StrictOpenAI(**options) as client:
            yield Recorder(client, recorded)
    else:
        async with StrictAsyncOpenAI(**options) as client:
            yield Recorder(client, recorded)
    failures = published.failures() if published else []
    assert not failures, "\n".join(failures)
    declared: frozenset[str] = getattr(request.function, "covers", frozenset())
    assert declared <= recorded, f"not called: {declared - recorded}"


@pytest.fixture(params=KINDS)
async def stranger(request: pytest.FixtureRequest, served: tuple[World, str]) -> AsyncIterator[Any]:
    """A client with a wrong key."""
    options: Any = {"base_url": served[1], "api_key": "fano-wrong", "max_retries": 0}
    if request.param == "sync":
        with openai.OpenAI(**options) as client:
            yield client
    else:
        async with openai.AsyncOpenAI(**options) as client:
            yield client
