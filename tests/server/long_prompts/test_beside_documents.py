"""Long messages together with documents: both are searched, the passages share the window, citations say from where."""

import asyncio
from typing import Any

import httpx
import pytest
from fakes_prompts import ASKED, CODE, PASTED, WINDOW, chat, progress_of, prose
from fakes_server import MODEL, World, WorldMaker, chunks

from model.engine.request import GenerationRequest
from model.tokenizer import Tokenizer

OWNER = "The Halvorsen turbine belongs to Tobias Wrenfield."


@pytest.fixture
def world(new_world: WorldMaker) -> World:
    return new_world(policy=WINDOW, read_prompts=False)


async def stored(client: httpx.AsyncClient, text: str, name: str) -> str:
    """The id of a document that can be asked."""
    made = (await client.post("/v1/documents", json={"text": text, "name": name})).raise_for_status().json()
    while not (await client.get(f"/v1/documents/{made['id']}")).json()["answerable"]:
        await asyncio.sleep(0.001)
    return str(made["id"])


@pytest.fixture
async def document(client: httpx.AsyncClient) -> str:
    return await stored(client, f"{OWNER} It stands in Oldenkamp.", "owners.txt")


async def answered(client: httpx.AsyncClient, document: str, *said: str, **more: Any) -> Any:
    fano = {"documents": [document], **more.pop("fano", {})}
    reply = await client.post("/v1/chat/completions", json=chat(*said, fano=fano, **more))
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_of(tokenizer: Tokenizer, request: GenerationRequest) -> str:
    ids = request.prompt_ids
    return b"".join((tokenizer.control_token(i) or "").encode() or tokenizer.token_bytes(i) for i in ids).decode()


async def test_both_are_searched_and_cited(
    client: httpx.AsyncClient, world: World, document: str, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("QX-7741-B of Tobias Wrenfield")
    content = f"{PASTED}\n\n{ASKED[:-1]}, and to whom does it belong?"
    reply = await answered(client, document, content, max_tokens=16)
    prompt = text_of(tokenizer, world.engine.requests[-1])
    assert CODE in prompt and OWNER in prompt and prose(60, 3) not in prompt
    assert len(world.engine.requests[-1].prompt_ids) + 16 <= WINDOW.window
    of_prompt, of_document = reply["choices"][0]["message"]["annotations"]
    assert (of_prompt["file_id"], of_prompt["message"], of_prompt["quote"]) == ("messages.0", 0, "QX-7741-B")
    assert content[of_prompt["start_char"] : of_prompt["end_char"]] == "QX-7741-B"
    assert (of_document["file_id"], of_document["filename"]) == (document, "owners.txt")
    assert of_document["quote"] == "Tobias Wrenfield" and "message" not in of_document
    fano = reply["usage"]["fano"]
    assert fano["retrieval"]["reason"] == "long_prompt" and fano["retrieval"]["passages"] >= 2
    assert fano["archive_bytes"]["text"] == len(f"{OWNER} It stands in Oldenkamp.") + len(f"{PASTED}\n\n")


async def test_a_text_that_takes_half_the_window_is_searched_and_a_short_one_is_seen(
    client: httpx.AsyncClient, world: World, document: str, tokenizer: Tokenizer
) -> None:
    reply = await answered(client, document, f"{prose(8)}\n\nTo whom does the turbine belong?", max_tokens=16)
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "question"
    assert prose(8) in text_of(tokenizer, world.engine.requests[-1])
    reply = await answered(client, document, f"{prose(20)}\n\nTo whom does the turbine belong?", max_tokens=500)
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "long_prompt"


async def test_a_long_chat_about_documents_stays_one_about_documents(client: httpx.AsyncClient, document: str) -> None:
    said = [each for number in range(9) for each in (f"What of day {number}?", prose(20, number))]
    reply = await answered(client, document, *said, "To whom does the turbine belong?")
    retrieval = reply["usage"]["fano"]["retrieval"]
    assert retrieval["reason"] == "question" and retrieval["passages"] == 1


async def test_a_text_of_an_earlier_turn_is_searched_and_answers_are_not(
    client: httpx.AsyncClient, world: World, document: str, tokenizer: Tokenizer
) -> None:
    said = [f"{PASTED}\n\nDo you know the turbine?", "The maintenance code of the Halvorsen turbine is unknown."]
    await answered(client, document, *said, ASKED, max_tokens=16, fano={"start": "prompt"})
    passages = text_of(tokenizer, world.engine.requests[-1]).partition("[1] ")[2]
    assert CODE in passages and "is unknown" not in passages and "Do you know" not in passages


async def test_nothing_found_says_what_was_searched(client: httpx.AsyncClient, world: World, document: str) -> None:
    reply = await answered(client, document, f"{PASTED}\n\nÜberfahrt nach Kiautschou?")
    said = reply["choices"][0]["message"]["content"]
    assert said.startswith("Nothing about this was found. Searched ") and "owners.txt" in said
    assert said.endswith(" passages of the prompt.") and world.engine.requests == []


async def test_facts_and_quotations_and_a_session(client: httpx.AsyncClient, world: World, document: str) -> None:
    given = {"facts": [{"text": "Oldenkamp"}], "recall": "verbatim"}
    pasted = f"{prose(60)}\n\nHalvorsen turbine: QX-7741-B\n\n{prose(60, 3)}"
    reply = await answered(client, document, f"{pasted}\n\nWhat is the Halvorsen turbine?", fano=given)
    message = reply["choices"][0]["message"]
    assert "QX-7741-B" in message["content"] or message["annotations"], message
    long = " ".join(prose(1, number).rstrip(".") for number in range(25))
    made = await stored(client, f"{long}.", "long.txt")
    many = {"facts": [{"text": long}], "documents": [made]}
    refused = await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}", fano=many, max_tokens=500))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "fano.facts")
    await answered(client, document, f"{PASTED}\n\n{ASKED}", fano={"session": "turbine"})
    session = (await client.get("/v1/sessions")).json()["data"][0]
    assert session["documents"] == [document] and session["num_tokens"] > WINDOW.window


async def test_a_stream_and_a_response_and_a_plan(client: httpx.AsyncClient, document: str) -> None:
    content = f"{PASTED}\n\n{ASKED}"
    fano = {"documents": [document]}
    body = chat(content, fano=fano, max_tokens=16)
    received = chunks((await client.post("/v1/chat/completions", json={**body, "stream": True})).text)
    assert progress_of(received) and received[-1]["choices"][0]["finish_reason"] == "stop"
    plan = (await client.post("/v1/plan", json={"messages": body["messages"], "max_tokens": 16, "fano": fano})).json()
    usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
    assert plan["prompt_tokens"] == usage["prompt_tokens"]
    reply = await client.post("/v1/responses", json={"model": MODEL, "input": content, "fano": fano})
    assert reply.status_code == 200 and reply.json()["usage"]["fano"]["retrieval"]["reason"] == "long_prompt"


async def test_a_question_longer_than_the_window_is_refused_by_ask(client: httpx.AsyncClient, document: str) -> None:
    long = "Why does the turbine stand in Oldenkamp? " * 200
    reply = await client.post("/v1/ask", json={"documents": [document], "question": long})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "question")
    assert str(WINDOW.window) in error["message"] and "shorten the question" in error["message"]
