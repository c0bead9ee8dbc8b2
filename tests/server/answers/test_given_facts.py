"""Facts that a request brings along: always in the prompt, values under their keys, refused where they do not stand."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client, serving

from model.config import ReadingUnit
from model.engine.request import EvidenceSpan
from model.tokenizer import Tokenizer

TEXT = "The porter keeps the key in a globe. The boat sails at nine. The captain is Ida Blom. Nobody saw the parrot."
WHO: Any = [{"role": "user", "content": "Where is the parrot?"}]


def chat(document: str, *facts: dict[str, str], question: str = "Where is the parrot?", **fano: Any) -> dict[str, Any]:
    options = {"documents": [document], "facts": list(facts), **fano}
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], "fano": options}


@pytest.mark.parametrize("reads", list(ReadingUnit))
async def test_a_fact_stands_in_the_prompt_before_what_was_found(
    new_world: WorldMaker, tokenizer: Tokenizer, reads: ReadingUnit
) -> None:
    world = new_world(reads=reads)
    document = world.library.put(TEXT)
    async with open_client(world) as client:
        reply = await client.post("/v1/chat/completions", json=chat(document, {"text": "sails at nine"}))
    assert reply.status_code == 200, reply.text
    prompt = tokenizer.decode(world.engine.requests[0].prompt_ids)
    assert "[1] The boat sails at nine.\n\n[2] Nobody saw the parrot.\n\nQuestion:" in prompt


async def test_facts_of_one_sentence_are_one_source_and_small_talk_does_not_leave_them_out(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document = world.library.put(TEXT)
    facts = [{"text": "nine"}, {"text": "boat"}]
    body = (await client.post("/v1/chat/completions", json=chat(document, *facts, question="Thanks!"))).json()
    assert body["usage"]["fano"]["retrieval"]["passages"] == 1
    assert "[1] The boat sails at nine.\n\nQuestion: Thanks!" in tokenizer.decode(world.engine.requests[0].prompt_ids)


async def test_a_question_for_its_key_gets_the_fact(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    fact = {"text": "Ida Blom", "key": "Person in charge"}
    body = {"facts": [fact], "recall": "verbatim", "question": "Who is the PERSON in charge?"}
    told = (await client.post(f"/v1/documents/{document}/ask", json=body)).json()
    assert told["answer"] == "Ida Blom" and world.engine.requests == []
    (citation,) = told["citations"]
    assert TEXT[citation["start"] : citation["end"]] == "Ida Blom"
    other = {**body, "question": "What does nobody do with the parrot?"}
    await client.post(f"/v1/documents/{document}/ask", json=other)
    assert world.engine.requests[0].evidence == ("The captain is Ida Blom.", "Nobody saw the parrot.")


async def test_a_fact_may_be_quoted(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("nine", spans=(EvidenceSpan(0, 18, 22),))
    reply = await client.post("/v1/chat/completions", json=chat(document, {"text": "boat"}, recall="verbatim"))
    message = reply.json()["choices"][0]["message"]
    assert message["content"] == "nine"
    assert TEXT[message["annotations"][0]["start_char"] : message["annotations"][0]["end_char"]] == "nine"


@pytest.mark.parametrize(
    ("fact", "param", "told"),
    [
        ({"text": "sails at ten"}, "fano.facts.1.text", "'sails at ten', which stands in none of the documents"),
        ({"text": "boat", "key": "??"}, "fano.facts.1.key", "'??'"),
        ({"text": " "}, "fano.facts.1.text", ""),
        ({"text": "boat", "note": "x"}, "fano.facts.1.note", ""),
        ({"text": "x" * 2001}, "fano.facts.1.text", ""),
    ],
)
async def test_a_fact_that_cannot_be_is_refused_by_name(
    client: httpx.AsyncClient, world: World, fact: dict[str, str], param: str, told: str
) -> None:
    document = world.library.put(TEXT)
    reply = await client.post("/v1/chat/completions", json=chat(document, {"text": "boat"}, fact))
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param and told in reply.json()["error"]["message"]
    assert world.engine.requests == []


async def test_facts_without_documents_are_refused(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": WHO, "fano": {"facts": [{"text": "boat"}]}}
    reply = await client.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "fano.facts")


async def test_facts_that_do_not_fit_are_refused_with_both_numbers(client: httpx.AsyncClient, world: World) -> None:
    sentence = f"The list has {', '.join(f'x{number}' for number in range(800))}"
    document = world.library.put(f"{sentence}. {TEXT}")
    reply = await client.post("/v1/chat/completions", json=chat(document, {"text": "The list has"}))
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "fano.facts")
    assert "fano.facts have" in error["message"] and "2048" in error["message"]


@pytest.fixture
def official(world: World) -> Iterator[openai.OpenAI]:
    with serving(world.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_the_official_client_brings_facts(official: openai.OpenAI, world: World) -> None:
    document = world.library.put(TEXT)
    fano = {"documents": [document], "recall": "verbatim", "facts": [{"text": "nine", "key": "DEP-1"}]}
    asked: Any = [{"role": "user", "content": "What is DEP-1?"}]
    reply = official.chat.completions.create(model=MODEL, messages=asked, extra_body={"fano": fano})
    assert reply.choices[0].message.content == "nine"
    with pytest.raises(openai.BadRequestError) as refused:
        wrong = {**fano, "facts": [{"text": "ten"}]}
        official.chat.completions.create(model=MODEL, messages=asked, extra_body={"fano": wrong})
    assert refused.value.param == "fano.facts.0.text"
