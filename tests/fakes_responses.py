"""Replies of ``/v1/responses`` as they stand on the wire, held against the official client's own types."""

import json
from typing import Any

import httpx
from fakes_server import sse
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

# The published schema asks for these, null or not; the client's types let them be missing.
ALWAYS_THERE = {
    "error",
    "id",
    "incomplete_details",
    "instructions",
    "metadata",
    "model",
    "object",
    "output",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "usage",
    "status",
    "store",
    "text",
    "truncation",
    "previous_response_id",
    "max_output_tokens",
    "reasoning",
    "created_at",
    "completed_at",
    "background",
}


def checked(response: dict[str, Any]) -> Response:
    """The response, if it is one to the letter."""
    assert set(response) >= ALWAYS_THERE
    return Response.model_validate(response)


def post(url: str, body: dict[str, Any], key: str = "any") -> httpx.Response:
    """The body sent as it is."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/responses", json=body, headers=headers, timeout=30)


def streamed(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, each held against its type, in order and of one response."""
    reply = post(url, body | {"stream": True})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = []
    for name, data in sse(reply.text):
        raw = json.loads(data)
        assert name == raw["type"]
        EVENTS.validate_python(raw)
        if "response" in raw:
            checked(raw["response"])
        events.append(raw)
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    return events
