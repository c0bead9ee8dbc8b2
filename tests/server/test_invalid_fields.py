"""A field that is wrong is named once, with its value, what was expected and what to do."""

from typing import Any

import httpx
import pytest

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
