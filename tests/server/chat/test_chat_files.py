"""Files among the messages of a chat: asked about like documents, told by their own ids, refused by their paths."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client, serving

from model.tokenizer import Tokenizer
from server.keys import Keys

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
ROUTE = "/v1/chat/completions"


def encoded(data: bytes, head: str = "") -> str:
    return head + base64.b64encode(data).decode()


def question(**file: Any) -> list[dict[str, Any]]:
    part = {"type": "file", "file": file}
    return [{"role": "user", "content": [part, {"type": "text", "text": "Who paid invoice QX-7741-B?"}]}]


MANY = question(file_data="YQ==")[0]["content"] * 65


@pytest.fixture
def official(world: World) -> Iterator[openai.OpenAI]:
    with serving(world.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_an_uploaded_file_is_asked_about_and_cited_by_its_id(official: openai.OpenAI, world: World) -> None:
    file = official.files.create(file=("ledger.txt", TEXT.encode()), purpose="user_data")
    messages: Any = question(file_id=file.id)
    for stream in (False, True):
        world.engine.enqueue("It was Margarethe Oldenkamp.")
        if stream:
            chunks = list(official.chat.completions.create(model=MODEL, messages=messages, stream=True))
            deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
            (annotation,) = [each for delta in deltas for each in delta.get("annotations") or []]
        else:
            reply = official.chat.completions.create(model=MODEL, messages=messages)
            (annotation,) = reply.choices[0].message.model_dump()["annotations"]
            assert reply.usage is not None and reply.usage.model_dump()["fano"]["retrieval"]["used"] is True
        assert (annotation["file_id"], annotation["filename"]) == (file.id, "ledger.txt")
        assert TEXT[annotation["start_char"] : annotation["end_char"]] == "Margarethe Oldenkamp" == annotation["quote"]


@pytest.mark.parametrize("head", ["", "data:text/plain;base64,"])
def test_a_file_may_come_inside_the_request(official: openai.OpenAI, world: World, head: str) -> None:
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    messages: Any = question(file_data=encoded(TEXT.encode(), head), filename="ledger.txt")
    reply = official.chat.completions.create(model=MODEL, messages=messages)
    (annotation,) = reply.choices[0].message.model_dump()["annotations"]
    # It is an ordinary document, under whose id it is told.
    (document,) = world.library.documents.values()
    assert (annotation["file_id"], annotation["filename"]) == (document.id, "ledger.txt")
    assert world.library.texts[document.id] == TEXT


async def test_files_and_documents_are_asked_together_and_each_once(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    document = world.library.put("The keeper of tower seven paid nothing at all.")
    data = encoded(TEXT.encode())
    messages = [*question(file_data=data), {"role": "assistant", "content": "Ann."}, *question(file_data=data)]
    body = {"model": MODEL, "messages": messages, "fano": {"documents": [document]}}
    reply = await client.post(ROUTE, json=body)
    assert reply.status_code == 200, reply.text
    (request,) = world.engine.requests
    assert tokenizer.decode(request.prompt_ids).count("Margarethe") == 1
    assert len(world.library.documents) == 2


async def test_who_sends_a_file_along_asks_about_it(client: httpx.AsyncClient, world: World) -> None:
    data = encoded(TEXT.encode())
    hello = {"type": "text", "text": "Thanks!"}
    file = {"type": "file", "file": {"file_data": data}}
    reply = await client.post(ROUTE, json={"model": MODEL, "messages": [{"role": "user", "content": [file, hello]}]})
    assert reply.json()["usage"]["fano"]["retrieval"]["used"] is True
    before = [{"role": "user", "content": [file, hello]}, {"role": "assistant", "content": "Yes?"}]
    reply = await client.post(ROUTE, json={"model": MODEL, "messages": [*before, {"role": "user", "content": [hello]}]})
    # Small talk after it needs no search.
    assert reply.json()["usage"]["fano"]["retrieval"]["used"] is False


@pytest.mark.parametrize(
    ("messages", "status", "param", "code"),
    [
        (question(file_id="file-none"), 404, "messages.0.content.0.file.file_id", "file_not_found"),
        (question(), 400, "messages.0.content.0.file", "invalid_value"),
        (question(file_id="a", file_data="YQ=="), 400, "messages.0.content.0.file", "invalid_value"),
        (question(file_data="?"), 400, "messages.0.content.0.file.file_data", "invalid_value"),
        (question(file_data=""), 400, "messages.0.content.0.file.file_data", "invalid_value"),
        (question(file_data=encoded(PICTURE)), 400, "messages.0.content.0.file.file_data", "unsupported_file"),
        (question(file_url="http://x"), 400, "messages.0.content.0.file.file_url", "unknown_field"),
        ([{"role": "user", "content": [{"type": "file"}]}], 400, "messages.0.content.0", "invalid_value"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "file": {"file_id": "b"}}]}],
            400,
            "messages.0.content.0",
            "invalid_value",
        ),
        (
            [{"role": "system", "content": question(file_data="YQ==")[0]["content"]}, *question(file_data="YQ==")],
            400,
            "messages.0.content",
            "invalid_value",
        ),
        (
            [{"role": "user", "content": question(file_data="YQ==")[0]["content"] * 65}],
            400,
            "messages",
            "invalid_value",
        ),
        (
            [{"role": "user", "content": question(file_data=encoded(TEXT.encode()))[0]["content"][:1]}],
            400,
            "messages.0.content",
            "invalid_value",
        ),
    ],
)
async def test_what_is_refused(
    client: httpx.AsyncClient, messages: list[Any], status: int, param: str, code: str
) -> None:
    for stream in (False, True):
        reply = await client.post(ROUTE, json={"model": MODEL, "messages": messages, "stream": stream})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (status, param, code), error


async def test_a_form_a_plan_and_another_tenants_file_are_refused(client: httpx.AsyncClient) -> None:
    messages = question(file_data=encoded(TEXT.encode()))
    body = {"model": MODEL, "messages": messages, "response_format": {"type": "json_object"}}
    reply = await client.post(ROUTE, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
    reply = await client.post("/v1/plan", json={"messages": messages, "max_tokens": 5})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "messages.0.content.0.file"


async def test_the_file_of_another_tenant_is_unknown(new_world: WorldMaker) -> None:
    world = new_world(api_key="first")
    async with open_client(world, {"authorization": "Bearer first"}) as client:
        _, key = Keys(world.settings.data_dir).add("other", "other")
        sent = {"file": ("ledger.txt", TEXT.encode())}
        reply = await client.post(
            "/v1/files",
            files=sent,
            data={"purpose": "user_data"},
            headers={"authorization": f"Bearer {key}"},
        )
        assert reply.status_code == 200, reply.text
        body = {"model": MODEL, "messages": question(file_id=reply.json()["id"])}
        missing = await client.post(ROUTE, json=body)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "file_not_found")
        own = await client.post(ROUTE, json=body, headers={"authorization": f"Bearer {key}"})
        assert own.status_code == 200
