"""Facts over HTTP, over a library as it is: listed, pinned once, unpinned; every refusal names its field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import WorldMaker, open_client

from retrieval.embedder import HashEmbedder
from retrieval.library import Library

TEXT = "Die 🙂 Rechnung INV-77 kam am 5. März 2024. The blue boat sank at noon.\n"
TENANT = "default"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """In place of the fake one; the app closes it."""
    library = Library.open(tmp_path / "library", HashEmbedder(dimension=16))
    monkeypatch.setattr("fakes_server.FakeLibrary", lambda: library)
    yield library


def put(library: Library, tmp_path: Path, tenant: str = TENANT, process: bool = True) -> str:
    path = tmp_path / "upload"
    path.write_bytes(TEXT.encode())
    document, _ = library.add(tenant, "notes.txt", "text/plain", path)
    if process:
        library.process(document.id)
    return f"/v1/documents/{document.id}/facts"


async def listed(client: httpx.AsyncClient, url: str, **query: Any) -> Any:
    reply = await client.get(url, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_facts_are_pinned_listed_and_unpinned(library: Library, new_world: WorldMaker, tmp_path: Path) -> None:
    url = put(library, tmp_path)
    start = TEXT.index("blue boat")
    pin = {"start": start, "end": start + 9, "key": "Vessel"}
    async with open_client(new_world()) as client:
        first = await client.post(url, json=pin)
        assert first.status_code == 201, first.text
        fact = first.json()
        sentence = TEXT.index("The blue")
        assert fact == {
            "id": fact["id"],
            "object": "fact",
            "kind": "pin",
            "text": "blue boat",
            "start": start,
            "end": start + 9,
            "keys": ["Vessel", "vessel", "blue boat", "blueboat"],
            "key": "Vessel",
            "source": "user",
            "score": 1.0,
            "evidence": {"start": sentence, "end": len(TEXT) - 1},
            "page": None,
        }
        again = await client.post(url, json=pin)
        assert (again.status_code, again.json()) == (200, fact)
        page = await listed(client, url)
        assert [each["text"] for each in page["data"]] == ["INV-77", "5. März 2024", "blue boat"]
        assert all(TEXT[each["start"] : each["end"]] == each["text"] for each in page["data"])
        assert (page["has_more"], page["dropped"]) == (False, {})
        part = await listed(client, url, limit=2)
        assert part["has_more"] and part["last_id"] == page["data"][1]["id"]
        assert (await listed(client, url, after=part["last_id"]))["data"] == page["data"][2:]
        assert [each["text"] for each in (await listed(client, url, key="inv 77"))["data"]] == ["INV-77"]
        assert [each["id"] for each in (await listed(client, url, kind="pin"))["data"]] == [fact["id"]]
        assert [each["text"] for each in (await listed(client, url, source="date"))["data"]] == ["5. März 2024"]
        recognised = await client.delete(f"{url}/{page['first_id']}")
        assert recognised.status_code == 409 and recognised.json()["error"]["code"] == "fact_not_pinned"
        assert "'code'" in recognised.json()["error"]["message"]
        gone = await client.delete(f"{url}/{fact['id']}")
        assert (gone.status_code, gone.json()["deleted"]) == (200, True)
        missing = await client.delete(f"{url}/{fact['id']}")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "fact_not_found")


@pytest.mark.parametrize(
    ("pin", "param", "told"),
    [
        ({"start": 0, "end": 1000}, "end", f"end is 1000, but the text has {len(TEXT)} characters"),
        ({"start": 5, "end": 5}, "start", "start is 5"),
        ({"start": 9, "end": 2}, "start", "start is 9"),
        ({"start": 3, "end": 4}, "start", "blank"),
        ({"start": -1, "end": 2}, "start", "-1"),
        ({"start": 0, "end": 2, "key": "?"}, "key", ""),
        ({"start": 0, "end": 2, "note": 1}, "note", ""),
    ],
)
async def test_a_pin_that_cannot_be_is_refused_by_field(
    library: Library, new_world: WorldMaker, tmp_path: Path, pin: dict[str, Any], param: str, told: str
) -> None:
    url = put(library, tmp_path)
    async with open_client(new_world()) as client:
        reply = await client.post(url, json=pin)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"] == param and told in reply.json()["error"]["message"]
        assert (await listed(client, url, kind="pin"))["data"] == []


async def test_nothing_of_another_tenant_and_nothing_before_there_is_text(
    library: Library, new_world: WorldMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "pending", lambda most=-1: [])
    url, theirs = put(library, tmp_path, process=False), put(library, tmp_path, "other", process=False)
    async with open_client(new_world()) as client:
        pin = {"start": 0, "end": 3}
        refused = [
            await client.get(theirs),
            await client.post(theirs, json=pin),
            await client.delete(f"{theirs}/fact_0"),
        ]
        assert [each.status_code for each in refused] == [404] * 3
        early = await client.post(url, json=pin)
        assert early.status_code == 409, early.text
        assert early.json()["error"]["code"] == "document_not_ready"
        bad = await client.get(url, params={"kind": "colour"})
        assert bad.status_code == 400 and "colour" in bad.text
