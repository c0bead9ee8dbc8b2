"""A question limited to a part of a document: only that is searched, given, cited and told; errors name the field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client

from model.tokenizer import Tokenizer
from retrieval.embedder import HashEmbedder
from retrieval.library import Library

TENANT = "default"
PAGES = "The porter has the lantern. The tower is shut.\fThe captain has the lantern. Rain fell.\fNobody has it."
BOOK = "# 1. The house\nThe porter has the lantern.\n# 2. The tower\nThe captain has the lantern.\n"
AT = {"start": PAGES.index("The captain"), "end": PAGES.index(" Rain")}
FILLER = (
    "They spoke of other matters at some length, of the weather, of the roads and of what was to be had in town. " * 6
)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    opened = Library.open(tmp_path / "library", HashEmbedder(dimension=64))
    yield opened
    opened.close()


def put(library: Library, folder: Path, text: str, name: str) -> str:
    (folder / "upload").write_text(text)
    document, _ = library.add(TENANT, name, "text/markdown", folder / "upload")
    library.process(document.id)
    return document.id


def told(reply: httpx.Response) -> Any:
    assert reply.status_code == 200, reply.text
    return reply.json()


def asks(documents: list[str], question: str = "Who has the lantern?", **fields: Any) -> dict[str, Any]:
    return {"documents": documents, "question": question, **fields}


@pytest.mark.parametrize(
    ("text", "part", "quote"),
    [
        (PAGES, AT, "The captain has the lantern."),
        (PAGES, {"first_page": 2, "last_page": 3}, "The captain has the lantern."),
        (BOOK, {"heading": "the tower"}, "The captain has the lantern."),
    ],
)
async def test_only_the_part_is_searched_and_stands_in_the_prompt(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer, text: str, part: dict[str, Any], quote: str
) -> None:
    document = world.library.put(text)
    body = told(await client.post("/v1/ask", json=asks([document], within=[part])))
    assert quote in body["sources"][0]["text"]
    retrieval = body["usage"]["fano"]["retrieval"]
    (span,) = retrieval["within"]
    assert span["document"] == document and quote in text[span["start"] : span["end"]]
    assert "porter" not in tokenizer.decode(world.engine.requests[0].prompt_ids)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Who has the lantern?"}]}
    fano = {"documents": [document], "within": [{"document": document, **part}], "fact_kinds": ["date", "amount"]}
    usage = told(await client.post("/v1/chat/completions", json={**chat, "fano": fano}))["usage"]
    assert usage["fano"]["retrieval"]["within"] == [span]
    assert usage["fano"]["retrieval"]["fact_kinds"] == ["amount", "date"]
    assert world.engine.requests[1].prompt_ids == world.engine.requests[0].prompt_ids
    whole = told(await client.post("/v1/ask", json=asks([document])))
    assert whole["usage"]["fano"]["retrieval"]["within"] is None and "porter" in whole["sources"][0]["text"]


@pytest.mark.parametrize(
    ("text", "part", "words"),
    [
        (PAGES, AT, "1 passage of characters {start} to {end} of 'note.txt'."),
        (PAGES, {"first_page": 1, "last_page": 1}, "2 passages of page 1 of 'note.txt'."),
        (PAGES, {"first_page": 2, "last_page": 3}, "3 passages of pages 2 to 3 of 'note.txt'."),
        (BOOK, {"heading": "2. The tower"}, "2 passages of the section '2. The tower' of 'note.txt'."),
    ],
)
async def test_not_found_says_what_was_searched(
    client: httpx.AsyncClient, world: World, text: str, part: dict[str, Any], words: str
) -> None:
    document = world.library.put(text)
    body = told(await client.post(f"/v1/documents/{document}/ask", json={"question": "Penguins?", "within": [part]}))
    assert body["found"] is False and body["answer"].endswith(f"Searched {words.format(**AT)}")


async def test_one_document_in_part_beside_another_as_a_whole(client: httpx.AsyncClient, world: World) -> None:
    one, two = world.library.put(PAGES, name="one.txt"), world.library.put("The cook has the lantern.", name="two.txt")
    part = {"document": one, "first_page": 3, "last_page": 3}
    body = told(await client.post("/v1/ask", json=asks([one, two], within=[part])))
    assert [source["name"] for source in body["sources"]] == ["two.txt"]
    nothing = told(await client.post("/v1/ask", json=asks([one, two], "Penguins?", within=[part])))
    assert nothing["answer"].endswith("of page 3 of 'one.txt' and 'two.txt'.")


async def test_facts_of_the_request_stand_in_the_part(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(PAGES)
    part = {"first_page": 2, "last_page": 2}
    outside = await client.post("/v1/ask", json=asks([document], within=[part], facts=[{"text": "The porter"}]))
    error = outside.json()["error"]
    assert outside.status_code == 400 and error["param"] == "facts.0.text"
    assert "stands in none of the parts of documents asked" in error["message"]
    inside = told(await client.post("/v1/ask", json=asks([document], within=[part], facts=[{"text": "Rain"}])))
    assert "Rain" in inside["sources"][0]["text"] and "porter" not in inside["sources"][0]["text"]


@pytest.mark.parametrize(
    ("text", "within", "param", "words"),
    [
        (PAGES, [{}], "within.0", "expected one of start and end, first_page and last_page, or heading"),
        (PAGES, [{"start": 3}], "within.0", "expected one of start and end"),
        (PAGES, [{"start": 3, "end": 9, "heading": "x"}], "within.0", "expected one of start and end"),
        (PAGES, [{"start": 9, "end": 9}], "within.0", "expected start, which is 9, before end, which is 9"),
        (PAGES, [{"first_page": 3, "last_page": 2}], "within.0", "first_page, which is 3, not after last_page, 2"),
        (
            PAGES,
            [{"start": 9, "end": 900}],
            "within.0.end",
            f"is 900, but 'note.txt' has {len(PAGES)} characters; end there",
        ),
        (PAGES, [{"first_page": 2, "last_page": 4}], "within.0.last_page", "is 4, but 'note.txt' has 3 pages"),
        (BOOK, [{"first_page": 1, "last_page": 1}], "within.0.first_page", "has no pages; name the part by start"),
        (BOOK, [{"heading": "Moat"}], "within.0.heading", "use one of those there are: '1. The house', '2. The tower'"),
        (PAGES, [{"heading": "Moat"}], "within.0.heading", "it has none; name the part by start and end"),
        (
            PAGES,
            [{"start": 0, "end": 9}] * 2,
            "within.1",
            "another part of 'note.txt'; send one part for each document",
        ),
        (PAGES, [{"document": "doc_x", "start": 0, "end": 9}], "within.0.document", "not among the documents asked"),
        (PAGES, [], "within", "has 0 items, expected at least 1"),
    ],
)
async def test_a_part_that_there_is_not_is_refused_by_name(
    client: httpx.AsyncClient, world: World, text: str, within: Any, param: str, words: str
) -> None:
    reply = await client.post("/v1/ask", json=asks([world.library.put(text)], within=within))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param) and words in error["message"]


async def test_other_limits_are_refused_by_name(client: httpx.AsyncClient, world: World) -> None:
    one, two = world.library.put(PAGES), world.library.put(BOOK)
    part = {"start": 0, "end": 9}

    async def refusal(path: str, body: dict[str, Any]) -> tuple[str, str]:
        reply = await client.post(path, json=body)
        assert reply.status_code == 400
        return reply.json()["error"]["param"], reply.json()["error"]["message"]

    param, message = await refusal("/v1/ask", asks([one, two], within=[part]))
    assert param == "within.0.document" and "2 documents are asked; name the one" in message
    param, message = await refusal("/v1/ask", asks([one], within=[part], start="document"))
    assert param == "start" and "leave out one of them" in message
    param, message = await refusal("/v1/ask", asks([one], fact_kinds=["date", "person"]))
    assert (
        param == "fact_kinds.1"
        and "is 'person', expected a kind of facts that keys lead to: identifier, amount" in message
    )
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}]}
    for name, value in (("within", [part]), ("fact_kinds", ["date"])):
        param, message = await refusal("/v1/chat/completions", {**chat, "fano": {name: value}})
        assert param == f"fano.{name}" and "needs fano.documents" in message
    fano = {"documents": [one], "within": [part], "start": "document"}
    assert (await refusal("/v1/chat/completions", {**chat, "fano": fano}))[0] == "fano.start"


async def test_a_library_finds_the_value_of_the_section_asked(
    new_world: WorldMaker, library: Library, tmp_path: Path
) -> None:
    sections = [f"## Lease {number}\n\nNotice period: {number + 3} weeks\n\n{FILLER}" for number in range(1, 9)]
    text = "# Leases\n\n" + "\n\n".join(sections)
    document = put(library, tmp_path, text, "leases.md")
    async with open_client(new_world(library=library)) as client:
        ask = asks([document], "What is the notice period?", recall="verbatim")
        everything = told(await client.post("/v1/ask", json=ask))
        assert len(everything["answer"].splitlines()) == 5
        one = told(await client.post("/v1/ask", json={**ask, "within": [{"heading": "Lease 7"}]}))
    assert one["answer"] == "10 weeks"
    (citation,) = one["citations"]
    assert text[citation["start"] : citation["end"]] == "10 weeks"
    (span,) = one["usage"]["fano"]["retrieval"]["within"]
    assert text[span["start"] : span["end"]] == sections[6].strip()
    assert span["start"] <= citation["start"] and citation["end"] <= span["end"]
