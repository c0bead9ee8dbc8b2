"""An app over a scripted engine and a library in memory, clients for it, and a reader of event streams."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fakes_engine import WINDOW, FakeEngine
from fakes_library import FakeLibrary
from fastapi import FastAPI

from model.config import EngineConfig, ModelConfig, ReadingUnit
from model.policy import AttentionPolicy
from model.tokenizer import Tokenizer
from retrieval.embedder import HashEmbedder
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills.forecast import Forecaster
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

MODEL = "fake-reader"
EMBEDDING_WIDTH = 16
EMBEDDER = f"hash-{EMBEDDING_WIDTH}"
WorldMaker = Callable[..., "World"]


@dataclass
class World:
    """One app and the fakes under it. The services start with the app's lifespan."""

    app: FastAPI
    engine: FakeEngine
    library: Any
    settings: Settings


def make_world(
    data_dir: Path,
    tokenizer: Tokenizer,
    policy: AttentionPolicy = WINDOW,
    max_context_tokens: int = 100_000,
    reads: ReadingUnit = ReadingUnit.PASSAGES,
    library: Any = None,
    **changes: Any,
) -> World:
    """A world of its own, with a ``library`` in memory unless one is given; ``changes`` are settings."""
    settings = Settings(data_dir=data_dir, **{"read_documents": False, **changes})
    engine, library, metrics = FakeEngine(policy), library or FakeLibrary(), Metrics()
    model = ServedModel(MODEL, 1_700_000_000, policy, "float32", max_context_tokens, reads)
    forecaster = Forecaster(ModelConfig.from_pretrained(embedded_checkpoint()), EngineConfig(policy=policy))
    embedder = HashEmbedder(dimension=EMBEDDING_WIDTH)
    services = Services(settings, metrics, library, engine, tokenizer, model, forecaster, embedder)
    return World(create_app(settings, services, metrics), engine, library, settings)


class open_client:
    """A client of the app in process, while its lifespan runs and once it is ready."""

    def __init__(self, world: "World | FastAPI", headers: dict[str, str] | None = None) -> None:
        self.app = world if isinstance(world, FastAPI) else world.app
        self.headers = headers

    async def __aenter__(self) -> httpx.AsyncClient:
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=self.headers, timeout=30
        )
        while (await self._client.get("/readyz")).json()["status"] == "loading":
            await asyncio.sleep(0.001)
        return self._client

    async def __aexit__(self, *failure: Any) -> None:
        await self._client.aclose()
        await self._lifespan.__aexit__(None, None, None)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a real socket of this machine; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    while httpx.get(f"{url}/readyz", timeout=30).json()["status"] == "loading":
        time.sleep(0.01)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    """The samples of /metrics by name and labels."""
    reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def sse(text: str) -> list[tuple[str | None, str]]:
    """(event name, data) of every event in a stream; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            events.append((fields.get("event"), fields["data"]))
    return events


def chunks(text: str) -> list[Any]:
    """The chunks of a streamed completion that came to its end."""
    events = sse(text)
    assert events[-1] == (None, "[DONE]")
    return [json.loads(data) for _, data in events[:-1]]
