"""A field that is wrong is named once, with its value, what was expected and what to do."""

import json
from typing import Any

import httpx
import pytest

JSON = {"Content-Type": "application/json"}
CHAT = {"model": "fake-reader", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 5}, "temperature is 5, expected less than or equal to 2"),
        ({"top_p": "much"}, "top_p is 'much', expected a valid number"),
        ({"messages": []}, "messages has 0 items, expected at least 1"),
        ({"fano": {"bar": 1}}, "fano.bar is not a field that is known here; leave it out"),
        ({"fano": {"recall": "exact"}}, "fano.recall is 'exact', expected 'verbatim', 'grounded' or 'free'"),
        ({"fano": {"recall": "x" * 5000}}, "fano.recall is a text of 5000 characters, expected 'verbatim'"),
    ],
)
async def test_chat_fields(client: httpx.AsyncClient, change: dict[str, Any], message: str) -> None:
    response = await client.post("/v1/chat/completions", json=CHAT | change)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)
    assert response.json()["error"]["message"].count(message) == 1


async def test_a_question_of_blanks(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ask", json={"documents": ["doc_1"], "question": "  "})
    assert response.json()["error"]["message"] == "question is blank, expected text"


async def test_a_missing_field(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ask", json={"question": "Who?"})
    assert response.json()["error"]["message"] == "documents is missing; add it"


async def test_what_validators_say(client: httpx.AsyncClient) -> None:
    session = "expected 1 to 128 letters (a to z), digits, '.', '_' and '-', the first no sign"
    for change, message in (
        ({"fano": {"session": "a/b"}}, f"fano.session is 'a/b', {session}"),
        ({"fano": {"session": "x" * 500}}, f"fano.session is a text of 500 characters, {session}"),
        ({"fano": []}, "fano is an array, expected an object"),
        ({"stop": ""}, "stop is '', which must not be empty"),
        (_said(5), "messages.0.content is 5, which should be a text or a list of parts"),
        (_said("half \ud800"), "messages.0.content holds half a surrogate pair at character 5"),
        (
            {"max_tokens": 1, "max_completion_tokens": 1},
            "the body breaks a rule: max_tokens and max_completion_tokens exclude each other; send one of them",
        ),
    ):
        response = await client.post("/v1/chat/completions", content=json.dumps(CHAT | change), headers=JSON)
        assert response.json()["error"]["message"] == message


async def test_a_document_as_json(client: httpx.AsyncClient) -> None:
    for document, message in (
        ({"text": ""}, "text has 0 characters, expected at least 1"),
        ({"text": 5}, "text is 5, expected a valid string"),
        ({"text": "x", "name": "n" * 256}, "name has 256 characters, expected at most 255"),
        ([], "the body is an array, expected an object"),
    ):
        response = await client.post("/v1/documents", json=document)
        assert response.json()["error"]["message"] == message


def _said(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}
