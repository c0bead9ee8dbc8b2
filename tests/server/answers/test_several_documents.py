"""One question, several documents whose texts differ in their values only: each is cited as itself."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import World, WorldMaker, open_client

from model.tokenizer import Tokenizer
from retrieval.embedder import HashEmbedder
from retrieval.library import Library

TALK = "They spoke of the weather, of the roads, of the price of coal and of what was to be had in town. " * 7
WEEKS = {"north.txt": "4 weeks", "south.txt": "6 weeks", "harbour.txt": "9 weeks"}
KEYS = {"north.txt": "KX-1001", "south.txt": "KX-1001", "harbour.txt": "KX-2002"}


def lease(name: str) -> str:
    # One is far longer than the others, and says more of what is asked.
    more = [f"Whoever gives notice for a period gives notice in week {week}. {TALK}" for week in range(40)]
    end = "\n\n".join(more) if name == "south.txt" else ""
    return f"{TALK}\n\nNotice period: {WEEKS[name]}\n\n{TALK}\n\nThe key of the gate is {KEYS[name]}.\n\n{end}"


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    opened = Library.open(tmp_path / "library", HashEmbedder(dimension=64))
    yield opened
    opened.close()


@pytest.fixture
def documents(library: Library, tmp_path: Path) -> dict[str, str]:
    """Ids by name."""
    ids = {}
    for name in WEEKS:
        (tmp_path / name).write_text(lease(name))
        document, _ = library.add("default", name, "text/plain", tmp_path / name)
        library.process(document.id)
        ids[name] = document.id
    return ids


@pytest.fixture
def world(new_world: WorldMaker, library: Library) -> World:
    return new_world(library=library)


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(world) as client:
        yield client


async def ask(client: httpx.AsyncClient, documents: dict[str, str], question: str, **fields: Any) -> Any:
    body = {"documents": list(documents.values()), "question": question, **fields}
    reply = await client.post("/v1/ask", json=body)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    names = {document: name for name, document in documents.items()}
    for one in (*told["citations"], *told["sources"]):
        assert lease(names[one["document"]])[one["start"] : one["end"]] == one.get("quote", one.get("text"))
    return told


def cited(told: Any, documents: dict[str, str]) -> dict[str, str]:
    names = {document: name for name, document in documents.items()}
    numbers = {source["number"]: source["document"] for source in told["sources"]}
    assert all(numbers[citation["source"]] == citation["document"] for citation in told["citations"])
    return {names[citation["document"]]: citation["quote"] for citation in told["citations"]}


async def test_what_stands_under_one_key_in_all_is_told_for_each(
    client: httpx.AsyncClient, documents: dict[str, str]
) -> None:
    told = await ask(client, documents, "What is the notice period?", recall="verbatim")
    assert cited(told, documents) == WEEKS
    assert "the key stands in 3 places with 3 different values" in told["usage"]["fano"]["retrieval"]["note"]


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What is the notice period in north.txt?", ["north.txt"]),
        ("What is the notice period in the harbour?", ["harbour.txt"]),
        ("Compare the notice period of North and South.", ["north.txt", "south.txt"]),
        ("How does the notice period differ?", ["north.txt", "south.txt", "harbour.txt"]),
    ],
)
async def test_of_the_documents_named_or_compared_each_is_quoted_and_no_other(
    client: httpx.AsyncClient, documents: dict[str, str], question: str, names: list[str]
) -> None:
    told = await ask(client, documents, question, recall="verbatim")
    assert cited(told, documents) == {name: WEEKS[name] for name in names}


async def test_a_named_document_without_the_key_hides_no_other(
    client: httpx.AsyncClient, documents: dict[str, str]
) -> None:
    told = await ask(client, documents, "Where does KX-2002 stand, in north.txt?", recall="verbatim")
    assert {source["document"] for source in told["sources"] if "KX-2002" in source["text"]} == {
        documents["harbour.txt"]
    }


async def test_each_document_compared_stands_in_the_prompt(
    client: httpx.AsyncClient, world: World, documents: dict[str, str], tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("It is 4 weeks there, 6 weeks here and 9 weeks at the harbour.")
    told = await ask(client, documents, "What is the notice for, compared in each document?")
    assert {source["document"] for source in told["sources"][:3]} == set(documents.values())
    assert told["usage"]["fano"]["retrieval"]["note"].count("; each of the 3 documents asked has its share") == 1
    prompt = tokenizer.decode(world.engine.requests[0].prompt_ids)
    assert all(source["text"] in prompt for source in told["sources"][:3])


async def test_without_names_the_documents_stand_by_rank(client: httpx.AsyncClient, documents: dict[str, str]) -> None:
    told = await ask(client, documents, "Who gives notice for a week?")
    assert {source["document"] for source in told["sources"]} == {documents["south.txt"]}


async def test_equal_keys_lead_into_every_document_that_has_them(
    client: httpx.AsyncClient, documents: dict[str, str]
) -> None:
    told = await ask(client, documents, "Which gate has the key KX-1001?")
    first = [source["document"] for source in told["sources"][:1]] + [
        copy["document"] for copy in told["sources"][0]["also"]
    ]
    both = {source["document"] for source in told["sources"] if "KX-1001" in source["text"]} | set(first)
    assert both >= {documents["north.txt"], documents["south.txt"]}
