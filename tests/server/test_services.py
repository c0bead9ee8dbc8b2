"""What the settings make of the engine, loading while answering, and what a start cleans up."""

import asyncio
import gc
import logging
import threading
from pathlib import Path
from typing import Any

import faiss
import httpx
import pytest
from fakes_bridge import until
from fakes_server import World, WorldMaker, open_client

import server.app
from model.config import Dtype, ModelConfig
from model.errors import CheckpointNotFound
from model.policy import AttentionPolicy, PolicyName
from retrieval.errors import IndexUnavailable
from server.app import create_app
from server.readiness import Stage
from server.services import attention_policy, embedded_checkpoint, engine_config, num_threads, open_library
from server.settings import Settings


def test_the_embedded_checkpoint_is_found() -> None:
    assert (embedded_checkpoint() / "config.json").is_file()


def test_what_is_left_open_is_the_checkpoints_own() -> None:
    config = engine_config(Settings(), ModelConfig.from_pretrained(embedded_checkpoint()))
    assert config.policy == AttentionPolicy(PolicyName.WINDOW, 64, 2048)
    assert (config.max_context_tokens, config.num_slots, config.max_waiting) == (1 << 20, 8, 64)
    assert config.num_threads == num_threads(Settings()) >= 1


def test_settings_reach_the_engine() -> None:
    settings = Settings(
        dtype="float32",
        threads=3,
        policy="full",
        sinks=128,
        max_sequences=2,
        max_queue=5,
        max_context_tokens=4096,
        saved_bytes=77,
        session_bytes=78,
        checkpoint_slots=3,
    )
    config = engine_config(settings, ModelConfig.from_pretrained(embedded_checkpoint()))
    assert (config.dtype, config.num_threads, config.num_slots) == (Dtype.FLOAT32, 3, 2)
    assert (config.max_waiting, config.max_context_tokens, config.saved_bytes) == (5, 4096, 77)
    assert (config.session_bytes, config.num_checkpoint_slots) == (78, 3)
    assert config.policy == AttentionPolicy(PolicyName.FULL, 128, 2048)
    own = AttentionPolicy(PolicyName.WINDOW, 64, 512)
    assert attention_policy(Settings(window=1024), own) == AttentionPolicy(PolicyName.WINDOW, 64, 1024)


def test_an_upload_that_a_crash_cut_off_is_swept_away(new_world: WorldMaker) -> None:
    world = new_world()
    spool = world.settings.data_dir / "uploads"
    spool.mkdir(parents=True)
    (spool / "upload-abc").write_text("half a bo")
    asyncio.run(visit(world))
    assert list(spool.iterdir()) == []


async def visit(world: World) -> None:
    async with open_client(world):
        pass


async def test_it_answers_while_it_loads(monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path) -> None:
    may_load = threading.Event()

    def load(settings: Settings, metrics: Any) -> Any:
        may_load.wait()
        raise CheckpointNotFound("no checkpoint at 'x'; name one that is there")

    monkeypatch.setattr(server.app, "load_services", load)
    app = create_app(Settings(data_dir=tmp_path))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "2"
        assert (await client.get("/metrics")).status_code == 200
        may_load.set()
        while app.state.fano.readiness.stage is Stage.LOADING:
            await asyncio.sleep(0.005)
        failed = (await client.get("/readyz")).json()
        assert failed == {"status": "failed", "reason": "no checkpoint at 'x'; name one that is there"}


async def test_what_is_loaded_is_left_alone_by_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked = []

    def load(settings: Settings, metrics: Any) -> Any:
        looked.append(gc.isenabled())
        raise CheckpointNotFound("no weights here")

    monkeypatch.setattr(server.app, "load_services", load)
    app = create_app(Settings(data_dir=tmp_path))
    try:
        async with app.router.lifespan_context(app):
            await until(lambda: app.state.fano.readiness.stage is Stage.FAILED)
        assert looked == [False] and gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


async def test_an_engine_that_stopped_is_not_ready(
    client: httpx.AsyncClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    world.engine.crash(RuntimeError("broken"))
    body = {"model": "fake-reader", "messages": [{"role": "user", "content": "Hello"}]}
    reply = await client.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_stopped")
    ready = await client.get("/readyz")
    assert ready.status_code == 503 and "RuntimeError" in ready.json()["reason"]


async def test_a_drain_refuses_what_is_new(client: httpx.AsyncClient, world: World) -> None:
    world.app.state.fano.readiness.drain()
    assert (await client.get("/readyz")).json()["status"] == "draining"
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/documents"), ("GET", "/v1/documents")):
        reply = await client.request(method, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining")
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU here")
def test_an_index_on_a_gpu_that_is_not_there_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable, match="FANO_INDEX_DEVICE=cpu"):
        open_library(Settings(data_dir=tmp_path / "data", index_device="gpu"), len)
    assert not (tmp_path / "data").exists()
