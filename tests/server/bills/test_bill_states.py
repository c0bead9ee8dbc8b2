"""The bill in every state of the server, against the tensors and the files themselves: nothing is counted twice or left
out. The embedded model, and a library on the disk."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import open_client, scrape

from model.cache.block_pool import RELEASED
from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.stats import EngineStats
from model.policy import AttentionPolicy, PolicyName
from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills import bill
from server.bills.forecast import Forecaster
from server.measures.memory import DISK_POOLS, HOST_POOLS
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 256)
CONFIG = EngineConfig(
    num_slots=2, num_checkpoint_slots=2, max_context_tokens=8192, dtype=Dtype.FLOAT32, policy=WINDOW,
    prefill_chunk_tokens=128,
)  # fmt: skip
WORDS = "harbour winter lantern ledger orchard captain river market".split()
DIMENSION = 16
# Of the whole directory: the lock, and what says that a deletion was finished.
UNPOOLED = ("library.lock", "keys.sqlite3", "uploads")


@dataclass
class Running:
    """The server, and what is inside it."""

    client: httpx.AsyncClient
    engine: Engine
    services: Services
    library: Library
    data_dir: Path

    async def frozen(
        self, body: dict[str, Any], when: Callable[[EngineStats], bool], is_saved: bool = False
    ) -> dict[str, float]:
        """Send a chat, and hold it as soon as ``when`` is true after a step, in host memory if it ``is_saved``; compare
        all; let it go on to its end."""
        before = self.engine.stats().num_completion_tokens
        task = asyncio.create_task(self.client.post("/v1/chat/completions", json=body))

        def look(engine: Any) -> bool:
            stats: EngineStats = engine.stats()
            if not (stats.num_running and when(stats)):
                return False
            (request,) = _ids(engine)
            engine.pause(request)
            assert not is_saved or engine.preempt(request)
            return True

        while not await self.services.bridge.call(look):
            assert not task.done(), task.result().text
        samples = await self.compare()
        assert samples[f'fano_requests{{status="{"saved" if is_saved else "running"}"}}'] == 1
        await self.services.bridge.call(lambda engine: engine.resume(*_ids(engine)))
        reply = await task
        assert reply.status_code == 200, reply.text
        assert self.engine.stats().num_completion_tokens > before
        return samples

    async def compare(self) -> dict[str, float]:
        """The samples, once each was held against what it tells of."""
        (await self.client.get("/v1/memory")).raise_for_status()  # finds out where the sessions are
        looked: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            look = bill.resident_set_bytes
            patch.setattr(bill, "resident_set_bytes", lambda: looked.append(look()) or looked[-1])
            samples = await scrape(self.client)
        by_pool = {
            kind: {pool: samples[f'fano_{kind}_bytes{{pool="{pool}"}}'] for pool in pools}
            for kind, pools in (
                ("device_memory", ("weights", "ssm_state", "conv_state", "kv", "workspace")),
                ("device_memory_plan", ("weights", "ssm_state", "conv_state", "kv", "workspace")),
                ("host_memory", HOST_POOLS),
                ("disk", DISK_POOLS),
            )
        }
        device = by_pool["device_memory"]
        assert device == await self.services.bridge.call(_tensors)
        assert all(device[pool] == by_pool["device_memory_plan"][pool] for pool in device if pool != "workspace")
        held = await self.services.bridge.call(_held)
        for name, truth in held.items():
            assert samples[name] == truth, name
        host = by_pool["host_memory"]
        assert host["sessions"] == await self.services.bridge.call(_session_bytes)
        archived = await self.services.bridge.call(_archived)
        assert {name: samples[name] for name in archived} == archived
        shelves = [shelf for _, shelf in self.library._memory._held.values()]
        assert host["index"] + host["embeddings"] == sum(shelf.num_bytes for shelf in shelves)
        vectors = sum(len(shelf.vectors) for shelf in shelves if shelf.vectors is not None)
        assert host["embeddings"] == 4 * DIMENSION * vectors
        assert [sum(host.values()) + sum(device.values())] == looked
        assert host["unaccounted"] > 0  # the whole process of the tests is in it: no bound of a server's holds here
        assert by_pool["disk"] == _files(self.data_dir) | {"kv_archive": by_pool["disk"]["kv_archive"]}
        return samples


@asynccontextmanager
async def server(data_dir: Path, config: EngineConfig) -> AsyncIterator[Running]:
    engine = load_engine(embedded_checkpoint(), config)[0]
    library = Library.open(data_dir, HashEmbedder(dimension=DIMENSION))
    settings, metrics = Settings(data_dir=data_dir, read_documents=False, max_sequences=2), Metrics()
    model = ServedModel("reader", 1, WINDOW, "float32", config.max_context_tokens)
    forecaster = Forecaster(ModelConfig.from_pretrained(embedded_checkpoint()), config)
    services = Services(settings, metrics, library, engine, engine.tokenizer, model, forecaster)
    async with open_client(create_app(settings, services, metrics)) as client:
        yield Running(client, engine, services, library, data_dir)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with server(tmp_path, CONFIG) as running:
        yield running


def chat(num_words: int, max_tokens: int, begin: str = "", **fano: Any) -> dict[str, Any]:
    content = " ".join([begin, *(WORDS[place * place % 8] for place in range(num_words))])
    body = {"model": "reader", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return {**body, "fano": fano, "logit_bias": {"2": -100, "263": -100}}


async def test_every_state(running: Running) -> None:
    client = running.client
    idle = await running.compare()
    assert idle['fano_disk_bytes{pool="index"}'] == idle['fano_host_memory_bytes{pool="sessions"}'] == 0
    num_read = running.engine.stats().num_completion_tokens

    await running.frozen(chat(2000, 4), lambda stats: stats.num_completion_tokens == num_read)  # prefill
    num_read = running.engine.stats().num_completion_tokens
    await running.frozen(chat(30, 200), lambda stats: stats.num_completion_tokens > num_read + 20)  # decode
    num_read = running.engine.stats().num_completion_tokens
    before = running.engine.stats().checkpoint_bytes
    out = await running.frozen(chat(400, 90), lambda stats: stats.num_completion_tokens > num_read + 9, is_saved=True)
    assert out['fano_host_memory_bytes{pool="sessions"}'] > before and out['fano_state_slots{status="used"}'] == 0

    text = "\n\n".join(f"On day {day} the captain {WORDS[day % 8]} saw a {WORDS[day * 3 % 8]}." for day in range(400))
    sent = (await client.post("/v1/documents", json={"name": "days.txt", "text": text})).json()["id"]
    while (await client.get(f"/v1/documents/{sent}")).json()["status"] != "ready":
        await asyncio.sleep(0.02)
    await client.post("/v1/ask", json={"documents": [sent], "question": "What did the captain see on day 7?"})
    documents = await running.compare()
    assert documents['fano_disk_bytes{pool="index"}'] > 0 < documents['fano_host_memory_bytes{pool="embeddings"}']
    assert documents["fano_index_vectors"] > 64 and documents['fano_documents{status="ready"}'] == 1

    # More texts than slots for their states: some are pushed out to the host.
    for number in range(5):
        (
            await client.post("/v1/chat/completions", json=chat(60, 3, f"{number}", session=f"talk-{number}"))
        ).raise_for_status()
    talked = await running.compare()
    assert talked['fano_host_memory_bytes{pool="sessions"}'] > 0 and talked['fano_sessions{status="host"}'] > 0
    for number in range(2):
        (await client.post(f"/v1/sessions/talk-{number}/save")).raise_for_status()
    saved = await running.compare()
    assert saved['fano_disk_bytes{pool="sessions"}'] > talked['fano_disk_bytes{pool="sessions"}']

    upload = {"file": ("a.bin", b"\x00" * 5000)}
    file = (await client.post("/v1/files", files=upload, data={"purpose": "user_data"})).json()["id"]
    body = {"model": "reader", "input": "Hello", "max_output_tokens": 2}
    (await client.post("/v1/responses", json=body)).raise_for_status()
    stored = await running.compare()
    assert stored['fano_disk_bytes{pool="files"}'] > 5000 < stored['fano_disk_bytes{pool="responses"}']

    for path in (f"/v1/documents/{sent}", f"/v1/files/{file}", *(f"/v1/sessions/talk-{number}" for number in range(5))):
        (await client.delete(path)).raise_for_status()
    gone = await running.compare()
    assert gone['fano_disk_bytes{pool="index"}'] == gone['fano_host_memory_bytes{pool="embeddings"}'] == 0
    assert (
        gone["fano_index_vectors"] == 0
        and gone['fano_disk_bytes{pool="sessions"}'] < saved['fano_disk_bytes{pool="sessions"}']
    )


async def test_the_archive_is_counted_in_memory_and_on_the_disk(tmp_path: Path) -> None:
    # Room for 20 blocks in memory; a prompt of 4,000 tokens has some 60.
    each, summary = ModelConfig.from_pretrained(embedded_checkpoint()).archive_bytes_per_block(Dtype.FLOAT32)
    num_near, num_far = 20, 200
    near_bytes = num_near * (each + summary) + num_far * summary
    config = replace(CONFIG, archive_bytes=near_bytes, archive_disk_bytes=num_far * each, archive_directory=tmp_path)
    policy = {"name": "archive", "sinks": 64, "window": 256}
    async with server(tmp_path, config) as running:
        empty = await running.compare()
        names = ('fano_host_memory_bytes{pool="kv_archive"}', 'fano_host_memory_bytes{pool="kv_summaries"}')
        assert all(empty[name] == 0 for name in names)
        before = running.engine.stats().num_completion_tokens
        short = await running.frozen(
            chat(300, 40, policy=policy), lambda stats: stats.num_completion_tokens > before + 9
        )
        assert 0 < short[names[0]] < num_near * each and 0 < short[names[1]] < short[names[0]]
        assert short['fano_disk_bytes{pool="kv_archive"}'] == 0 < short['fano_kv_archive_blocks{status="used"}']
        before = running.engine.stats().num_completion_tokens
        long = await running.frozen(
            chat(2000, 9, policy=policy), lambda stats: stats.num_completion_tokens > before + 3
        )
        assert long[names[0]] > short[names[0]] and long['fano_disk_bytes{pool="kv_archive"}'] > 0
        # When it has ended, checkpoints hold it, and nobody else.
        ended = await running.compare()
        assert ended['fano_kv_archive_blocks{status="used"}'] == 0 < ended['fano_kv_archive_blocks{status="cached"}']
        assert ended["fano_request_archive_bytes_sum"] > 0


def _archived(engine: Any) -> dict[str, float]:
    """What of the archive somebody refers to: running requests, checkpoints, and states in host memory."""
    runner, archive = engine._runner, engine._runner._blocks.archive
    held = [each.table.archive.blocks for each in runner._held.values()]
    used = {id(block): block for blocks in held for block in blocks}
    checkpoints = engine.checkpoints
    kept = [each.held.table.archive.blocks for each in checkpoints._resident]
    kept += [each.snapshot.archive for each in checkpoints._host.checkpoints if each.snapshot is not None]
    kept += [each.archive for each in runner._saved.values()]
    live = used | {id(block): block for blocks in kept for block in blocks}
    near = [block for block in live.values() if block.number < archive.num_in_memory]
    num_far = len(live) - len(near)
    return {
        'fano_kv_archive_blocks{status="used"}': len(used),
        'fano_kv_archive_blocks{status="cached"}': len(live) - len(used),
        'fano_kv_archive_blocks{status="free"}': archive.num_blocks - len(live),
        'fano_host_memory_bytes{pool="kv_archive"}': sum(each.keys.nbytes + each.values.nbytes for each in near),
        'fano_host_memory_bytes{pool="kv_summaries"}': len(live)
        * archive.summaries.nbytes
        / max(1, archive.num_blocks),
        'fano_disk_bytes{pool="kv_archive"}': num_far * archive.bytes_per_block,
    }


def _ids(engine: Any) -> list[str]:
    return [group.request.request_id for group in engine._scheduler.groups()]


def _tensors(engine: Any) -> dict[str, float]:
    """Bytes of the tensors, by pool."""
    runner = engine._runner
    model, states, blocks = runner._model, runner._states, runner._blocks
    return {
        "weights": sum(weight.nbytes for weight in model.parameters()),
        "ssm_state": states.ssm.nbytes,
        "conv_state": states.conv.nbytes,
        "kv": blocks.keys.nbytes + blocks.values.nbytes,
        "workspace": model.workspace_bytes,
    }


def _held(engine: Any) -> dict[str, float]:
    """What the running requests hold, from their own tables, and what is left by the pools' sizes."""
    runner = engine._runner
    tables = [held.table.blocks for held in runner._held.values()]
    used = {block for table in tables for block in table if block != RELEASED}
    kept = [each.held for each in engine.checkpoints._resident]
    cached = {block for each in kept for block in each.table.blocks if block != RELEASED} - used
    return {
        'fano_state_slots{status="used"}': len(runner._held),
        'fano_state_slots{status="cached"}': len(kept),
        'fano_state_slots{status="free"}': runner._states.num_slots - len(runner._held) - len(kept),
        'fano_kv_blocks{status="used"}': len(used),
        'fano_kv_blocks{status="cached"}': len(cached),
        'fano_kv_blocks{status="free"}': runner._blocks.num_blocks - len(used) - len(cached),
    }


def _session_bytes(engine: Any) -> int:
    """Host memory of checkpoints, what they share counted once, with the tokens of all; and of saved requests."""
    checkpoints = engine.checkpoints
    snapshots = [each.snapshot for each in checkpoints._host.checkpoints if each.snapshot is not None]
    contents = {id(content): content.nbytes for each in snapshots for content in each.blocks.values()}
    tokens = 4 * sum(tree.num_tokens for tree in checkpoints._trees.values())
    saved = sum(each.nbytes for each in engine._runner._saved.values())
    return sum(contents.values()) + sum(each.state_bytes for each in snapshots) + tokens + saved


def _files(data_dir: Path) -> dict[str, float]:
    """Bytes of all files in the data directory by pool; what is in none is named."""
    sizes = dict.fromkeys(DISK_POOLS, 0)
    seen: set[int] = set()
    places = {"blobs": "store", "store.sqlite3": "store", "indexes": "index", "sessions": "sessions", "files": "files"}
    places |= {"files.sqlite3": "files", "responses.sqlite3": "responses"}
    for path in sorted(data_dir.rglob("*")):
        top = path.relative_to(data_dir).parts[0]
        if not path.is_file() or top.startswith(UNPOOLED):
            continue
        pool = next(pool for name, pool in places.items() if top == name or top.startswith(f"{name}-"))
        # The bytes of a file that a document has too are one on the disk.
        if path.stat().st_ino not in seen:
            sizes[pool] += path.stat().st_size
        seen.add(path.stat().st_ino)
    return {pool: float(size) for pool, size in sizes.items()}
