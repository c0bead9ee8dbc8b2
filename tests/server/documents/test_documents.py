"""Documents over HTTP: taken in once, watched, listed, read, deleted; limits that bite while reading."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import World, WorldMaker, open_client, sse

from retrieval.passage import DocumentError

TEXT = "Ein Satz.\r\nAnother line — with Umlaute: äöü, and 🙂.\n"


async def ready(client: httpx.AsyncClient, document_id: str) -> Any:
    while (document := (await client.get(f"/v1/documents/{document_id}")).json())["status"] not in ("ready", "failed"):
        await asyncio.sleep(0.005)
    return document


def spooled(world: World) -> list[Path]:
    return list((world.settings.data_dir / "uploads").iterdir())


async def test_a_file_is_accepted_processed_and_known_again(client: httpx.AsyncClient, world: World) -> None:
    files = {"file": ("../secret/Größe.txt", TEXT.encode(), "text/plain")}
    first = await client.post("/v1/documents", files=files)
    assert first.status_code == 202, first.text
    body = first.json()
    assert first.headers["location"] == f"/v1/documents/{body['id']}"
    assert (body["name"], body["media_type"], body["num_bytes"]) == ("Größe.txt", "text/plain", len(TEXT.encode()))
    assert body["error"] is None and body["object"] == "document"
    document = await ready(client, body["id"])
    assert document["status"] == "ready" and document["answerable"] is True
    assert document["num_characters"] == len(TEXT)
    again = await client.post("/v1/documents", files=files)
    assert (again.status_code, again.json()["id"]) == (200, body["id"])
    assert again.headers["location"] == first.headers["location"]
    assert spooled(world) == []


async def test_json_text_is_kept_as_it_is(client: httpx.AsyncClient, world: World) -> None:
    reply = await client.post("/v1/documents", json={"text": TEXT, "name": "notes.md"})
    assert reply.status_code == 202 and reply.json()["media_type"] == "text/markdown"
    await ready(client, reply.json()["id"])
    read = (await client.get(f"/v1/documents/{reply.json()['id']}/text")).json()
    assert read == {
        "document": reply.json()["id"],
        "start": 0,
        "end": len(TEXT),
        "num_characters": len(TEXT),
        "text": TEXT,
    }


async def test_text_is_cut_by_code_points_and_bad_ranges_are_refused(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    url = f"/v1/documents/{document}/text"
    smile = TEXT.index("🙂")
    assert (await client.get(url, params={"start": smile, "end": smile + 1})).json()["text"] == "🙂"
    for params, param in (
        ({"start": 5, "end": 4}, "start"),
        ({"end": len(TEXT) + 1}, "end"),
        ({"start": -1}, "start"),
        ({"start": "x"}, "start"),
        ({"stop": 3}, "stop"),
    ):
        reply = await client.get(url, params=params)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


async def test_text_before_parsing_is_a_409(client: httpx.AsyncClient, world: World) -> None:
    world.library.hold()
    document = (await client.post("/v1/documents", json={"text": TEXT})).json()["id"]
    reply = await client.get(f"/v1/documents/{document}/text")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "document_not_ready")


async def test_events_end_with_ready(new_world: WorldMaker) -> None:
    world = new_world(keepalive_seconds=0.05)
    async with open_client(world) as client:
        world.library.hold()
        document = (await client.post("/v1/documents", json={"text": TEXT})).json()["id"]
        asyncio.get_running_loop().call_later(0.3, world.library.release)
        reply = await client.get(f"/v1/documents/{document}/events")
    events = sse(reply.text)
    assert [name for name, _ in events] == ["progress", "ready"]
    assert json.loads(events[0][1])["answerable"] is False and json.loads(events[1][1])["answerable"] is True
    assert reply.text.count(": keep-alive\n\n") >= 3


async def test_events_tell_of_a_failure_and_of_a_deletion(client: httpx.AsyncClient, world: World) -> None:
    world.library.fail = DocumentError("encrypted", "the pdf has a password")
    document = (await client.post("/v1/documents", json={"text": TEXT})).json()["id"]
    failed = sse((await client.get(f"/v1/documents/{document}/events")).text)[-1]
    assert failed[0] == "failed"
    assert json.loads(failed[1])["error"] == {"code": "encrypted", "message": "the pdf has a password"}

    world.library.hold()
    document = (await client.post("/v1/documents", json={"text": "Other."})).json()["id"]
    watching = asyncio.create_task(client.get(f"/v1/documents/{document}/events"))
    await asyncio.sleep(0.05)
    world.library.delete("default", document)
    name, data = sse((await watching).text)[-1]
    assert name == "error" and json.loads(data)["error"]["code"] == "document_not_found"
    world.library.release()


async def test_a_failed_document_says_so_and_is_not_worth_a_retry(client: httpx.AsyncClient, world: World) -> None:
    world.library.fail = DocumentError("encrypted", "the pdf has a password")
    document = (await client.post("/v1/documents", json={"text": TEXT})).json()["id"]
    assert (await ready(client, document))["error"]["code"] == "encrypted"
    reply = await client.post(f"/v1/documents/{document}/ask", json={"question": "Who?"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "document_failed")
    assert reply.headers["x-should-retry"] == "false" and "password" in reply.json()["error"]["message"]


async def test_the_list_is_paged_by_a_cursor(client: httpx.AsyncClient, world: World) -> None:
    assert (await client.get("/v1/documents")).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = [world.library.put(f"Text {number}.") for number in range(5)]
    world.library.put("Not mine.", tenant="other")
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = (await client.get("/v1/documents", params=params)).json()
        data = [document["id"] for document in page["data"]]
        assert (page["first_id"], page["last_id"]) == (data[0], data[-1])
        seen += data
        if not page["has_more"]:
            break
        params["after"] = page["last_id"]
    assert seen == ids
    assert (await client.get("/v1/documents", params={"after": "doc_x"})).status_code == 404
    for bad in ({"limit": 0}, {"limit": 101}, {"offset": 3}):
        assert (await client.get("/v1/documents", params=bad)).json()["error"]["param"] == next(iter(bad))


async def test_a_deleted_document_is_gone(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    reply = await client.delete(f"/v1/documents/{document}")
    assert reply.json() == {"id": document, "object": "document.deleted", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/text"), ("GET", "/events"), ("DELETE", "")):
        reply = await client.request(method, f"/v1/documents/{document}{path}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "document_not_found")


async def test_another_tenants_document_is_unknown(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT, tenant="other")
    assert (await client.get(f"/v1/documents/{document}")).status_code == 404
    assert (await client.post("/v1/ask", json={"documents": [document], "question": "Who?"})).status_code == 404


@pytest.mark.parametrize(
    ("name", "data", "declared"),
    [
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(2000), "image/png"),
        ("archive.zip", b"PK\x03\x04" + bytes(200), "application/zip"),
        ("big.bin", bytes(20_000), "application/octet-stream"),
    ],
)
async def test_a_kind_that_is_not_read_is_a_415_before_anything_is_kept(
    client: httpx.AsyncClient, world: World, name: str, data: bytes, declared: str
) -> None:
    reply = await client.post("/v1/documents", files={"file": (name, data, declared)})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert world.library.documents == {} and spooled(world) == []


async def pieces(total: int, taken: list[int], piece: bytes = b"a" * 5000) -> AsyncIterator[bytes]:
    yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    for _ in range(total // len(piece)):
        taken.append(len(piece))
        yield piece
    yield b"\r\n--X--\r\n"


@pytest.mark.parametrize(
    ("limits", "piece", "refused_after"),
    [
        ({"max_upload_bytes": 50_000}, b"a" * 5000, 11),
        ({"max_text_characters": 40_000}, b"a" * 5000, 9),
        ({"max_text_characters": 40_000}, "ä".encode() * 2500, 17),
    ],
    ids=["bytes", "characters", "characters of two bytes"],
)
async def test_too_large_is_a_413_while_it_is_being_read(
    new_world: WorldMaker, monkeypatch: pytest.MonkeyPatch, limits: Any, piece: bytes, refused_after: int
) -> None:
    monkeypatch.setattr("server.middleware.DISCARD_BYTES", 0)  # else what follows the refusal is read and dropped
    world = new_world(**limits)
    taken: list[int] = []
    async with open_client(world) as client:
        reply = await client.post(
            "/v1/documents",
            content=pieces(10_000_000, taken, piece),
            headers={"content-type": "multipart/form-data; boundary=X"},
        )
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    limit = next(iter(limits))
    assert str(limits[limit]) in reply.json()["error"]["message"] and limit.upper() in reply.json()["error"]["message"]
    assert world.library.documents == {} and spooled(world) == []
    assert len(taken) == refused_after
    assert world.app.state.fano.metrics.registry.get_sample_value("fano_refusals_total", {"code": "too_large"}) == 1


async def test_an_announced_size_is_refused_without_reading(new_world: WorldMaker) -> None:
    world = new_world(max_upload_bytes=1000)
    async with open_client(world) as client:
        headers = {"content-type": "multipart/form-data; boundary=X", "content-length": "900000000"}
        reply = await client.post("/v1/documents", content=b"", headers=headers)
    assert reply.status_code == 413


async def test_text_in_json_has_the_same_limit(new_world: WorldMaker) -> None:
    world = new_world(max_text_characters=1000)
    async with open_client(world) as client:
        assert (await client.post("/v1/documents", json={"text": "ä" * 1001})).status_code == 413
        assert (await client.post("/v1/documents", json={"text": "ä" * 1000})).status_code == 202
        assert (await client.post("/v1/documents", json={"text": "x" * 50_000})).status_code == 413


async def test_other_bodies_have_a_limit_too(new_world: WorldMaker) -> None:
    world = new_world(max_request_bytes=2000)
    async with open_client(world) as client:
        reply = await client.post("/v1/ask", json={"documents": ["d"], "question": "q" * 3000})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
        assert "FANO_MAX_REQUEST_BYTES" in reply.json()["error"]["message"]


FORM = "multipart/form-data; boundary=X"
PART = b'--X\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\nhello\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "param"),
    [
        ("multipart/form-data", b"", None),
        (FORM, b"", "file"),
        (FORM, b"--X--\r\n", "file"),
        (FORM, b"garbage", None),
        (FORM, PART % (b"file", b'; filename="a.txt"'), "file"),
        (FORM, PART % (b"purpose", b"") + b"--X--\r\n", "purpose"),
        (FORM, (PART % (b"file", b'; filename="a"')) * 2 + b"--X--\r\n", "file"),
        (FORM, b"--X\r\nContent-Disposition: form-data\r\n\r\nhello\r\n--X--\r\n", None),
        (FORM, b"--X\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\nhello\r\n--X--\r\n", None),
        ("text/plain", b"hello", None),
        ("", b"hello", None),
        ("application/json", b"", None),
        ("application/json", b"{", None),
        ("application/json", b'{"text": "\xff"}', None),
        ("application/json", b'{"text": "\\ud800"}', None),
        ("application/json", b'{"text": ""}', "text"),
        ("application/json", b'{"text": 5}', "text"),
        ("application/json", b'{"name": "a.txt"}', "text"),
        ("application/json", b'{"text": "a", "name": " "}', "name"),
        ("application/json", b'{"text": "a", "nmae": "b"}', "nmae"),
        ("application/json", b"[" * 50_000, None),
    ],
)
async def test_a_bad_body_is_a_400(
    client: httpx.AsyncClient, world: World, content_type: str, body: bytes, param: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    reply = await client.post("/v1/documents", content=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert world.library.documents == {}


async def test_names_are_made_fit_for_people(client: httpx.AsyncClient) -> None:
    for raw, name in (("C:\\docs\\a.txt", "a.txt"), ("a\x00\x1bb.txt", "a b.txt"), ("dir/", "document")):
        reply = await client.post("/v1/documents", json={"text": f"Text of {name}.", "name": raw})
        assert reply.json()["name"] == name


@pytest.mark.parametrize(("default", "sent", "wanted"), [
    (True, None, True), (True, False, False), (False, None, False), (False, True, True),
])  # fmt: skip
async def test_whether_a_document_is_read_is_the_clients_wish_else_the_servers(
    new_world: WorldMaker, default: bool, sent: bool | None, wanted: bool
) -> None:
    world = new_world()
    async with open_client(world) as client:
        services = world.app.state.fano.services
        services.reads_documents = default
        wish = {} if sent is None else {"read": sent}
        by_json = (await client.post("/v1/documents", json={"text": TEXT, **wish})).json()["id"]
        form = {key: str(value).lower() for key, value in wish.items()}
        files = {"file": ("other.txt", b"Another text.", "text/plain")}
        by_form = (await client.post("/v1/documents", files=files, data=form)).json()["id"]
        assert world.library.to_be_read == ([by_json, by_form] if wanted else [])


@pytest.mark.parametrize("said", ["maybe", "", "t" * 100_000])
async def test_a_wish_that_is_none_is_refused(client: httpx.AsyncClient, world: World, said: str) -> None:
    files = {"file": ("other.txt", b"Another text.", "text/plain")}
    reply = await client.post("/v1/documents", files=files, data={"read": said})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "read"
    assert world.library.documents == {} and spooled(world) == []


async def test_what_was_left_out_is_told_in_the_progress(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT, is_to_be_read=True)
    world.library.end_reading(document, "not read: too long")
    view = (await client.get(f"/v1/documents/{document}")).json()
    assert (view["status"], view["error"], view["progress"]["note"]) == ("ready", None, "not read: too long")


async def test_deleting_on_a_full_disk_says_so_and_can_be_asked_for_again(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = world.library.put("The vault opens at noon.")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(world.library, "delete", no_room)
        before = await client.delete(f"/v1/documents/{document}")
    error = before.json()["error"]
    assert (before.status_code, error["code"]) == (507, "deletion_unfinished")
    assert "full, and nothing was deleted; make room" in error["message"]
    assert (await client.get(f"/v1/documents/{document}")).status_code == 200

    def half(*_: object) -> None:
        world.library.half_deleted.add(document)
        gone.append(world.library.documents.pop(document))
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    gone: list[object] = []
    with monkeypatch.context() as full:
        full.setattr(world.library, "delete", half)
        begun = await client.delete(f"/v1/documents/{document}")
    assert (
        begun.status_code == 507 and "not all of the document is off the disk yet" in begun.json()["error"]["message"]
    )
    assert (await client.get(f"/v1/documents/{document}")).status_code == 404
    again = await client.delete(f"/v1/documents/{document}")
    assert again.status_code == 200 and again.json()["deleted"] is True
    assert (await client.delete(f"/v1/documents/{document}")).status_code == 404
