"""Streams that wait for a file: refused soon with a status, begun with comments, refused late by an event."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes_responses import EVENTS
from fakes_server import MODEL, World, WorldMaker, serving, sse

from retrieval.passage import DocumentError

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
WHO = "Who paid invoice QX-7741-B?"
DATA = base64.b64encode(TEXT.encode()).decode()


@pytest.fixture
def world(new_world: WorldMaker) -> World:
    return new_world(keepalive_seconds=0.1)


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as url, httpx.Client(base_url=f"{url}/v1", timeout=30) as client:
        yield client


def chat(**file: Any) -> tuple[str, dict[str, Any]]:
    parts = [{"type": "file", "file": {"filename": "ledger.txt", **file}}, {"type": "text", "text": WHO}]
    return "/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": parts}]}


def response(**file: Any) -> tuple[str, dict[str, Any]]:
    parts = [{"type": "input_file", "filename": "ledger.txt", **file}, {"type": "input_text", "text": WHO}]
    return "/responses", {"model": MODEL, "input": [{"role": "user", "content": parts}]}


ROUTES = [chat, response]


@pytest.mark.parametrize("route", ROUTES)
def test_a_long_reading_is_kept_alive_and_then_answered(client: httpx.Client, world: World, route: Any) -> None:
    world.library.hold()
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    path, body = route(file_data=DATA)
    with client.stream("POST", path, json=body | {"stream": True}) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()
        assert [line for line in (next(lines) for _ in range(4)) if line] == [": keep-alive"] * 2
        world.library.release()
        text = "\n".join(lines)
    assert '"quote":"Margarethe Oldenkamp"' in text
    if route is response:
        events = [json.loads(data) for _, data in sse(text)]
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_refused_soon_has_its_status_and_reads_nothing(client: httpx.Client, world: World, route: Any) -> None:
    world.library.hold()
    path, body = route(file_id="file-none")
    for change, status in (({}, 404), ({"model": "other"}, 404), ({"top_p": 7}, 400)):
        reply = client.post(path, json=body | {"stream": True} | change)
        assert reply.status_code == status and reply.headers["content-type"] == "application/json"
    # Nothing is read for a request that names a file there is not beside one that came along.
    for kind, place in (("messages", "content"), ("input", "content")):
        if kind in body:
            body[kind][0][place].insert(0, route(file_data=DATA)[1][kind][0][place][0])
    reply = client.post(path, json=body | {"stream": True})
    assert reply.status_code == 404 and ".content.1." in reply.json()["error"]["param"]
    assert world.library.documents == {}


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_refused_after_the_beginning_is_the_last_event(client: httpx.Client, world: World, route: Any) -> None:
    world.library.hold()
    world.library.fail = DocumentError("invalid_file", "it is locked")
    path, body = route(file_data=DATA)
    threading.Timer(0.4, world.library.release).start()
    reply = client.post(path, json=body | {"stream": True})
    assert reply.status_code == 200
    ((name, data),) = sse(reply.text)
    told = json.loads(data)
    if route is response:
        EVENTS.validate_python(told)
        assert (name, told["type"], told["code"]) == ("error", "error", "invalid_file")
    else:
        assert (name, told["error"]["code"]) == (None, "invalid_file") and "it is locked" in told["error"]["message"]
    # One that is read soon is refused by its status, and no stream begins.
    assert world.engine.requests == []


@pytest.mark.parametrize("route", ROUTES)
def test_who_leaves_while_a_file_is_read_is_not_answered(client: httpx.Client, world: World, route: Any) -> None:
    world.library.hold()
    path, body = route(file_data=DATA)
    with client.stream("POST", path, json=body | {"stream": True}) as reply:
        next(reply.iter_lines())
    world.library.release()
    assert client.get("/models").status_code == 200
    (document,) = world.library.documents
    while not world.library.documents[document].answerable:
        pass
    assert world.engine.requests == []
