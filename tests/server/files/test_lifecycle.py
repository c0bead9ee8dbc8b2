"""Files and the documents made of them, over a real library: shared, kept, collected, expired, and taken up again."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_bridge import until
from fakes_server import World, WorldMaker, open_client

from retrieval.embedder import HashEmbedder
from retrieval.errors import StoreInvalid
from retrieval.library import Library
from server.files.database import SCHEMA, FilesDatabase
from server.files.errors import FileUnanswerable
from server.files.file_table import FileTable
from server.files.files import Files
from server.files.membership import Membership
from server.services import Services

LEASE = "The lease of the mill began in May. Rent for plot QX-7741-B is paid by Margarethe Oldenkamp."
LOG = "The lamp of tower seven was lit. Keeper Brannigan tends it."
OpenWorld = Callable[[], Any]


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def open_world(new_world: WorldMaker, tmp_path: Path) -> OpenWorld:
    """A client of a server over a real library; the same data directory every time."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[httpx.AsyncClient, World]]:
        world = new_world(library=Library.open(tmp_path / "data", HashEmbedder(dimension=16)))
        async with open_client(world) as client:
            yield client, world

    return opened


def services_of(world: World) -> Services:
    services: Services = world.app.state.fano.services
    return services


async def send(client: httpx.AsyncClient, text: str = LEASE, name: str = "lease.txt", **fields: str) -> str:
    reply = await client.post(
        "/v1/files", files={"file": (name, text.encode())}, data={"purpose": "assistants"} | fields
    )
    assert reply.status_code == 200, reply.text
    file_id: str = reply.json()["id"]
    return file_id


async def new_store(client: httpx.AsyncClient, *file_ids: str, **fields: Any) -> str:
    reply = await client.post("/v1/vector_stores", json={"file_ids": list(file_ids)} | fields)
    assert reply.status_code == 200, reply.text
    store_id: str = reply.json()["id"]
    return store_id


async def status(client: httpx.AsyncClient, store: str, file_id: str) -> str:
    """Once it is not under way any more."""
    for _ in range(500):
        reply = (await client.get(f"/v1/vector_stores/{store}/files/{file_id}")).json()
        if reply["status"] != "in_progress":
            told: str = reply["status"]
            return told
        await asyncio.sleep(0.02)
    raise AssertionError(reply)


async def documents(client: httpx.AsyncClient) -> list[str]:
    return [each["id"] for each in (await client.get("/v1/documents")).json()["data"]]


async def found(client: httpx.AsyncClient, store: str, query: str = "Who pays for plot QX-7741-B?") -> list[str]:
    reply = await client.post(f"/v1/vector_stores/{store}/search", json={"query": query})
    assert reply.status_code == 200, reply.text
    return [hit["file_id"] for hit in reply.json()["data"]]


def blobs(world: World) -> list[Path]:
    return [path for path in (world.settings.data_dir / "files").rglob("*") if path.is_file()]


async def test_files_of_one_content_share_a_document_that_goes_with_the_last(open_world: OpenWorld) -> None:
    async with open_world() as (client, world):
        one, two = await send(client), await send(client, name="copy.txt")
        assert len(blobs(world)) == 1

        async def own_bytes() -> int:
            """Beside the tables."""
            pools = (await client.get("/v1/memory")).json()["disk"]["pools"]
            tables = [path.stat().st_size for path in world.settings.data_dir.glob("files.sqlite3*")]
            return int(pools["files"]) - sum(tables)

        assert await own_bytes() == len(LEASE)
        store = await new_store(client, one, two)
        assert [await status(client, store, each) for each in (one, two)] == ["completed"] * 2
        (document,) = await documents(client)
        assert set(await found(client, store)) == {one, two}
        # Once on the disk: what the library has is what was sent.
        (blob,) = [path for path in (world.settings.data_dir / "blobs").rglob("*") if path.is_file()]
        assert blob.samefile(blobs(world)[0]) and blob.stat().st_nlink == 2
        assert await own_bytes() == 0
        assert (await client.delete(f"/v1/files/{one}")).status_code == 200
        assert await found(client, store) == [two] and await documents(client) == [document]
        assert (await client.delete(f"/v1/files/{two}")).json()["deleted"]
        assert await documents(client) == [] and blobs(world) == [] and await found(client, store) == []
        assert [path for path in (world.settings.data_dir / "blobs").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_document_that_was_also_sent_as_one_stays(open_world: OpenWorld, is_first: bool) -> None:
    async with open_world() as (client, _):
        post = {"json": {"text": LEASE, "name": "lease.txt"}}
        if is_first:
            assert (await client.post("/v1/documents", **post)).status_code == 202
        file = await send(client)
        store = await new_store(client, file)
        assert await status(client, store, file) == "completed"
        (document,) = await documents(client)
        if not is_first:
            assert (await client.post("/v1/documents", **post)).json()["id"] == document
        await client.delete(f"/v1/files/{file}")
        assert await documents(client) == [document]
        # And it is nobody's file any more: the next one starts anew, with the same document.
        again = await send(client)
        assert await status(client, await new_store(client, again), again) == "completed"
        assert await documents(client) == [document]


async def test_a_document_that_is_deleted_fails_in_its_stores(open_world: OpenWorld) -> None:
    async with open_world() as (client, _):
        file = await send(client)
        store = await new_store(client, file)
        assert await status(client, store, file) == "completed"
        (document,) = await documents(client)
        assert (await client.delete(f"/v1/documents/{document}")).status_code == 200
        reply = (await client.get(f"/v1/vector_stores/{store}/files/{file}")).json()
        assert reply["status"] == "failed" and reply["last_error"]["code"] == "server_error"
        assert await found(client, store) == []
        assert (await client.post(f"/v1/vector_stores/{store}/files", json={"file_id": file})).status_code == 200
        assert await status(client, store, file) == "completed" and await found(client, store) == [file]


async def test_a_document_of_a_session_is_kept_until_the_session_goes(open_world: OpenWorld) -> None:
    async with open_world() as (client, world):
        file = await send(client)
        await status(client, await new_store(client, file), file)
        (document,) = await documents(client)
        body = {"model": "fake-reader", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4}
        talk = {"fano": {"documents": [document], "session": "talk"}}
        assert (await client.post("/v1/chat/completions", json=body | talk)).status_code == 200
        assert (await client.delete(f"/v1/files/{file}")).status_code == 200
        assert await documents(client) == [document]
        assert (await client.delete("/v1/sessions/talk")).status_code == 200
        await services_of(world).files._collect()
        assert await documents(client) == []


async def test_the_document_of_a_file_is_made_and_waited_for(open_world: OpenWorld) -> None:
    async with open_world() as (client, world):
        file = await send(client)
        made = await services_of(world).files.document_of_file("default", file)
        assert (await documents(client), made.filename) == ([made.document_id], "lease.txt")
        library = services_of(world).library
        assert library.get("default", made.document_id).answerable
        store = await new_store(client, file, metadata={"a": "b"})
        assert await status(client, store, file) == "completed"
        assert await services_of(world).files.documents_of_stores("default", [store]) == [
            type(made)(made.document_id, file, "lease.txt", {}, store)
        ]


async def test_what_has_expired_is_gone(open_world: OpenWorld) -> None:
    async with open_world() as (client, world):
        anchor = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        short, long = await send(client, **anchor), await send(client, LOG, "log.txt")
        store = await new_store(client, short, long, expires_after={"anchor": "last_active_at", "days": 1})
        upload = (
            await client.post(
                "/v1/uploads", json={"bytes": 4, "filename": "a", "mime_type": "text/plain", "purpose": "evals"}
            )
        ).json()
        assert (await client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"abcd"})).status_code == 200
        assert [await status(client, store, each) for each in (short, long)] == ["completed"] * 2
        files: Files = services_of(world).files
        start = files.now()
        files._database.now = lambda: start + 3601
        assert (await client.get(f"/v1/files/{short}")).status_code == 404
        assert [each["id"] for each in (await client.get("/v1/files")).json()["data"]] == [long]
        assert await found(client, store) == [long]
        assert (await client.get(f"/v1/vector_stores/{store}")).json()["file_counts"]["total"] == 1
        late = await client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"abcd"})
        assert (late.status_code, late.json()["error"]["code"]) == (400, "upload_not_pending")
        assert "expired" in late.json()["error"]["message"]
        await asyncio.to_thread(files.table.discard_unwanted)
        await files._collect()
        assert len(blobs(world)) == 1 and len(await documents(client)) == 1
        files._database.now = lambda: start + 3601 + 86_400
        assert (await client.get(f"/v1/vector_stores/{store}")).json()["status"] == "expired"
        files._database.now = lambda: start + 32 * 86_400
        await asyncio.to_thread(files.table.forget_places)
        assert (await client.post(f"/v1/uploads/{upload['id']}/cancel")).status_code == 404
        refused = await client.post(f"/v1/vector_stores/{store}/search", json={"query": "lamp"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "vector_store_expired")


async def test_use_keeps_a_store_alive(open_world: OpenWorld) -> None:
    async with open_world() as (client, world):
        store = await new_store(client, expires_after={"anchor": "last_active_at", "days": 1})
        files: Files = services_of(world).files
        start = files.now()
        for hours in (20, 40, 60):
            files._database.now = lambda hours=hours: start + 3600 * hours
            assert await found(client, store) == []
        told = (await client.get(f"/v1/vector_stores/{store}")).json()
        assert told["status"] == "completed" and told["expires_at"] == int(start + 3600 * 60) + 86_400


POINTS = {
    "before the document is meant": (FileTable, "intend", False),
    "before the document is made": (FileTable, "intend", True),
    "before its stores are told": (Membership, "settle", False),
    "after its stores were told": (Membership, "settle", True),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("is_posted", [False, True])
async def test_a_crash_between_two_steps_loses_nothing(
    open_world: OpenWorld, monkeypatch: pytest.MonkeyPatch, point: str, is_posted: bool
) -> None:
    owner, name, is_after = POINTS[point]
    real = getattr(owner, name)
    crashed = threading.Event()

    def crash(self: Any, *arguments: Any) -> None:
        if is_after:
            real(self, *arguments)
        crashed.set()
        raise Crash

    async with open_world() as (client, _):
        if is_posted:
            assert (await client.post("/v1/documents", json={"text": LEASE})).status_code == 202
        file, other = await send(client), await send(client, LOG, "log.txt")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, crash)
            store = await new_store(client, file, other)
            await until(crashed.is_set)
    async with open_world() as (client, world):
        assert [await status(client, store, each) for each in (file, other)] == ["completed"] * 2
        assert (await found(client, store))[0] == file
        assert (await client.get(f"/v1/files/{file}/content")).text == LEASE
        assert len(await documents(client)) == 2
        for each in (file, other):
            assert (await client.delete(f"/v1/files/{each}")).status_code == 200
        # Whose the document is was not forgotten.
        assert len(await documents(client)) == is_posted
        with closing(sqlite3.connect(world.settings.data_dir / "files.sqlite3")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_a_crash_while_a_document_goes_is_made_good(
    open_world: OpenWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as (client, _):
        file = await send(client)
        await status(client, await new_store(client, file), file)

        async def nothing(self: Files) -> None:
            return None

        with monkeypatch.context() as patch:
            patch.setattr(Files, "_collect", nothing)
            assert (await client.delete(f"/v1/files/{file}")).status_code == 200
        assert len(await documents(client)) == 1
    async with open_world() as (client, _):
        for _ in range(100):
            if await documents(client) == []:
                break
            await asyncio.sleep(0.02)
        assert await documents(client) == []


async def test_a_document_that_went_while_nobody_looked_is_told(
    open_world: OpenWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as (client, _):
        file = await send(client)
        store = await new_store(client, file)
        assert await status(client, store, file) == "completed"
        (document,) = await documents(client)
        with monkeypatch.context() as patch:
            patch.setattr(FileTable, "forget_document", lambda *arguments: None)
            assert (await client.delete(f"/v1/documents/{document}")).status_code == 200
    async with open_world() as (client, _):
        assert (await client.get(f"/v1/vector_stores/{store}/files/{file}")).json()["status"] == "failed"


async def test_bytes_that_nobody_refers_to_are_swept_at_the_start(open_world: OpenWorld) -> None:
    async with open_world() as (client, world):
        file = await send(client)
        (kept,) = blobs(world)
        stray = kept.with_name("0" * 64)
        stray.write_bytes(b"cut off")
    async with open_world() as (client, world):
        assert blobs(world) == [kept]
        assert (await client.get(f"/v1/files/{file}/content")).content == LEASE.encode()


def test_a_file_of_a_newer_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "files.sqlite3"
    FilesDatabase(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(SCHEMA.steps) + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreInvalid, match="newer version"):
        FilesDatabase(path)
    assert path.read_bytes() == before
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreInvalid, match="cannot be read"):
        FilesDatabase(path)


async def test_a_file_that_grows_too_large_is_refused_while_it_is_read(new_world: WorldMaker) -> None:
    world = new_world(max_upload_bytes=1000)
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        while num_sent < 10_000_000:
            num_sent += 10_000
            yield b"x" * 10_000

    async with open_client(world) as client:
        reply = await client.post(
            "/v1/files", content=endless(), headers={"content-type": "multipart/form-data; boundary=X"}
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
        assert list(world.settings.data_dir.rglob("upload-*")) == [] and blobs(world) == []


async def test_a_full_disk_is_told_and_keeps_nothing(world: World, client: httpx.AsyncClient, monkeypatch: Any) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval.blobs.Blobs.keep", full)
    reply = await client.post("/v1/files", files={"file": ("a.txt", b"a")}, data={"purpose": "evals"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "storage_full")
    assert (await client.get("/v1/files")).json()["data"] == [] and blobs(world) == []


async def test_many_at_once_on_one_content(open_world: OpenWorld) -> None:
    """Files, stores and documents of the same bytes come and go together: nothing fails, and nothing is left."""
    async with open_world() as (client, world):

        async def life(number: int) -> None:
            for _ in range(4):
                if number % 4 == 0:
                    reply = await client.post("/v1/documents", json={"text": LEASE})
                    assert reply.status_code in (200, 202)
                    deleted = await client.delete(f"/v1/documents/{reply.json()['id']}")
                    assert deleted.status_code in (200, 404)
                    continue
                file = await send(client, name=f"{number}.txt")
                store = await new_store(client, file)
                if number % 4 == 1:
                    await services_of(world).files.document_of_file("default", file)
                told = await status(client, store, file)
                assert told in ("completed", "failed")
                assert len(await found(client, store)) in (0, 1)
                assert (await client.delete(f"/v1/files/{file}")).status_code == 200

        async with asyncio.timeout(60):
            done = await asyncio.gather(*map(life, range(8)), return_exceptions=True)
        # A document that somebody deletes may be missed by one who waits for it, and by nobody else.
        assert [each for each in done if each is not None and not isinstance(each, FileUnanswerable)] == []
        for file in (await client.get("/v1/files")).json()["data"]:
            assert (await client.delete(f"/v1/files/{file['id']}")).status_code == 200
        for document in await documents(client):
            assert (await client.delete(f"/v1/documents/{document}")).status_code == 200
        assert blobs(world) == [] and services_of(world).files.table.documents() == []


async def test_results_are_scored_cut_and_as_many_as_asked_for(open_world: OpenWorld) -> None:
    async with open_world() as (client, _):
        rows = [f"Tower TW-{number} has a lamp that burns {number} nights.\n\n" for number in range(400)]
        one, two = await send(client, "".join(rows), "towers.txt"), await send(client)
        store = await new_store(client, one, two)
        assert [await status(client, store, each) for each in (one, two)] == ["completed"] * 2

        async def search(**fields: Any) -> list[Any]:
            body = {"query": ["How long burns the lamp of tower TW-77?", "Who pays the rent?"]} | fields
            reply = await client.post(f"/v1/vector_stores/{store}/search", json=body)
            assert reply.status_code == 200, reply.text
            return list(reply.json()["data"])

        hits = await search(max_num_results=50)
        scores = [hit["score"] for hit in hits]
        assert len(hits) > 5 and scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
        assert "TW-77 has a lamp that burns 77 nights" in hits[0]["content"][0]["text"]
        places = {(hit["file_id"], hit["start_char"], hit["end_char"]) for hit in hits}
        assert len(places) == len(hits)
        for hit in hits:
            text = (await client.get(f"/v1/vector_stores/{store}/files/{hit['file_id']}/content")).json()["data"]
            assert text[0]["text"][hit["start_char"] : hit["end_char"]] == hit["content"][0]["text"]
        for most in (1, 3):
            few = await search(max_num_results=most)
            assert len(few) == most and "burns 77 nights" in few[0]["content"][0]["text"]
        threshold = scores[len(scores) // 2]
        cut = await search(max_num_results=50, ranking_options={"score_threshold": threshold})
        assert cut == [hit for hit in hits if hit["score"] >= threshold] and len(cut) < len(hits)
