"""What holds for requests to any route: HEAD, and bodies that come packed."""

import gzip
import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fakes_server import WorldMaker, open_client

from server.logs import FIELDS

KEY = "fano-0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/docs", "/v1/models", "/v1/documents", "/v1/documents/doc_9"):
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    assert (await client.head("/v1/ask")).status_code == 405


async def test_the_head_of_a_stream_ends(client: httpx.AsyncClient) -> None:
    document = (await client.post("/v1/documents", json={"text": "The lease of the mill began in May."})).json()
    head = await client.head(f"/v1/documents/{document['id']}/events")
    assert head.status_code == 200 and head.headers["content-type"].startswith("text/event-stream")


async def test_a_packed_body_is_refused_by_its_header(client: httpx.AsyncClient) -> None:
    body = json.dumps({"documents": ["doc_1"], "question": "Who?"}).encode()
    for encoding, status in (("gzip", 415), ("identity", 404), ("", 404)):
        packed = gzip.compress(body) if status == 415 else body
        reply = await client.post("/v1/ask", content=packed, headers=JSON | {"Content-Encoding": encoding})
        assert reply.status_code == status, reply.text
    reply = await client.post("/v1/documents", files={"file": ("a.txt", b"x")}, headers={"Content-Encoding": "br"})
    assert reply.status_code == 415
    assert "Content-Encoding is 'br'" in reply.json()["error"]["message"]


async def test_a_body_that_is_announced_as_too_large_is_not_waited_for(new_world: WorldMaker) -> None:
    async def piece() -> AsyncIterator[bytes]:
        yield b"{}"  # alone it is a 400

    async with open_client(new_world(max_request_bytes=5000)) as client:
        for length, status in ((5000, 400), (5001, 413), (10**30, 413)):
            reply = await client.post("/v1/ask", content=piece(), headers=JSON | {"Content-Length": str(length)})
            assert reply.status_code == status, reply.text


async def test_a_name_that_is_encoded_is_read(client: httpx.AsyncClient) -> None:
    for number, (disposition, name) in enumerate(
        (
            ("filename*=UTF-8''%e2%82%ac%20list.md", "€ list.md"),
            ("filename*=UTF-8''a.md; filename=\"b.md\"", "b.md"),
            ("filename*=none''x.md", "x.md"),
            ("filename*=y.md", "y.md"),
        )
    ):
        part = f'--X\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\nText {number}.\r\n--X--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=X"}
        reply = await client.post("/v1/documents", content=part.encode(), headers=headers)
        assert (reply.status_code, reply.json()["name"]) == (202, name)


async def test_the_log_names_the_tenant(new_world: WorldMaker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.middleware")
    async with open_client(new_world(api_key=KEY)) as client:
        for method in ("GET", "HEAD"):
            for key, tenant in ((KEY, "default"), ("wrong", None)):
                caplog.clear()
                await client.request(method, "/v1/models", headers={"Authorization": f"Bearer {key}"})
                (line,) = (record for record in caplog.records if record.getMessage() == "request")
                assert (fields := getattr(line, FIELDS))["tenant"] == tenant and fields["path"] == "/v1/models"
