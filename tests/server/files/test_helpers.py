"""Every helper of the official client for files, uploads and vector stores, sync and async, on a real socket."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes_server import World

from retrieval.passage import DocumentError
from server.files import upload_table

LEASE = b"The lease of the mill began in May. Rent is paid by Margarethe Oldenkamp."
LOG = b"The lamp of tower seven was lit. Keeper Brannigan tends it."
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("lease.txt", LEASE), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.filename, file.bytes, file.object, file.status) == ("lease.txt", len(LEASE), "file", "processed")
    assert file.id.startswith("file-") and file.expires_at == file.created_at + 3600
    assert client.files.wait_for_processing(file.id, poll_interval=60) == file
    assert client.files.content(file.id).read() == LEASE
    assert client.files.retrieve(file.id) == file
    assert list(client.files.list()) == [file]
    gone = client.files.delete(file.id)
    assert (gone.id, gone.deleted, gone.object) == (file.id, True, "file")
    with pytest.raises(openai.NotFoundError) as missing:
        client.files.retrieve(file.id)
    assert missing.value.code == "file_not_found"
    assert list(client.files.list()) == []


def test_files_are_listed_by_purpose_and_deleted_while_listed(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=(f"{n}.txt", LEASE), purpose="assistants").id for n in range(5)]
    other = client.files.create(file=("other.bin", PICTURE), purpose="vision").id
    assert [file.id for file in client.files.list(purpose="vision")] == [other]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == [*ids, other]
    for file in client.files.list(limit=2, purpose="assistants"):
        client.files.delete(file.id)
    assert [file.id for file in client.files.list()] == [other]


@pytest.mark.parametrize("part_size", [7, 1000])
def test_an_upload_in_parts(client: openai.OpenAI, tmp_path: Path, part_size: int) -> None:
    path = tmp_path / "lease.txt"
    path.write_bytes(LEASE)
    upload = client.uploads.upload_file_chunked(
        file=path,
        mime_type="text/plain",
        purpose="assistants",
        part_size=part_size,
        md5=hashlib.md5(LEASE).hexdigest(),
    )
    assert upload.status == "completed" and upload.file is not None and upload.id.startswith("upload_")
    assert (upload.file.filename, upload.file.bytes) == ("lease.txt", len(LEASE))
    assert client.files.content(upload.file.id).read() == LEASE
    in_memory = client.uploads.upload_file_chunked(
        file=LOG, filename="log.txt", bytes=len(LOG), mime_type="text/plain", purpose="user_data", part_size=part_size
    )
    assert in_memory.file is not None and client.files.content(in_memory.file.id).read() == LOG


def test_parts_are_joined_in_the_order_that_is_named(client: openai.OpenAI) -> None:
    upload = client.uploads.create(bytes=4, filename="a.txt", mime_type="text/plain", purpose="user_data")
    assert (upload.status, upload.expires_at) == ("pending", upload.created_at + 3600)
    first, second, third = (client.uploads.parts.create(upload.id, data=data).id for data in (b"cd", b"ab", b"xy"))
    with pytest.raises(openai.BadRequestError) as short:
        client.uploads.complete(upload.id, part_ids=[first])
    assert (short.value.code, short.value.param) == ("upload_mismatch", "bytes")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.uploads.complete(upload.id, part_ids=[second, first], md5="0" * 32)
    assert (wrong.value.code, wrong.value.param) == ("upload_mismatch", "md5")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.uploads.complete(upload.id, part_ids=[second, "part_none"])
    assert (unknown.value.code, unknown.value.param) == ("part_not_found", "part_ids.1")
    done = client.uploads.complete(upload.id, part_ids=[second, first], md5=hashlib.md5(b"abcd").hexdigest())
    assert done.file is not None and client.files.content(done.file.id).read() == b"abcd"
    # A client that lost the reply asks again.
    assert client.uploads.complete(upload.id, part_ids=[second, first]) == done
    for use in (
        lambda: client.uploads.parts.create(upload.id, data=b"z"),
        lambda: client.uploads.complete(upload.id, part_ids=[third]),
        lambda: client.uploads.cancel(upload.id),
    ):
        with pytest.raises(openai.BadRequestError) as late:
            use()
        assert late.value.code == "upload_not_pending"


def test_a_cancelled_upload_leaves_nothing(client: openai.OpenAI, world: World) -> None:
    upload = client.uploads.create(bytes=4, filename="a.txt", mime_type="text/plain", purpose="user_data")
    client.uploads.parts.create(upload.id, data=b"ab")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert [path for path in (world.settings.data_dir / "files").rglob("*") if path.is_file()] == []
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload.id, data=b"ab")


def test_too_large_is_413(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    with pytest.raises(openai.APIStatusError) as large:
        client.uploads.create(
            bytes=world.settings.max_upload_bytes + 1, filename="a.txt", mime_type="text/plain", purpose="user_data"
        )
    assert large.value.status_code == 413
    monkeypatch.setattr("server.routes.uploads.PART_BYTES", 10)
    monkeypatch.setattr(upload_table, "SPARE_BYTES", 0)
    upload = client.uploads.create(bytes=4, filename="a.txt", mime_type="text/plain", purpose="user_data")
    with pytest.raises(openai.APIStatusError) as part:
        client.uploads.parts.create(upload.id, data=b"x" * 11)
    assert part.value.status_code == 413
    with pytest.raises(openai.BadRequestError) as more:
        client.uploads.parts.create(upload.id, data=b"x" * 5)
    assert more.value.param == "data"


def test_a_vector_store_lives(client: openai.OpenAI) -> None:
    files = [
        client.files.create(file=(name, data), purpose="assistants").id
        for name, data in (("a.txt", LEASE), ("b.txt", LOG))
    ]
    store = client.vector_stores.create(
        name="Mills",
        description="All of them",
        file_ids=files,
        metadata={"town": "Ulm"},
        expires_after={"anchor": "last_active_at", "days": 3},
        chunking_strategy={"type": "auto"},
    )
    assert store.id.startswith("vs_") and store.file_counts.total == 2 and store.expires_after is not None
    assert store.last_active_at is not None and store.expires_at == store.last_active_at + 3 * 86400
    for file_id in files:
        assert client.vector_stores.files.poll(file_id, vector_store_id=store.id).status == "completed"
    store = client.vector_stores.retrieve(store.id)
    assert (store.status, store.usage_bytes) == ("completed", len(LEASE) + len(LOG))
    assert store.file_counts.model_dump() == {"in_progress": 0, "completed": 2, "failed": 0, "cancelled": 0, "total": 2}
    changed = client.vector_stores.update(store.id, name="Towers", metadata=None, expires_after=None)
    assert (changed.name, changed.metadata, changed.expires_at) == ("Towers", {}, None)
    assert client.vector_stores.update(store.id, metadata={"a": "b"}).name == "Towers"
    assert client.vector_stores.update(store.id, name="Mills").metadata == {"a": "b"}
    assert [each.id for each in client.vector_stores.list()] == [store.id]
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)
    assert len(list(client.files.list())) == 2


def test_files_of_a_store(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("lease.txt", LEASE), attributes={"year": 1999, "open": True}
    )
    assert (file.status, file.last_error, file.usage_bytes) == ("completed", None, len(LEASE))
    assert file.attributes == {"year": 1999, "open": True}
    assert file.chunking_strategy is not None and file.chunking_strategy.type == "other"
    changed = client.vector_stores.files.update(file.id, vector_store_id=store.id, attributes={"year": 2000})
    assert changed.attributes == {"year": 2000}
    (content,) = client.vector_stores.files.content(file.id, vector_store_id=store.id)
    assert content.text == LEASE.decode() and content.type == "text"
    waiting = client.vector_stores.files.upload(vector_store_id=store.id, file=("b.txt", LOG))
    client.vector_stores.files.poll(waiting.id, vector_store_id=store.id, poll_interval_ms=10, max_wait_seconds=20)
    listed = client.vector_stores.files.list(store.id, filter="completed", order="asc", limit=1)
    assert [each.id for each in listed] == [file.id, waiting.id]
    assert list(client.vector_stores.files.list(store.id, filter="failed")) == []
    assert client.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
    assert client.files.retrieve(file.id).id == file.id
    assert client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id).status == "completed"


def test_what_cannot_be_read_fails_by_name(client: openai.OpenAI, world: World) -> None:
    store = client.vector_stores.create()
    picture = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("a.png", PICTURE))
    assert picture.status == "failed" and picture.last_error is not None
    assert picture.last_error.code == "unsupported_file" and "a.png" in picture.last_error.message
    for code, told in (("encrypted", "invalid_file"), ("internal_error", "server_error")):
        world.library.fail = DocumentError(code, "it is locked")
        file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=(f"{code}.txt", code.encode()))
        assert file.status == "failed" and file.last_error is not None
        assert (file.last_error.code, file.last_error.message) == (told, "it is locked")
    counts = client.vector_stores.retrieve(store.id).file_counts
    assert (counts.failed, counts.total) == (3, 3)
    with pytest.raises(openai.BadRequestError) as unread:
        client.vector_stores.files.content(picture.id, vector_store_id=store.id)
    assert unread.value.code == "file_not_ready"


def test_batches(client: openai.OpenAI, world: World) -> None:
    store = client.vector_stores.create()
    old = client.files.create(file=("old.txt", b"Old words stand here."), purpose="assistants").id
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("a.txt", LEASE), ("b.txt", LOG), ("c.png", PICTURE)], file_ids=[old]
    )
    assert batch.id.startswith("vsfb_") and batch.object == "vector_store.files_batch"
    assert batch.status == "completed"
    assert batch.file_counts.model_dump() == {"in_progress": 0, "completed": 3, "failed": 1, "cancelled": 0, "total": 4}
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed")
    (failed,) = listed
    assert failed.last_error is not None and failed.last_error.code == "unsupported_file"
    own = client.vector_stores.file_batches.create_and_poll(
        store.id, files=[{"file_id": old, "attributes": {"age": 7}}, {"file_id": failed.id}]
    )
    assert (own.file_counts.completed, own.file_counts.failed) == (1, 1)
    assert client.vector_stores.files.retrieve(old, vector_store_id=store.id).attributes == {"age": 7}
    only = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[failed.id])
    assert only.status == "failed"
    assert len(list(client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=1))) == 4


def test_a_batch_that_is_cancelled_ends(client: openai.OpenAI, world: World) -> None:
    store = client.vector_stores.create()
    done = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("lease.txt", LEASE))
    world.library.hold()
    ids = [client.files.create(file=(f"{n}.txt", f"Text {n}.".encode()), purpose="assistants").id for n in range(3)]
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[done.id, *ids])
    assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 3)
    assert client.vector_stores.retrieve(store.id).status == "in_progress"
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert (cancelled.status, cancelled.file_counts.cancelled, cancelled.file_counts.completed) == ("cancelled", 3, 1)
    assert client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id) == cancelled
    assert client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id) == cancelled
    world.library.release()
    again = client.vector_stores.files.create_and_poll(ids[0], vector_store_id=store.id)
    assert again.status == "completed"


def test_a_store_is_searched(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    for name, data, year in (("lease.txt", LEASE, 1999), ("log.txt", LOG, 2005)):
        client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=(name, data), attributes={"year": year, "name": name}
        )
    page = client.vector_stores.search(store.id, query="Who tends the lamp of the tower?")
    assert page.object == "vector_store.search_results.page"
    assert page.model_extra is not None and page.model_extra["search_query"] == ["Who tends the lamp of the tower?"]
    (hit, *_) = page.data
    assert hit.filename == "log.txt" and hit.attributes == {"year": 2005, "name": "log.txt"}
    extra: Any = hit.model_extra
    assert hit.content[0].text == LOG.decode()[extra["start_char"] : extra["end_char"]]
    both = client.vector_stores.search(store.id, query=["lamp of the tower", "lease of the mill"])
    assert {hit.filename for hit in both} == {"lease.txt", "log.txt"}
    old = client.vector_stores.search(
        store.id,
        query=["lamp of the tower", "lease of the mill"],
        filters={"type": "and", "filters": [{"type": "lt", "key": "year", "value": 2000}]},
        max_num_results=1,
        rewrite_query=True,
        ranking_options={"ranker": "auto", "score_threshold": 0.0},
    )
    assert [hit.filename for hit in old] == ["lease.txt"]
    none = client.vector_stores.search(store.id, query="lamp", filters={"type": "in", "key": "year", "value": [1]})
    assert none.data == []


def test_what_is_refused_is_refused_by_name(client: openai.OpenAI) -> None:
    store = client.vector_stores.create().id
    file = client.files.create(file=("a.txt", LEASE), purpose="assistants").id
    add = client.vector_stores.files.create
    search = client.vector_stores.search
    batch = client.vector_stores.file_batches.create
    refused: list[tuple[Any, str]] = [
        (lambda: add(store, file_id=file, attributes={"a": "x" * 513}), "attributes.a"),
        (lambda: batch(store), ""),
        (lambda: search(store, query="a", filters={"type": "eq", "key": "a", "value": []}), "filters.value"),
        (lambda: search(store, query="a", max_num_results=51), "max_num_results"),
        (lambda: search(store, query="a", ranking_options={"score_threshold": 2}), "ranking_options.score_threshold"),
        (lambda: client.files.list(order="up"), "order"),  # type: ignore[arg-type]
        (lambda: client.files.list(after="file-none"), "after"),
        (lambda: client.files.create(file=b"x", purpose="x"), "purpose"),  # type: ignore[arg-type]
        (lambda: client.files.create(file=b"x", purpose="evals", expires_after={"anchor": "created_at", "seconds": 1}),
         "expires_after.seconds"),
        (lambda: client.files.create(file=b"x", purpose="evals", extra_body={"read": "true"}), "read"),
    ]  # fmt: skip
    for use, param in refused:
        with pytest.raises(openai.BadRequestError) as error:
            use()
        assert (error.value.param or "") == param, (error.value, param)
    with pytest.raises(openai.NotFoundError) as unknown:
        batch(store, file_ids=[file, "file-none"])
    assert unknown.value.param == "file_ids.1"
    assert client.vector_stores.retrieve(store).file_counts.total == 0


async def test_the_async_client_does_it_all(aclient: openai.AsyncOpenAI, world: World, tmp_path: Path) -> None:
    path = tmp_path / "lease.txt"
    path.write_bytes(LEASE)
    file = await aclient.files.create(file=path, purpose="assistants")
    assert (await aclient.files.wait_for_processing(file.id)).status == "processed"
    assert (await aclient.files.content(file.id)).read() == LEASE
    upload = await aclient.uploads.upload_file_chunked(
        file=path, mime_type="text/plain", purpose="assistants", part_size=20
    )
    assert upload.file is not None and upload.file.bytes == len(LEASE)
    store = await aclient.vector_stores.create(name="s")
    files = aclient.vector_stores.files
    assert (await files.create_and_poll(file.id, vector_store_id=store.id)).status == "completed"
    assert (await files.upload_and_poll(vector_store_id=store.id, file=("p.png", PICTURE))).status == "failed"
    later = await files.upload(vector_store_id=store.id, file=("b.txt", LOG))
    assert (await files.poll(later.id, vector_store_id=store.id)).status == "completed"
    batches = aclient.vector_stores.file_batches
    batch = await batches.upload_and_poll(store.id, files=[("c.txt", b"Some words."), ("d.png", PICTURE)])
    assert (batch.file_counts.completed, batch.file_counts.failed) == (1, 1)
    assert (await batches.create_and_poll(store.id, file_ids=[file.id])).status == "completed"
    assert (await batches.poll(batch.id, vector_store_id=store.id)).id == batch.id
    assert len([each async for each in batches.list_files(batch.id, vector_store_id=store.id, limit=1)]) == 2
    assert len([each async for each in files.list(store.id, limit=2)]) == 5
    hits = [each async for each in aclient.vector_stores.search(store.id, query="Who tends the lamp?")]
    assert hits[0].filename == "b.txt"
    assert (await files.delete(file.id, vector_store_id=store.id)).deleted
    assert (await aclient.vector_stores.delete(store.id)).deleted
    assert (await aclient.files.delete(file.id)).deleted
    assert len([each async for each in aclient.files.list(limit=2)]) == 5


def test_a_document_whose_failure_could_not_be_told_ends_failed(
    client: openai.OpenAI, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no way to go on")

    monkeypatch.setattr(world.library, "process", broken)
    store = client.vector_stores.create()
    file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("lease.txt", LEASE))
    assert file.status == "failed" and file.last_error is not None and file.last_error.code == "server_error"


def test_every_reply_is_what_the_clients_types_say(client: openai.OpenAI, world: World) -> None:
    """The client builds its objects without looking; here each is validated, and so is every item of a page."""
    files, uploads, stores = (each.with_raw_response for each in (client.files, client.uploads, client.vector_stores))
    members, batches = client.vector_stores.files.with_raw_response, client.vector_stores.file_batches.with_raw_response
    seen: dict[str, int] = {}

    def valid(reply: Any) -> Any:
        parsed, told = reply.parse(), reply.http_response.json()
        if hasattr(parsed, "data"):
            (kind,) = {type(each) for each in parsed.data}
            for each in told["data"]:
                kind.model_validate(each)
            assert isinstance(told["has_more"], bool)
        else:
            kind = type(parsed)
            kind.model_validate(told)
        seen[kind.__name__] = seen.get(kind.__name__, 0) + 1
        return parsed

    file = valid(files.create(file=("lease.txt", LEASE), purpose="user_data"))
    picture = valid(files.create(file=("p.png", PICTURE), purpose="vision"))
    valid(files.retrieve(file.id))
    valid(files.list())
    upload = valid(uploads.create(bytes=2, filename="a.txt", mime_type="text/plain", purpose="assistants"))
    part = valid(uploads.parts.create(upload.id, data=b"ab"))
    valid(uploads.complete(upload.id, part_ids=[part.id]))
    other = valid(uploads.create(bytes=2, filename="a.txt", mime_type="text/plain", purpose="assistants"))
    valid(uploads.cancel(other.id))
    days: Any = {"anchor": "last_active_at", "days": 3}
    store = valid(stores.create(name="s", expires_after=days, metadata={"a": "b"}))
    valid(stores.update(store.id, name="t"))
    valid(stores.list())
    batch = valid(batches.create(store.id, files=[{"file_id": file.id, "attributes": {"n": 1.5, "b": True, "s": "x"}}]))
    client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id)
    valid(members.create(store.id, file_id=picture.id))
    client.vector_stores.files.poll(picture.id, vector_store_id=store.id)
    valid(batches.retrieve(batch.id, vector_store_id=store.id))
    valid(batches.list_files(batch.id, vector_store_id=store.id))
    valid(batches.cancel(batch.id, vector_store_id=store.id))
    valid(members.list(store.id))
    valid(members.retrieve(file.id, vector_store_id=store.id))
    valid(members.update(file.id, vector_store_id=store.id, attributes={"n": 1}))
    valid(members.content(file.id, vector_store_id=store.id))
    valid(stores.search(store.id, query="Who pays the rent of the mill?"))
    valid(stores.retrieve(store.id))
    valid(members.delete(file.id, vector_store_id=store.id))
    valid(stores.delete(store.id))
    valid(files.delete(file.id))
    assert len(seen) == 11 and sum(seen.values()) == 26, seen
