"""Readings of documents as sessions: made, read on, forked, and gone without a trace when the document is."""

import asyncio
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_engine import WINDOW
from fakes_server import MODEL, World, WorldMaker, open_client

from model.engine.request import GenerationRequest, SamplingParams
from model.tokenizer import Tokenizer
from retrieval.errors import UnknownDocument
from server.services import Services

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
QUESTION = [{"role": "user", "content": "Who paid invoice QX-7741-B?"}]


@pytest.fixture
async def client(world: World) -> Any:
    async with open_client(world) as client:
        yield client


def services_of(world: World) -> Services:
    services: Services = world.app.state.fano.services
    return services


async def read(world: World, tokenizer: Tokenizer, document: str, is_complete: bool = True) -> "array[int]":
    """The model reads the document, all of it or half."""
    ids = array("i", tokenizer.encode_chat([{"role": "user", "content": TEXT}], False))
    part = ids if is_complete else ids[: len(ids) // 2]
    services = services_of(world)
    request = GenerationRequest(f"read.{len(part)}", part, SamplingParams(max_tokens=0), is_background=True)
    async with services.bridge.generate(request) as events:
        async for _ in events:
            pass
    await services.readings.put_document("default", document, part, is_complete=is_complete)
    return part


async def ask(client: httpx.AsyncClient, session: str, **fano: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": QUESTION, "fano": {"session": session, **fano}}
    return await client.post("/v1/chat/completions", json=body)


async def fork(client: httpx.AsyncClient, document: str, to: str) -> httpx.Response:
    return await client.post(f"/v1/sessions/document:{document}/fork", json={"to": to})


def error_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


async def test_a_reading_is_listed_saved_and_forked_but_not_talked_to(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document = world.library.put(TEXT)
    ids = await read(world, tokenizer, document)
    (listed,) = (await client.get("/v1/sessions")).json()["data"]
    assert (listed["name"], listed["documents"]) == (f"document:{document}", [document])
    assert (listed["num_tokens"], listed["state_tokens"], listed["status"]) == (len(ids), len(ids), "resident")
    assert (await client.post(f"/v1/sessions/document:{document}/save")).json()["saved_version"] == 2
    refused = await ask(client, f"document:{document}")
    assert error_of(refused) == (400, "session_of_document") and "/fork" in refused.json()["error"]["message"]
    forked = await fork(client, document, "talk")
    assert forked.status_code == 201 and forked.json()["documents"] == [document]
    assert (await ask(client, "talk")).status_code == 200
    prompt = list(world.engine.requests[-1].prompt_ids)
    assert prompt[: len(ids)] == list(ids)
    assert tokenizer.decode(prompt[len(ids) :]) == QUESTION[0]["content"]
    # The whole conversation again: the document still stands before it, and is not part of it.
    assert (await ask(client, "talk")).status_code == 200
    assert list(world.engine.requests[-1].prompt_ids) == prompt


async def test_a_fork_knows_its_document_in_a_later_process(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world()
    async with open_client(world) as client:
        document = world.library.put(TEXT)
        ids = await read(world, tokenizer, document)
        await fork(client, document, "talk")
        await ask(client, "talk")
        prompt = list(world.engine.requests[-1].prompt_ids)
    later = new_world()
    async with open_client(later) as client:
        await ask(client, "talk")
        assert list(later.engine.requests[-1].prompt_ids) == prompt and prompt[: len(ids)] == list(ids)


async def test_half_a_reading_cannot_be_forked_and_is_read_on(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world()
    async with open_client(world) as client:
        document = world.library.put(TEXT)
        half = await read(world, tokenizer, document, is_complete=False)
        assert error_of(await fork(client, document, "talk")) == (409, "session_reading")
        await services_of(world).readings.save("default", f"document:{document}")
    later = new_world()
    later.library.documents.update(world.library.documents)
    async with open_client(later) as client:
        readings = services_of(later).readings
        assert not readings.is_read("default", document)
        assert await readings.open_document("default", document) == half
        assert list(later.engine.checkpoints.kept.values()) == ["host"]
        whole = await read(later, tokenizer, document)
        assert readings.is_read("default", document)
        assert await readings.open_document("default", document) == whole
        assert (await fork(client, document, "talk")).status_code == 201
        later.engine.parts["weights"] = "others"
        assert await readings.open_document("default", document) is None


async def test_a_deleted_document_is_not_read_on(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    document = world.library.put(TEXT)
    await read(world, tokenizer, document, is_complete=False)
    assert (await client.delete(f"/v1/documents/{document}")).status_code == 200
    with pytest.raises(UnknownDocument):
        await read(world, tokenizer, document)
    assert (await client.get("/v1/sessions")).json()["data"] == []


async def test_progress_waits_while_the_reading_is_in_use(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document = world.library.put(TEXT)
    await read(world, tokenizer, document, is_complete=False)
    register = services_of(world).readings._register
    with register.occupied("default", f"document:{document}"):
        going = asyncio.create_task(read(world, tokenizer, document))
        await asyncio.sleep(0.1)
        assert not going.done()
    await going
    assert services_of(world).readings.is_read("default", document)
    with register.occupied("default", f"document:{document}"):
        deleting = asyncio.create_task(client.delete(f"/v1/documents/{document}"))
        await asyncio.sleep(0.1)
        assert not deleting.done()
    assert (await deleting).status_code == 200


async def test_sessions_that_contain_a_document_are_named_and_go_only_with_cascade(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document, other = world.library.put(TEXT), world.library.put("Nothing of note.")
    await read(world, tokenizer, document)
    await fork(client, document, "talk")
    await ask(client, "asked", documents=[document])
    await ask(client, "unrelated")
    refused = await client.delete(f"/v1/documents/{document}")
    assert error_of(refused) == (409, "document_in_use")
    assert "'asked', 'talk'" in refused.json()["error"]["message"] and "cascade=true" in refused.text
    assert (await client.get(f"/v1/documents/{document}")).status_code == 200
    assert (await client.delete(f"/v1/documents/{other}")).status_code == 200
    assert (await client.delete(f"/v1/documents/{document}?cascade=true")).status_code == 200
    assert [each["name"] for each in (await client.get("/v1/sessions")).json()["data"]] == ["unrelated"]
    assert error_of(await client.delete(f"/v1/documents/{document}")) == (404, "document_not_found")


async def test_a_session_in_use_keeps_the_document_and_all_its_sessions(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document = world.library.put(TEXT)
    await read(world, tokenizer, document)
    await fork(client, document, "a")
    await fork(client, document, "b")
    with services_of(world).readings._register.occupied("default", "b"):
        assert error_of(await client.delete(f"/v1/documents/{document}?cascade=true")) == (409, "session_busy")
    assert [each["name"] for each in (await client.get("/v1/sessions")).json()["data"]] == [
        "a",
        "b",
        f"document:{document}",
    ]
    assert (await client.get(f"/v1/documents/{document}")).status_code == 200


async def test_an_answer_from_a_document_that_was_deleted_meanwhile_is_not_remembered(
    client: httpx.AsyncClient, world: World
) -> None:
    document = world.library.put(TEXT)
    world.engine.stall()
    asking = asyncio.create_task(ask(client, "asked", documents=[document]))
    while not world.engine.requests:
        await asyncio.sleep(0.002)
    assert (await client.delete(f"/v1/documents/{document}")).status_code == 200
    world.engine.go_on()
    assert error_of(await asking) == (404, "document_not_found")
    assert (await client.get("/v1/sessions")).json()["data"] == []
    assert not [each for each in (world.settings.data_dir / "sessions").rglob("*") if each.is_file()]


def files(directory: Path) -> Iterator[bytes]:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path.read_bytes() + str(path).encode()


async def test_nothing_of_a_deleted_document_is_on_disk_or_in_the_engine(
    new_world: WorldMaker, tokenizer: Tokenizer
) -> None:
    world = new_world()
    name = "margarethe-dossier.txt"
    async with open_client(world) as client:
        document = world.library.put(TEXT, name)
        ids = await read(world, tokenizer, document)
        await client.post(f"/v1/sessions/document:{document}/save")
        await fork(client, document, "talk")
        await ask(client, "talk")
        await client.post("/v1/sessions/talk/save")
        await ask(client, "asked", documents=[document])
        run = ids[4:12].tobytes()
        assert any(run in content for content in files(world.settings.data_dir / "sessions"))
        assert any(tuple(ids) == kept for _, kept in world.engine.checkpoints.kept)
        assert (await client.delete(f"/v1/documents/{document}?cascade=true")).status_code == 200
        traces = [TEXT[4:20].encode(), run, name.encode(), document.encode()]
        for content in files(world.settings.data_dir):
            assert not any(trace in content for trace in traces)
        for _, kept in world.engine.checkpoints.kept:
            assert run not in array("i", kept).tobytes()
            assert "Margarethe" not in tokenizer.decode(kept)


async def test_a_deleted_session_leaves_the_document_to_others(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document = world.library.put(TEXT)
    ids = await read(world, tokenizer, document)
    await fork(client, document, "talk")
    await ask(client, "talk")
    others = (*ids, 77, 78)
    world.engine.checkpoints.keep(("default", WINDOW), others)
    assert (await client.delete("/v1/sessions/talk")).status_code == 200
    assert [kept for _, kept in world.engine.checkpoints.kept] == [tuple(ids), others]
    assert (await fork(client, document, "again")).json()["state_tokens"] == len(ids)


async def test_a_fork_that_a_later_process_took_up_goes_with_the_document(
    new_world: WorldMaker, tokenizer: Tokenizer
) -> None:
    world = new_world()
    async with open_client(world) as client:
        document = world.library.put(TEXT)
        await read(world, tokenizer, document)
        await client.post(f"/v1/sessions/document:{document}/save")
        for name in ("a", "b"):
            await fork(client, document, name)
    later = new_world()
    later.library.documents.update(world.library.documents)
    later.library.texts.update(world.library.texts)
    async with open_client(later) as client:
        for name in ("a", "b"):
            assert (await ask(client, name)).status_code == 200
        assert len(later.engine.checkpoints.kept) == 2
        assert (await client.delete(f"/v1/documents/{document}?cascade=true")).status_code == 200
        assert later.engine.checkpoints.kept == {}


async def test_a_damaged_manifest_that_mentions_the_document_goes_too(
    new_world: WorldMaker, tokenizer: Tokenizer
) -> None:
    world = new_world()
    async with open_client(world) as client:
        document = world.library.put(TEXT)
        await read(world, tokenizer, document)
    (path,) = [each for each in (world.settings.data_dir / "sessions" / "manifests").rglob("*") if each.is_file()]
    path.write_bytes(path.read_bytes()[:-5])
    later = new_world()
    later.library.documents.update(world.library.documents)
    later.library.texts.update(world.library.texts)
    async with open_client(later) as client:
        assert (await client.delete(f"/v1/documents/{document}")).status_code == 200
        assert not [each for each in (world.settings.data_dir / "sessions").rglob("*") if each.is_file()]
