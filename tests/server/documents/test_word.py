"""A Word document on its whole way: posted, read, asked, quoted; and what is none is told apart before it is kept."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docx
import httpx
import pytest
from fakes_server import World, WorldMaker, open_client

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.parsers import DOCX

TALK = "They spoke of the weather, of the roads, of the price of coal and of what was to be had in town. " * 4


def contract() -> bytes:
    document = docx.Document()
    document.add_heading("Lease", 1)
    for _ in range(20):
        document.add_paragraph(TALK)
    document.add_heading("Terms", 2)
    document.add_paragraph("Notice period: 6 weeks")
    table = document.add_table(rows=0, cols=2)
    for row in (("Room", "Rent"), ("Cellar of the mill", "EUR 240"), ("Loft", "EUR 310")):
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    for _ in range(20):
        document.add_paragraph(TALK)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "some notes\n" * 2000)
    return buffer.getvalue()


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    opened = Library.open(tmp_path / "library", HashEmbedder(dimension=64))
    yield opened
    opened.close()


@pytest.fixture
def world(new_world: WorldMaker, library: Library) -> World:
    return new_world(library=library)


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(world) as client:
        yield client


async def read(client: httpx.AsyncClient, name: str, data: bytes, declared: str = DOCX) -> Any:
    """The document once it is ready or has failed."""
    reply = await client.post("/v1/documents", files={"file": (name, data, declared)})
    assert reply.status_code == 202 and reply.json()["media_type"] == DOCX, reply.text
    while (document := (await client.get(reply.headers["location"])).json())["status"] not in ("ready", "failed"):
        await asyncio.sleep(0.01)
    return document


@pytest.mark.parametrize("declared", [DOCX, "application/octet-stream"])
async def test_a_posted_contract_is_answered_with_its_own_words(client: httpx.AsyncClient, declared: str) -> None:
    document = await read(client, "lease.docx", contract(), declared)
    assert document["status"] == "ready", document["error"]
    text = (await client.get(f"/v1/documents/{document['id']}/text")).json()["text"]
    for question, value in (("What is the notice period?", "6 weeks"), ("Cellar of the mill?", "EUR 240")):
        body = {"documents": [document["id"]], "question": question, "recall": "verbatim"}
        told = (await client.post("/v1/ask", json=body)).json()
        assert told["found"] and any(value in citation["quote"] for citation in told["citations"]), told
        for citation in told["citations"]:
            assert text[citation["start"] : citation["end"]] == citation["quote"]


async def test_what_word_cannot_open_either_has_failed_and_says_why(client: httpx.AsyncClient) -> None:
    whole = contract()
    damaged = await read(client, "cut.docx", whole[: len(whole) // 2])
    assert (damaged["status"], damaged["error"]["code"]) == ("failed", "damaged")
    wrapped = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le")
    locked = await read(client, "locked.docx", wrapped)
    assert (locked["status"], locked["error"]["code"]) == ("failed", "encrypted")


async def test_another_zip_is_refused_on_every_way_in(client: httpx.AsyncClient, library: Library) -> None:
    for name in ("notes.zip", "notes.docx"):
        files = {"file": (name, plain_zip(), "application/zip")}
        refused = await client.post("/v1/documents", files=files)
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
        file = (await client.post("/v1/files", files=files, data={"purpose": "assistants"})).json()
        store = (await client.post("/v1/vector_stores", json={})).json()["id"]
        await client.post(f"/v1/vector_stores/{store}/files", json={"file_id": file["id"]})
        where = f"/v1/vector_stores/{store}/files/{file['id']}"
        while (attached := (await client.get(where)).json())["status"] == "in_progress":
            await asyncio.sleep(0.01)
        assert attached["status"] == "failed" and attached["last_error"]["code"] == "unsupported_file", attached
    assert library.list("default", None, 10) == []
