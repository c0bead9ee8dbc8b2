"""Files, uploads and vector stores, with every helper that uploads and waits, by the official client."""

from pathlib import Path
from typing import Any

import openai
import pytest
from conformance.driver import covers, done, listed

TEXT = b"The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp on 5 March 2024."


def file_of(name: str = "ledger.txt", text: bytes = TEXT) -> Any:
    return (name, text, "text/plain")


async def new_file(client: Any, name: str = "ledger.txt", text: bytes = TEXT) -> Any:
    return await done(client.files.create(file=file_of(name, text), purpose="assistants"))


async def new_store(client: Any, **options: Any) -> Any:
    return await done(client.vector_stores.create(name="ledgers", **options))


@covers("files.create", "files.retrieve", "files.list", "files.content", "files.delete", "files.wait_for_processing")
async def test_files(client: Any) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    made = await done(client.files.create(file=file_of(), purpose="user_data", expires_after=expiry))
    assert (made.filename, made.bytes, made.purpose) == ("ledger.txt", len(TEXT), "user_data")
    assert made.expires_at == made.created_at + 3600
    assert await done(client.files.retrieve(made.id)) == made
    assert (await done(client.files.wait_for_processing(made.id, poll_interval=0.01))).status == "processed"
    assert (await done(client.files.content(made.id))).content == TEXT
    others = [await new_file(client, f"{place}.txt", b"%d" % place) for place in range(3)]
    ids = [each.id for each in await listed(client.files.list(limit=2, order="asc", purpose="assistants"))]
    assert [each for each in ids if each in {other.id for other in others}] == [other.id for other in others]
    deleted = await done(client.files.delete(made.id))
    assert deleted.deleted is True and deleted.id == made.id
    with pytest.raises(openai.NotFoundError):
        await done(client.files.retrieve(made.id))


@covers("files.retrieve_content")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_the_old_name_of_content(client: Any) -> None:
    made = await new_file(client)
    assert await done(client.files.retrieve_content(made.id)) == TEXT.decode()


@covers("uploads.create", "uploads.parts.create", "uploads.complete", "uploads.cancel")
async def test_uploads_in_parts(client: Any) -> None:
    options: Any = {"bytes": len(TEXT), "filename": "parts.txt", "mime_type": "text/plain", "purpose": "assistants"}
    upload = await done(client.uploads.create(**options))
    parts = [await done(client.uploads.parts.create(upload.id, data=piece)) for piece in (TEXT[:40], TEXT[40:])]
    ended = await done(client.uploads.complete(upload.id, part_ids=[part.id for part in parts]))
    assert ended.status == "completed" and ended.file is not None
    assert (await done(client.files.content(ended.file.id))).content == TEXT
    given_up = await done(client.uploads.create(**options))
    assert (await done(client.uploads.cancel(given_up.id))).status == "cancelled"


@covers("uploads.upload_file_chunked")
async def test_the_upload_helper(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "chunked.txt"
    path.write_bytes(TEXT)
    ended = await done(
        client.uploads.upload_file_chunked(file=path, mime_type="text/plain", purpose="assistants", part_size=30)
    )
    assert ended.file is not None and (await done(client.files.content(ended.file.id))).content == TEXT


@covers(
    "vector_stores.create",
    "vector_stores.retrieve",
    "vector_stores.update",
    "vector_stores.list",
    "vector_stores.delete",
)
async def test_stores(client: Any) -> None:
    expiry: Any = {"anchor": "last_active_at", "days": 7}
    store = await new_store(client, expires_after=expiry, metadata={"team": "audit"})
    assert store.expires_at == store.last_active_at + 7 * 86_400
    assert (await done(client.vector_stores.retrieve(store.id))).metadata == {"team": "audit"}
    assert (await done(client.vector_stores.update(store.id, name="new"))).name == "new"
    assert store.id in [each.id for each in await listed(client.vector_stores.list(limit=1))]
    assert (await done(client.vector_stores.delete(store.id))).deleted is True
    with pytest.raises(openai.NotFoundError):
        await done(client.vector_stores.retrieve(store.id))


@covers("vector_stores.search", "vector_stores.files.upload_and_poll")
async def test_search(client: Any) -> None:
    store = await new_store(client)
    for year in (2023, 2024):
        attributes: Any = {"year": year, "kind": "ledger"}
        text = b"In %d invoice QX-7741-B was paid by Margarethe Oldenkamp." % year
        upload = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=file_of(f"{year}.txt", text), attributes=attributes, poll_interval_ms=10
        )
        assert (await done(upload)).status == "completed"
    query = "Who paid invoice QX-7741-B?"
    found = await listed(client.vector_stores.search(store.id, query=query))
    assert {each.filename for each in found} == {"2023.txt", "2024.txt"} and all(0 <= each.score <= 1 for each in found)
    filters: Any = {
        "type": "and",
        "filters": [{"type": "gte", "key": "year", "value": 2024}, {"type": "eq", "key": "kind", "value": "ledger"}],
    }
    options: Any = {"ranking_options": {"ranker": "auto", "score_threshold": 0.0}, "max_num_results": 1}
    (only,) = await listed(client.vector_stores.search(store.id, query=query, filters=filters, **options))
    assert only.attributes == {"year": 2024, "kind": "ledger"} and "Margarethe Oldenkamp" in only.content[0].text


@covers(
    *("vector_stores.files.create", "vector_stores.files.poll", "vector_stores.files.retrieve"),
    *("vector_stores.files.list", "vector_stores.files.update", "vector_stores.files.content"),
    *("vector_stores.files.delete",),
)
async def test_files_of_a_store(client: Any) -> None:
    store, file = await new_store(client), await new_file(client)
    files = client.vector_stores.files
    strategy: Any = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
    begun = await done(files.create(vector_store_id=store.id, file_id=file.id, chunking_strategy=strategy))
    assert begun.id == file.id
    ended = await done(files.poll(file.id, vector_store_id=store.id, poll_interval_ms=10))
    assert ended.status == "completed" and ended.last_error is None
    assert ended.chunking_strategy.model_dump() == strategy
    assert await done(files.retrieve(file.id, vector_store_id=store.id)) == ended
    changed = await done(files.update(file.id, vector_store_id=store.id, attributes={"year": 2024}))
    assert changed.attributes == {"year": 2024}
    assert [each.id for each in await listed(files.list(store.id, filter="completed"))] == [file.id]
    content = await listed(files.content(file.id, vector_store_id=store.id))
    assert "".join(each.text for each in content) == TEXT.decode()
    assert (await done(files.delete(file.id, vector_store_id=store.id))).deleted is True
    assert (await done(client.files.retrieve(file.id))).id == file.id


@covers("vector_stores.files.create_and_poll", "vector_stores.files.upload")
async def test_files_that_are_waited_for(client: Any) -> None:
    store, file = await new_store(client), await new_file(client)
    files = client.vector_stores.files
    ended = await done(files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=10))
    assert ended.status == "completed"
    sent = await done(files.upload(vector_store_id=store.id, file=file_of("second.txt", TEXT + b" Twice.")))
    assert (await done(files.poll(sent.id, vector_store_id=store.id, poll_interval_ms=10))).status == "completed"
    counts = (await done(client.vector_stores.retrieve(store.id))).file_counts
    assert (counts.completed, counts.total) == (2, 2)


async def test_a_file_that_cannot_be_read_ends_the_wait_too(client: Any) -> None:
    store = await new_store(client)
    picture = ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(200), "image/png")
    upload = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=picture, poll_interval_ms=10)
    ended = await done(upload)
    assert ended.status == "failed" and ended.last_error.code == "unsupported_file"


@covers(
    *("vector_stores.file_batches.create", "vector_stores.file_batches.retrieve", "vector_stores.file_batches.poll"),
    *("vector_stores.file_batches.list_files", "vector_stores.file_batches.cancel"),
)
async def test_batches(client: Any) -> None:
    batches, store = client.vector_stores.file_batches, await new_store(client)
    files = [await new_file(client, f"{place}.txt", b"Number %d. " % place + TEXT) for place in range(3)]
    begun = await done(batches.create(store.id, file_ids=[file.id for file in files]))
    ended = await done(batches.poll(begun.id, vector_store_id=store.id, poll_interval_ms=10))
    assert (ended.status, ended.file_counts.completed) == ("completed", 3)
    assert await done(batches.retrieve(begun.id, vector_store_id=store.id)) == ended
    of_batch = await listed(batches.list_files(begun.id, vector_store_id=store.id, limit=2, order="asc"))
    assert [each.id for each in of_batch] == [file.id for file in files]
    late = await done(batches.create(store.id, file_ids=[(await new_file(client, "late.txt", b"Late.")).id]))
    assert (await done(batches.cancel(late.id, vector_store_id=store.id))).id == late.id


@covers("vector_stores.file_batches.create_and_poll", "vector_stores.file_batches.upload_and_poll")
async def test_batches_that_are_waited_for(client: Any) -> None:
    batches, store = client.vector_stores.file_batches, await new_store(client)
    ended = await done(
        batches.upload_and_poll(
            store.id,
            files=[file_of(f"{place}.txt", b"Sent %d. " % place + TEXT) for place in range(3)],
            poll_interval_ms=10,
        )
    )
    assert (ended.file_counts.completed, ended.file_counts.in_progress) == (3, 0)
    files: Any = [{"file_id": (await new_file(client, "own.txt", b"Own. " + TEXT)).id, "attributes": {"year": 2024}}]
    ended = await done(batches.create_and_poll(store.id, files=files, poll_interval_ms=10))
    assert ended.file_counts.completed == 1
