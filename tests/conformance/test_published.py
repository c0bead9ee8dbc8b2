"""Fano's routes in OpenAI's published document, and that a reply which is not what a document says is found."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conformance.published import JSON, STREAM, VARIABLE, Published
from conformance.table import PARTS
from fakes_server import World

RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "user": None, "usage": {}}


def document(path: Path) -> Published:
    """A document of two operations, with what the published one has: parameters, references, unions and streams."""
    created = {
        "type": "object",
        "required": ["type", "response"],
        "properties": {"type": {"enum": ["created"]}, "response": {"$ref": "#/components/schemas/Response"}},
    }
    ended = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["ended"]}}}
    schemas = {
        "Response": {
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": {"type": "string"},
                "user": {"type": "string"},
                "note": {"type": "string", "nullable": True},
            },
        },
        "Event": {"anyOf": [created, ended]},
        "ErrorResponse": {"type": "object", "required": ["error"]},
    }
    reply = {JSON: {"schema": {"$ref": "#/components/schemas/Response"}}}
    streamed = reply | {STREAM: {"schema": {"$ref": "#/components/schemas/Event"}}}
    paths = {
        "/responses": {"post": {"responses": {"200": {"content": streamed}}}},
        "/responses/{response_id}": {"get": {"responses": {"200": {"content": reply}}}},
    }
    path.write_text(json.dumps({"info": {"version": "1"}, "paths": paths, "components": {"schemas": schemas}}))
    return Published(path)


@pytest.mark.parametrize(
    ("method", "path", "status", "media_type", "body", "fault"),
    [
        ("GET", "/responses/resp_1", 200, JSON, {"id": "resp_1", "note": None, "extra": 1}, None),
        ("GET", "/responses/resp_1", 200, JSON, {"note": "x"}, "'id' is a required property"),
        ("GET", "/responses/resp_1", 200, JSON, {"id": "resp_1", "note": 1}, "1 is not valid under any"),
        ("GET", "/responses/resp_1/items", 200, JSON, {}, "no such operation"),
        ("GET", "/responses/resp_1", 404, JSON, {"error": {}}, None),
        ("GET", "/responses/resp_1", 404, JSON, {"detail": "no"}, "'error' is a required property"),
        ("POST", "/responses", 200, STREAM, {"type": "created", "response": {"id": "resp_1"}}, None),
        ("POST", "/responses", 200, STREAM, {"type": "created", "response": {}}, "$.response: 'id' is a required"),
        ("POST", "/responses", 200, STREAM, {"type": "created", "response": {"id": 1, "note": 1}}, "$.response.note"),
        ("POST", "/responses", 200, STREAM, {"type": "made"}, "is not valid under any"),
    ],
)
def test_a_reply_that_differs_is_found(
    tmp_path: Path, method: str, path: str, status: int, media_type: str, body: Any, fault: str | None
) -> None:
    published = document(tmp_path / "openapi.json")
    text = json.dumps(body)
    sent = f"event: x\ndata: {text}\n\ndata: [DONE]\n\n" if media_type == STREAM else text
    published.note(method, path, status, media_type, sent.encode())
    failures = published.failures()
    assert bool(failures) == (fault is not None) and (fault or "") in "".join(failures)
    assert published.failures() == []


def test_a_deviation_is_counted(tmp_path: Path) -> None:
    published = document(tmp_path / "openapi.json")
    published.note("GET", "/responses/resp_1", 200, JSON, json.dumps(RESPONSE).encode())
    assert published.failures() == [] and published.deviations == {"user null in a response": 1}


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"needs a copy of OpenAI's OpenAPI document: {VARIABLE}")
def test_the_routes_of_the_client_are_published(served: tuple[World, str], published: Published) -> None:
    """With the document, every test beside this one fails where a reply differs from it."""
    routes = [
        (method.upper(), path.removeprefix("/v1"))
        for path, methods in served[0].app.openapi()["paths"].items()
        for method in methods
        if path.removeprefix("/v1/").split("/")[0] in PARTS
    ]
    assert len(routes) > 30
    assert [each for each in routes if published.operation(*each) is None] == []
