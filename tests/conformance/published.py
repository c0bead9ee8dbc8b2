"""Every reply of these tests against OpenAI's published OpenAPI document, where there is a copy of it.

The document (``openapi.json`` of github.com/openai/openai-openapi) is not part of Fano;
``OPENAI_OPENAPI_DOCUMENT`` is the path of a copy. The client's own types, which the tests look at in any case, are
made from another form of it and are laxer: they know no ranges, no lengths and no pattern.
"""

import base64
import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from fakes_server import sse
from jsonschema.exceptions import best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "OPENAI_OPENAPI_DOCUMENT"
ROOT = "urn:published"
JSON, STREAM = "application/json", "text/event-stream"
# The document gives its 200 no content.
BARE = {"DELETE /responses/{response_id}"}


class Published:
    """The document, how many objects of each operation it was asked about, and what did not agree with it."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        self._document = _with_null(json.loads(content))
        self.version = str(self._document["info"]["version"])
        self._registry: Any = Registry().with_resource(ROOT, Resource(self._document, DRAFT202012))
        self._operations = [
            (re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))), method.upper(), path)
            for path, methods in self._document["paths"].items()
            for method in methods
            if "?" not in path
        ]
        # A path without parameters before one with them: /responses/input_tokens is no response.
        self._operations.sort(key=lambda each: each[2].count("{"))
        self._validators: dict[str, Any] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.deviations: Counter[str] = Counter()
        self._unchecked: list[tuple[str, str, int, str, bytes]] = []

    def operation(self, method: str, path: str) -> str | None:
        """The path of the document, with its parameters in braces, that ``path`` below /v1 is one of."""
        found = (known for pattern, verb, known in self._operations if verb == method and pattern.fullmatch(path))
        return next(found, None)

    def note(self, method: str, path: str, status: int, media_type: str, body: bytes) -> None:
        """Keep a reply for ``failures``."""
        self._unchecked.append((method, path, status, media_type, body))

    def failures(self) -> list[str]:
        """What of the replies noted since the last call is not what the document says, one line each."""
        noted, self._unchecked = self._unchecked, []
        return [failure for reply in noted for failure in self._failures(*reply)]

    def _failures(self, method: str, path: str, status: int, media_type: str, body: bytes) -> Iterator[str]:
        if status >= 400:
            self.counts["errors of every route", "error"] += 1
            yield from self._against("/components/schemas/ErrorResponse", json.loads(body), f"{method} {path} {status}")
            return
        known = self.operation(method, path)
        if known is None:
            yield f"{method} {path}: no such operation in the document"
            return
        name = f"{method} {known}"
        contents = self._document["paths"][known][method.lower()]["responses"]["200"].get("content", {})
        at = f"/paths/{_escaped(known)}/{method.lower()}/responses/200/content"
        if (method, known, media_type) == ("GET", "/responses/{response_id}", STREAM):
            # The document has the parameters of this stream, and its events only where a response is created.
            at, contents = "/paths/~1responses/post/responses/200/content", {STREAM: {}}
        if media_type == STREAM:
            # Completions stream the object that they also send whole, which the document says in its description.
            kind = STREAM if STREAM in contents else JSON
            for event, data in sse(body.decode()):
                if data != "[DONE]":
                    self.counts[name, "event"] += 1
                    value = as_published(known, json.loads(data), self.deviations)
                    yield from self._against(f"{at}/{_escaped(kind)}/schema", value, f"{name} {event or ''}")
        elif media_type == JSON and JSON in contents:
            self.counts[name, "object"] += 1
            value = as_published(known, json.loads(body), self.deviations)
            yield from self._against(f"{at}/{_escaped(JSON)}/schema", value, name)
        elif media_type == JSON and name not in BARE:
            yield f"{name}: a JSON reply that the document does not tell of"

    def _against(self, pointer: str, value: Any, name: str) -> Iterator[str]:
        if pointer not in self._validators:
            self._validators[pointer] = jsonschema.Draft202012Validator(
                {"$ref": f"{ROOT}#{pointer}"}, registry=self._registry
            )
        for error in self._validators[pointer].iter_errors(value):
            for told in _nearest(error):
                yield f"{name}: {told.json_path}: {told.message[:300]}"

    def summary(self) -> list[str]:
        """The counts, a line for each operation, then one for each deviation."""
        lines = [f"{number:5} {kind}s  {name}" for (name, kind), number in sorted(self.counts.items())]
        lines += [f"{number:5} times  {what}" for what, number in sorted(self.deviations.items())]
        return [f"OpenAI's document, version {self.version}, SHA-256 {self.digest[:16]}", *lines]


def as_published(path: str, value: Any, counts: Counter[str]) -> Any:
    """``value`` as its schema has it, where it differs for a reason; ``counts`` tells how often each did.

    All but one are OpenAI's own: its examples in the same document differ from the schemas in the same way, and a
    vector in base64 is what the request, which the client writes, asks for. The places of what a search found are
    Fano's.
    """
    if path == "/completions":
        for each in value["choices"]:
            if each["finish_reason"] is None:
                counts["finish_reason null in a chunk of a completion before the last"] += 1
                each["finish_reason"] = "stop"
    if path == "/embeddings":
        for each in value["data"]:
            if isinstance(each["embedding"], str):
                counts["embedding in base64, as asked"] += 1
                each["embedding"] = list(array("f", base64.b64decode(each["embedding"], validate=True)))
    response = value.get("response", value)
    if response.get("object") == "response":
        if response["user"] is None:
            counts["user null in a response"] += 1
            del response["user"]
        if response["usage"] is None and response["status"] in ("in_progress", "cancelled"):
            counts["usage null in a response that is in progress or was cancelled"] += 1
            del response["usage"]
    if path == "/vector_stores/{vector_store_id}/search":
        for each in value["data"]:
            counts["document, page, start_char and end_char beside a result of a search"] += 1
            for field in ("document", "page", "start_char", "end_char"):
                del each[field]
    return value


def _nearest(error: Any) -> Iterator[Any]:
    """The errors in the alternative that was meant: of a union by ``type``, the one whose type is right."""
    if error.validator in ("anyOf", "oneOf") and error.context and isinstance(error.instance, dict):
        wrong = {each.schema_path[0] for each in error.context if list(each.path)[-1:] in (["type"], ["role"])}
        meant = [each for each in error.context if each.schema_path[0] not in wrong]
        if meant:
            for each in meant:
                if each.schema_path[0] == meant[0].schema_path[0]:
                    yield from _nearest(each)
            return
    yield best_match([error]) or error


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _with_null(schema: Any) -> Any:
    """The document says 3.1, but some of its schemas still say ``nullable``, which 3.1 does not know."""
    if isinstance(schema, list):
        return [_with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _with_null(each) for key, each in schema.items()}
    if made.get("nullable") is True:
        del made["nullable"]
        return {"anyOf": [made, {"type": "null"}]}
    return made


class Noted:
    """A layer around the app that notes each reply before its last byte is sent."""

    def __init__(self, app: ASGIApp, published: Published) -> None:
        self._app, self._published = app, published

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    headers = dict(start["headers"])
                    media_type = headers.get(b"content-type", b"").decode().split(";")[0]
                    path = scope["path"].removeprefix("/v1")
                    self._published.note(scope["method"], path, start["status"], media_type, bytes(body))
            await send(message)

        await self._app(scope, receive, noting)
