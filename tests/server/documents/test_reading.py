"""Documents are read once, in the background, and what was read outlives the server. With the embedded model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes_bridge import collect
from fakes_library import FakeLibrary

from model.config import Dtype, EngineConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import GenerationRequest, SamplingParams
from model.policy import AttentionPolicy, PolicyName
from retrieval.passage import DocumentStatus
from server.documents.reading import Reader, document_ids, reading_policy, spared
from server.engine_thread.bridge import EngineThread
from server.services import embedded_checkpoint
from server.sessions.book import open_book
from server.sessions.errors import SessionStorageFull
from server.sessions.vault import Vault

TENANT = "default"
PIECE = 256
WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 256)
CONFIG = EngineConfig(
    num_slots=4,
    num_checkpoint_slots=8,
    max_context_tokens=4096,
    dtype=Dtype.FLOAT32,
    policy=WINDOW,
    prefill_chunk_tokens=128,
)
TEXT = " ".join(f"On day {day} the captain of ship {day * 7} bought lamp oil." for day in range(120))


class Desk:
    """A reader over a library in memory, a vault on the disk, and an engine of its own."""

    def __init__(self, directory: Path, save_seconds: float) -> None:
        self.engine: Engine = load_engine(embedded_checkpoint(), CONFIG)[0]
        self.bridge = EngineThread(self.engine)
        self.library = FakeLibrary(has_reader=True)
        self.vault = Vault(directory / "sessions", 1 << 28)
        tokenizer = self.engine.tokenizer
        self.book, readings = open_book(self.vault, self.bridge, tokenizer, WINDOW, self.library.get)
        limit = CONFIG.max_context_tokens
        self.reader = Reader(self.library, self.bridge, tokenizer, readings, WINDOW, limit, True, PIECE, save_seconds)
        self.bridge.start()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    async def read(self, text: str = TEXT) -> str:
        """A new document, once it is read."""
        document_id = self.library.put(text, is_to_be_read=True)
        self.reader.wake()
        await self.until(lambda: self.status(document_id) is DocumentStatus.READY)
        return document_id

    def status(self, document_id: str) -> DocumentStatus:
        return self.library.get(TENANT, document_id).status

    async def aclose(self) -> None:
        await self.reader.stop()
        self.bridge.stop()


@pytest.fixture
async def new_desk(tmp_path: Path) -> AsyncIterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(save_seconds: float = 1e9) -> Desk:
        desks.append(Desk(tmp_path, save_seconds))
        return desks[-1]

    yield make
    for desk in desks:
        await desk.aclose()


async def test_a_document_is_read_once_and_any_question_goes_on_from_there(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk()
    desk.reader.start()
    document_id = await desk.read()
    ids = document_ids(desk.engine.tokenizer, TEXT)
    num_read = desk.engine.stats().num_prompt_tokens
    assert num_read == len(ids) > 6 * PIECE
    # That the pieces went on from each other spared nobody anything.
    assert desk.engine.stats().num_cached_tokens == 0 and not desk.engine.stats().num_prefixes
    told = desk.library.progress_told
    assert [done for done, _, _ in told] == [0, *range(PIECE, len(ids), PIECE), len(ids)]
    assert {total for _, total, _ in told} == {len(ids)}
    assert told[0][2] is None and all(seconds is not None and seconds >= 0 for _, _, seconds in told[1:])
    # A conversation that begins with the document begins with exactly these tokens.
    question = {"role": "user", "content": "Who bought oil?"}
    prompt = desk.engine.tokenizer.encode_chat([{"role": "user", "content": TEXT}, question])
    assert list(prompt[: len(ids)]) == list(ids)
    request = GenerationRequest("ask", prompt, SamplingParams(max_tokens=4, temperature=0.0), tenant=TENANT)
    async with desk.bridge.generate(request) as events:
        usage = (await collect(events))[-1].usage
    assert usage is not None and usage.num_cached_tokens == len(ids)
    async with desk.bridge.generate(replace(request, request_id="other", tenant="other")) as events:
        assert (await collect(events))[-1].usage.num_cached_tokens == 0
    assert desk.book.stats().num_sessions["resident"] == 1
    view = await desk.book.get(TENANT, f"document:{document_id}")
    assert (view.manifest.num_tokens, view.manifest.prelude_tokens, view.manifest.is_saved) == (len(ids),) * 2 + (True,)
    assert view.manifest.checkpoints[-1].num_tokens == len(ids)
    assert view.manifest.checkpoints[-1].information_bits > len(ids) / 2


async def test_fewer_checkpoints_are_kept_the_longer_ago_they_are(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk()
    desk.reader.start()
    await desk.read()
    ids = document_ids(desk.engine.tokenizer, TEXT)
    path = await desk.bridge.call(lambda engine: engine.checkpoints.path((TENANT, WINDOW), ids))
    places = [checkpoint.num_tokens for checkpoint in path]
    assert places == [place for place in range(1, len(ids) + 1) if spared(len(ids), PIECE)(place)]
    assert places[-1] == len(ids) and len(places) < len(ids) / PIECE


def test_what_is_spared_grows_with_the_logarithm_and_nothing_dropped_is_wanted_again() -> None:
    kept: set[int] = set()
    for pieces in range(1, 400):
        kept.add(64 * pieces)
        wanted = {place for place in range(64, 64 * pieces + 1, 64) if spared(64 * pieces, 64)(place)}
        assert wanted <= kept and len(wanted) <= 2 * pieces.bit_length()
        kept = wanted
    assert spared(1000, 64)(1000) and not spared(1000, 64)(999) and not spared(1000, 64)(1001)


async def test_what_was_saved_is_not_read_again_after_a_kill(new_desk: Callable[..., Desk]) -> None:
    first = new_desk(save_seconds=0.0)
    document_id = first.library.put(TEXT, is_to_be_read=True)
    first.reader.start()
    await first.until(lambda: first.vault.counts().num_saved > 0)
    await first.aclose()  # Nothing of the process is left but its files.
    saved = first.vault.get(TENANT, f"document:{document_id}")
    assert saved.checkpoints[-1].num_tokens >= PIECE and saved.prelude_tokens == 0

    second = new_desk()
    assert second.library.put(TEXT, is_to_be_read=True) == document_id
    second.reader.start()
    await second.until(lambda: second.status(document_id) is DocumentStatus.READY)
    ids = document_ids(second.engine.tokenizer, TEXT)
    assert second.engine.stats().num_prompt_tokens == len(ids) - saved.checkpoints[-1].num_tokens
    assert second.library.progress_told[0] == (saved.num_tokens, len(ids), None)
    # Read in one go or with a restart between, what is remembered is the same.
    third = new_desk()
    third.library.put(TEXT, is_to_be_read=True)
    fresh, resumed = [
        (
            await desk.bridge.call(
                lambda engine: engine.checkpoints.snapshot(engine.checkpoints.path((TENANT, WINDOW), ids)[-1])
            )
        )
        for desk in (await _read_alone(third, ids), second)
    ]
    assert fresh.ssm.equal(resumed.ssm) and fresh.information_bits == resumed.information_bits


async def _read_alone(desk: Desk, ids: object) -> Desk:
    desk.vault = None
    for end in [*range(PIECE, len(ids), PIECE), len(ids)]:
        request = GenerationRequest(
            f"r{end}", ids[:end], SamplingParams(max_tokens=0), is_background=True, measure_information=True
        )
        async with desk.bridge.generate(request) as events:
            await collect(events)
    return desk


async def test_a_document_beyond_the_context_is_left_out_by_name(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk()
    desk.reader.start()
    document_id = await desk.read(TEXT * 3)
    document = desk.library.get(TENANT, document_id)
    assert "context_length_exceeded" in document.progress.note and "4096" in document.progress.note
    assert document.error is None and desk.engine.stats().num_prompt_tokens == 0
    assert desk.status(await desk.read("A short one is read behind it.")) is DocumentStatus.READY
    assert desk.engine.stats().num_prompt_tokens > 0


async def test_reading_stops_when_the_document_goes_and_leaves_nothing(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk()
    document_id = desk.library.put(TEXT, is_to_be_read=True)
    desk.reader.start()
    await desk.until(lambda: desk.engine.stats().num_prompt_tokens > 2 * PIECE)
    desk.library.delete(TENANT, document_id)
    desk.library.to_be_read.remove(document_id)
    await desk.until(lambda: not desk.engine.stats().num_running)
    await desk.read("Another one is read.")
    ids = document_ids(desk.engine.tokenizer, TEXT)
    assert await desk.bridge.call(lambda engine: engine.checkpoints.path((TENANT, WINDOW), ids)) == []
    assert desk.vault.get(TENANT, f"document:{document_id}") is None


async def test_a_disk_without_room_leaves_the_document_askable(
    new_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_desk()

    def full(*_: object, **__: object) -> None:
        raise SessionStorageFull("no room")

    monkeypatch.setattr(desk.vault, "commit_turn", full)
    desk.reader.start()
    document = desk.library.get(TENANT, await desk.read())
    assert document.status is DocumentStatus.READY and "SessionStorageFull" in document.progress.note


async def test_a_question_goes_before_a_reading(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk()
    document_id = desk.library.put(TEXT, is_to_be_read=True)
    desk.reader.start()
    await desk.until(lambda: desk.engine.stats().num_prompt_tokens > 0)
    request = GenerationRequest("ask", tuple(range(300, 340)), SamplingParams(max_tokens=3, temperature=0.0))
    async with desk.bridge.generate(request) as events:
        await collect(events)
    assert desk.status(document_id) is DocumentStatus.READING


def test_documents_are_read_under_a_window() -> None:
    assert reading_policy(WINDOW) == WINDOW
    assert reading_policy(AttentionPolicy()).name is PolicyName.WINDOW
