"""Another tenant's id is an unknown id, on every route there is, in every field that takes one."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_routes import parameters_of, routes_of
from fakes_server import MODEL, World, WorldMaker, open_client
from fakes_things import HELLO, KINDS, made_by

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from server.keys import Keys

# What has to come with a route so that only an id can be wrong with it.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/documents/{document_id}/ask"): {"json": {"question": "Who paid it?", "max_tokens": 4}},
    ("POST", "/v1/documents/{document_id}/facts"): {"json": {"start": 0, "end": 3}},
    ("POST", "/v1/sessions/{name}/save"): {},
    ("POST", "/v1/sessions/{name}/restore"): {},
    ("POST", "/v1/sessions/{name}/fork"): {"json": {"to": "copy"}},
    ("POST", "/v1/uploads/{upload_id}/parts"): {"files": {"data": ("part", b"part")}},
    ("POST", "/v1/uploads/{upload_id}/complete"): {"json": {"part_ids": ["part_of_nobody"]}},
    ("POST", "/v1/uploads/{upload_id}/cancel"): {},
    ("POST", "/v1/vector_stores/{store_id}"): {"json": {"name": "changed"}},
    ("POST", "/v1/vector_stores/{store_id}/search"): {"json": {"query": "invoice"}},
    ("POST", "/v1/vector_stores/{store_id}/files"): {"json": {"file_id": "OWN_FILE"}},
    ("POST", "/v1/vector_stores/{store_id}/files/{file_id}"): {"json": {"attributes": {"a": "b"}}},
    ("POST", "/v1/vector_stores/{store_id}/file_batches"): {"json": {"file_ids": ["OWN_FILE"]}},
    ("POST", "/v1/vector_stores/{store_id}/file_batches/{batch_id}/cancel"): {},
    ("POST", "/v1/responses/{response_id}/cancel"): {},
}


def within(document_id: str) -> list[dict[str, Any]]:
    return [{"document": document_id, "start": 0, "end": 8}]


Make = Callable[[str], dict[str, Any]]
ASKED = {"question": "Who paid it?", "documents": ["OWN_DOCUMENT"]}
CHAT = {"model": MODEL, "messages": HELLO}
# Fields of bodies and queries that take an id: route, field, kind, the request, and whether an unknown one is a 404.
FIELDS: list[tuple[str, str, str, str, Make, bool]] = [
    ("POST", "/v1/ask", "documents", "document", lambda id: {"json": {"question": "Who?", "documents": [id]}}, True),
    (
        "POST",
        "/v1/chat/completions",
        "documents",
        "document",
        lambda id: {"json": CHAT | {"fano": {"documents": [id]}}},
        True,
    ),
    (
        "POST",
        "/v1/plan",
        "documents",
        "document",
        lambda id: {"json": {"messages": HELLO, "fano": {"documents": [id]}}},
        True,
    ),
    (
        "POST",
        "/v1/plan",
        "session",
        "session",
        lambda id: {"json": {"messages": HELLO, "fano": {"session": id}}},
        False,
    ),
    ("GET", "/v1/documents", "after", "document", lambda id: {"params": {"after": id}}, True),
    ("GET", "/v1/sessions", "after", "session", lambda id: {"params": {"after": id}}, False),
    # A part is of one of the documents that are asked; any other is refused, known or not.
    ("POST", "/v1/ask", "document", "document", lambda id: {"json": ASKED | {"within": within(id)}}, False),
    (
        "POST",
        "/v1/documents/{document_id}/ask",
        "document",
        "document",
        lambda id: {"json": {"question": "Who?", "within": within(id)}},
        False,
    ),
    (
        "POST",
        "/v1/chat/completions",
        "document",
        "document",
        lambda id: {"json": CHAT | {"fano": {"documents": ["OWN_DOCUMENT"], "within": within(id)}}},
        False,
    ),
    (
        "POST",
        "/v1/plan",
        "document",
        "document",
        lambda id: {"json": {"messages": HELLO, "fano": {"documents": ["OWN_DOCUMENT"], "within": within(id)}}},
        False,
    ),
    # A name is the tenant's to give: with another's a session of one's own begins, or would.
    (
        "POST",
        "/v1/chat/completions",
        "session",
        "session",
        lambda id: {"json": CHAT | {"fano": {"session": id}}},
        False,
    ),
]


def responses(field: str, kind: str, request_of: Callable[[str], dict[str, Any]], is_404: bool = True) -> None:
    """The same on both routes that take a response's body."""
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        make: Make = lambda id: {"json": {"model": MODEL, "input": "Who paid it?"} | request_of(id)}  # noqa: E731
        FIELDS.append(("POST", path, field, kind, make, is_404))


def input_file(file_id: str) -> dict[str, Any]:
    content = [{"type": "input_file", "file_id": file_id}, {"type": "input_text", "text": "Who?"}]
    return {"input": [{"role": "user", "content": content}]}


responses("previous_response_id", "response", lambda id: {"previous_response_id": id})
responses("vector_store_ids", "vector_store", lambda id: {"tools": [{"type": "file_search", "vector_store_ids": [id]}]})
responses("file_id", "file", input_file)
responses("documents", "document", lambda id: {"fano": {"documents": [id]}})
responses("document", "document", lambda id: {"fano": {"documents": ["OWN_DOCUMENT"], "within": within(id)}}, False)
responses("session", "session", lambda id: {"fano": {"session": id}}, False)


def chat_file(file_id: str) -> list[dict[str, Any]]:
    content = [{"type": "file", "file": {"file_id": file_id}}, {"type": "text", "text": "Who?"}]
    return [{"role": "user", "content": content}]


FIELDS += [
    ("POST", "/v1/chat/completions", "file_id", "file", lambda id: {"json": CHAT | {"messages": chat_file(id)}}, True),
    # A file in a message is not planned for, whoever has it.
    ("POST", "/v1/plan", "file_id", "file", lambda id: {"json": {"messages": chat_file(id)}}, False),
    ("GET", "/v1/files", "after", "file", lambda id: {"params": {"after": id}}, False),
    ("POST", "/v1/uploads/{upload_id}/complete", "part_ids", "part", lambda id: {"json": {"part_ids": [id]}}, False),
    ("POST", "/v1/vector_stores", "file_ids", "file", lambda id: {"json": {"file_ids": [id]}}, True),
    ("POST", "/v1/vector_stores/{store_id}/files", "file_id", "file", lambda id: {"json": {"file_id": id}}, True),
]
BATCHES = "/v1/vector_stores/{store_id}/file_batches"
FIELDS.append(("POST", BATCHES, "file_ids", "file", lambda id: {"json": {"file_ids": [id]}}, True))
FIELDS.append(("POST", BATCHES, "file_id", "file", lambda id: {"json": {"files": [{"file_id": id}]}}, True))
for cursor in ("after", "before"):
    for path, kind in (
        ("/v1/vector_stores", "vector_store"),
        ("/v1/vector_stores/{store_id}/files", "file"),
        (f"{BATCHES}/{{batch_id}}/files", "file"),
    ):
        FIELDS.append(("GET", path, cursor, kind, lambda id, cursor=cursor: {"params": {cursor: id}}, False))

# Fields so named that take no id of a thing that is somebody's, or only one that the path has named already.
NO_IDS = {
    ("GET", "/v1/documents/{document_id}/facts", "after"),  # a fact of the document of the path
    ("GET", "/v1/responses/{response_id}", "starting_after"),  # a number of an event
    ("GET", "/v1/responses/{response_id}/input_items", "after"),  # an item of the response of the path
    ("GET", "/v1/responses/{response_id}/input_items", "before"),
}
ID_FIELDS = {
    *("documents", "document", "session", "file_id", "file_ids", "vector_store_ids", "vector_store_id", "part_ids"),
    *("previous_response_id", "response_id", "conversation", "after", "before", "starting_after"),
}


@pytest.fixture
async def world(new_world: WorldMaker, tmp_path: Path) -> AsyncIterator[World]:
    yield new_world(library=Library.open(tmp_path / "library", HashEmbedder(dimension=16)))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The headers of two tenants."""
    made = {tenant: Keys(tmp_path / "data").add(tenant, tenant)[1] for tenant in ("ann", "bob")}
    return {tenant: {"authorization": f"Bearer {key}"} for tenant, key in made.items()}


def unlike(known: str) -> str:
    """An id of the same form that nobody has."""
    return known[:-6] + "000000" if not known.endswith("000000") else known[:-6] + "111111"


def filled(path: str, ids: dict[str, str]) -> str:
    for parameter in parameters_of(path):
        path = path.replace(f"{{{parameter}}}", ids[parameter])
    return path


def with_own(request: dict[str, Any], own: dict[str, str]) -> dict[str, Any]:
    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: change(each) for key, each in value.items()}
        if isinstance(value, list):
            return [change(each) for each in value]
        return own[value.removeprefix("OWN_").lower()] if str(value).startswith("OWN_") else value

    changed: dict[str, Any] = change(request)
    return changed


# What no two replies share: ids that are made for them, moments and durations.
MADE = re.compile(r'"[a-z]+[-_][0-9a-zA-Z_-]{20,}"|"(created|created_at|\w*seconds|lexical|dense|keys)":[0-9.e-]+')


def plain(reply: httpx.Response, asked: str) -> tuple[int, str, dict[str, str]]:
    """A reply without what differs by the id that was asked for."""
    headers = {key: value for key, value in reply.headers.items() if key not in ("x-request-id", "content-length")}
    return reply.status_code, MADE.sub("MADE", reply.text.replace(asked, "ID")), headers


async def same_as_unknown(
    client: httpx.AsyncClient, method: str, path_of: Callable[[str], str], request_of: Make, foreign: str
) -> int:
    unknown = unlike(foreign)
    replies = [
        plain(await client.request(method, path_of(each), **request_of(each)), each) for each in (foreign, unknown)
    ]
    assert replies[0] == replies[1], (method, path_of(foreign))
    return replies[0][0]


def routes_with_ids(world: World) -> list[tuple[str, str]]:
    return [route for route in routes_of(world.app) if parameters_of(route[1])]


def test_every_route_and_field_has_an_entry(world: World) -> None:
    """Whoever adds a route says here what of it is somebody's."""
    for method, path in routes_with_ids(world):
        for parameter in parameters_of(path):
            assert parameter in KINDS, f"{method} {path}: which kind of thing does {parameter} name?"
        if method not in ("GET", "DELETE"):
            assert (method, path) in BODIES, f"{method} {path}: what body is sent with it?"
    listed = {each[:3] for each in FIELDS} | NO_IDS
    document = world.app.openapi()
    for method, path in routes_of(world.app):
        operation = document["paths"][path][method.lower()]
        names = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        names |= names_in(operation.get("requestBody", {}), document)
        for name in names & ID_FIELDS:
            assert (method, path, name) in listed, f"{method} {path}: whose is {name}?"


def names_in(schema: Any, document: Any, seen: frozenset[str] = frozenset()) -> set[str]:
    """Names of all properties below."""
    if isinstance(schema, list):
        return set().union(*(names_in(each, document, seen) for each in schema))
    if not isinstance(schema, dict):
        return set()
    reference = schema.get("$ref")
    if reference is not None:
        name = reference.rsplit("/", 1)[1]
        own = document["components"]["schemas"].get(name)
        return set() if name in seen or own is None else names_in(own, document, seen | {name})
    found = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return found.union(*(names_in(each, document, seen) for each in schema.values()))


async def test_another_tenants_id_is_unknown_everywhere(world: World, keys: dict[str, dict[str, str]]) -> None:
    routes = routes_with_ids(world)
    paths = {path for _, path in routes_of(world.app)}
    async with open_client(world) as client:
        client.headers = httpx.Headers(keys["ann"])
        anns = await made_by(client, "ann", paths)
        client.headers = httpx.Headers(keys["bob"])
        bobs = await made_by(client, "bob", paths)
        num_tried = 0
        for method, path in routes:
            owned = [each for each in parameters_of(path) if KINDS[each] is not None]
            for place, parameter in enumerate(owned):
                # What comes below another's is the other's, or one's own.
                for rest in (anns, bobs):
                    ids = {each: bobs[str(KINDS[each])] for each in owned[:place]}
                    ids |= {each: rest[str(KINDS[each])] for each in owned[place + 1 :]}
                    request = with_own(BODIES.get((method, path), {}), bobs)
                    status = await same_as_unknown(
                        client,
                        method,
                        lambda id, path=path, ids=ids, parameter=parameter: filled(path, {**ids, parameter: id}),
                        lambda _, request=request: request,
                        anns[str(KINDS[parameter])],
                    )
                    assert status == 404, (method, path, parameter)
                    num_tried += 1
        assert num_tried >= len(routes)
        for method, path, field, kind, make, is_404 in FIELDS:
            if path in paths and kind in anns:
                own = {each: bobs[str(KINDS[each])] for each in parameters_of(path)}
                status = await same_as_unknown(
                    client,
                    method,
                    lambda _, path=path, own=own: filled(path, own),
                    lambda id, make=make: with_own(make(id), bobs),
                    anns[kind],
                )
                assert (status == 404) is is_404, (method, path, field, status)
        # Whose it is finds all of it as it was: first what only looks, then what changes, then what deletes.
        client.headers = httpx.Headers(keys["ann"])
        order = ("GET", "POST", "DELETE")
        for method, path in sorted(routes, key=lambda route: (order.index(route[0]), -len(parameters_of(route[1])))):
            named = {each: anns[str(KINDS[each])] for each in parameters_of(path) if KINDS[each] is not None}
            if len(named) == len(parameters_of(path)):
                reply = await client.request(
                    method, filled(path, named), **with_own(BODIES.get((method, path), {}), anns)
                )
                assert reply.status_code != 404, (method, path, reply.text)


async def test_nothing_is_served_without_a_key(world: World, keys: dict[str, dict[str, str]]) -> None:
    """The health of the process is anyone's to know; its numbers are where only this machine can ask."""
    async with open_client(world) as client:
        for method, path in routes_of(world.app):
            for headers in ({}, {"authorization": "Bearer fano-wrong"}):
                named = filled(path, dict.fromkeys(parameters_of(path), "x"))
                reply = await client.request(method, named, headers=headers)
                is_open = path in ("/healthz", "/readyz", "/metrics", "/v1/memory", "/", "/console/{asset}")
                assert (reply.status_code == 401) is not is_open, (method, path, reply.text)


async def test_lists_show_only_what_is_ones_own(world: World, keys: dict[str, dict[str, str]]) -> None:
    paths = {path for _, path in routes_of(world.app)}
    async with open_client(world) as client:
        client.headers = httpx.Headers(keys["ann"])
        anns = await made_by(client, "ann", paths)
        client.headers = httpx.Headers(keys["bob"])
        for method, path in routes_of(world.app):
            if method == "GET" and not parameters_of(path) and path not in ("/metrics", "/v1/memory"):
                reply = await client.get(path)
                assert not any(each in reply.text for each in anns.values()), path
                assert "ann" not in reply.text, path
        # The same name is another session, and the same content another document.
        assert (await made_by(client, "ann", paths))["document"] != anns["document"]
