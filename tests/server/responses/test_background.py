"""Responses that are made while nobody waits: looked at, followed, taken up again, cancelled, and broken off."""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from fakes_responses import EVENTS, checked
from fakes_server import MODEL, World, WorldMaker, open_client, serving, sse

from model.errors import GenerationFailed
from server.responses import background

TEXT = "One two three four."
BODY = {"model": MODEL, "input": "Count.", "background": True}


async def ended(client: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    """The response at its end, which is waited for as the official guide says."""
    while True:
        told: dict[str, Any] = (await client.get(f"/v1/responses/{response_id}")).json()
        checked(told)
        if told["status"] not in ("queued", "in_progress"):
            return told
        await asyncio.sleep(0.01)


def events_of(text: str) -> list[dict[str, Any]]:
    events = [json.loads(data) for _, data in sse(text)]
    for each in events:
        EVENTS.validate_python(each)
    return events


async def begun(client: httpx.AsyncClient, world: World, **more: Any) -> dict[str, Any]:
    """A response that says its first words and then waits for ``go_on``."""
    world.engine.stall()
    reply = await client.post("/v1/responses", json=BODY | more)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    checked(told)
    return told


async def test_it_is_made_while_nobody_waits(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue(TEXT)
    told = await begun(client, world, metadata={"a": "b"})
    assert (told["status"], told["background"], told["output"], told["usage"]) == ("in_progress", True, [], None)
    path = f"/v1/responses/{told['id']}"
    assert (await client.get(path)).json() == told
    assert [each["role"] for each in (await client.get(f"{path}/input_items")).json()["data"]] == ["user"]
    after = {"model": MODEL, "input": "And?", "previous_response_id": told["id"]}
    reply = await client.post("/v1/responses", json=after)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "response_under_way")
    world.engine.go_on()
    whole = await ended(client, told["id"])
    assert whole["output"][0]["content"][0]["text"] == TEXT and whole["usage"]["output_tokens"] > 0
    assert {**whole, **{key: told[key] for key in ("status", "output", "usage", "completed_at")}} == told
    again = await client.post(f"{path}/cancel")
    assert again.json() == whole, "what has ended stays as it is"
    world.engine.enqueue("Five.")
    more = await client.post("/v1/responses", json=after)
    assert more.json()["output"][0]["content"][0]["text"] == "Five."


async def test_its_events_can_be_followed_and_taken_up_again(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue(TEXT)
    told = await begun(client, world)
    path = f"/v1/responses/{told['id']}"
    followers = [asyncio.create_task(client.get(path, params={"stream": True})) for _ in range(2)]
    await asyncio.sleep(0.05)
    world.engine.go_on()
    first, second = [events_of((await each).text) for each in followers]
    assert first == second and [each["sequence_number"] for each in first] == list(range(len(first)))
    assert (first[0]["type"], first[-1]["type"]) == ("response.created", "response.completed")
    assert first[-1]["response"] == await ended(client, told["id"])
    for after in (0, 3, len(first) - 2):
        params: dict[str, Any] = {"stream": True, "starting_after": after}
        assert events_of((await client.get(path, params=params)).text) == first[after + 1 :]
    late = await client.get(path, params={"stream": True, "starting_after": len(first) - 1})
    assert (late.status_code, late.json()["error"]["param"]) == (400, "starting_after")


def test_a_stream_that_breaks_off_does_not_end_it(world: World) -> None:
    world.engine.enqueue(TEXT)
    world.engine.stall()
    with serving(world.app) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/v1/responses", json=BODY | {"stream": True}) as reply:
            line = next(each for each in reply.iter_lines() if each.startswith("data: "))
        told = json.loads(line.removeprefix("data: "))["response"]
        time.sleep(0.1)
        world.engine.go_on()
        while told["status"] == "in_progress":
            told = client.get(f"/v1/responses/{told['id']}").json()
    assert told["output"][0]["content"][0]["text"] == TEXT and world.engine.aborted == []


async def test_it_can_be_cancelled(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue(TEXT)
    told = await begun(client, world)
    path = f"/v1/responses/{told['id']}"
    follower = asyncio.create_task(client.get(path, params={"stream": True}))
    await asyncio.sleep(0.05)
    reply = await client.post(f"{path}/cancel")
    checked(reply.json())
    assert reply.json()["status"] == "cancelled" and (await client.get(path)).json() == reply.json()
    world.engine.go_on()
    last = events_of((await follower).text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
    while not world.engine.aborted:
        await asyncio.sleep(0.01)
    assert (await client.post(f"{path}/cancel")).json()["status"] == "cancelled"
    more = await client.post("/v1/responses", json={"model": MODEL, "input": "?", "previous_response_id": told["id"]})
    assert more.json()["error"]["code"] == "response_failed" and "was cancelled" in more.json()["error"]["message"]


async def test_deleting_it_ends_it(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue(TEXT)
    told = await begun(client, world)
    assert (await client.delete(f"/v1/responses/{told['id']}")).json()["deleted"] is True
    world.engine.go_on()
    while not world.engine.aborted:
        await asyncio.sleep(0.01)
    for path in (f"/v1/responses/{told['id']}", f"/v1/responses/{told['id']}?stream=true"):
        assert (await client.get(path)).status_code == 404


async def test_a_failure_is_told_by_its_status(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue("One two", error=GenerationFailed("the model said nothing"))
    told = (await client.post("/v1/responses", json=BODY)).json()
    failed = await ended(client, told["id"])
    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"
    events = events_of((await client.get(f"/v1/responses/{told['id']}", params={"stream": True})).text)
    assert events[-1]["type"] == "response.failed" and events[-1]["response"] == failed


async def test_what_a_stop_broke_off_has_failed_after_the_next_start(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        world.engine.enqueue(TEXT)
        told = await begun(client, world)
        # The engine's thread ends after its step.
        asyncio.get_running_loop().call_later(0.2, world.engine.go_on)
    async with open_client(new_world()) as client:
        found = (await client.get(f"/v1/responses/{told['id']}")).json()
        checked(found)
        assert found["status"] == "failed" and "the server was stopped" in found["error"]["message"]
        after = {"model": MODEL, "input": "?", "previous_response_id": told["id"]}
        more = await client.post("/v1/responses", json=after)
        assert more.json()["error"]["code"] == "response_failed"


@pytest.mark.parametrize(
    ("change", "param"),
    [({"store": False}, "store"), ({"background_options": {"x": 1}}, "background_options"), ({"input": []}, "input")],
)
async def test_what_is_refused(client: httpx.AsyncClient, change: dict[str, Any], param: str) -> None:
    reply = await client.post("/v1/responses", json=BODY | change)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_what_cannot_be_followed_is_refused(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = (await client.post("/v1/responses", json=BODY | {"background": False})).json()["id"]
    monkeypatch.setattr(background, "FOLLOWED_SECONDS", 0.0)
    made = (await client.post("/v1/responses", json=BODY)).json()["id"]
    await ended(client, made)
    await asyncio.sleep(0.05)
    asked: list[tuple[str, dict[str, Any], str]] = [
        (plain, {"stream": True}, "stream"),
        (made, {"stream": True}, "stream"),
        (made, {"starting_after": 1}, "starting_after"),
        (made, {"starting_after": -1, "stream": True}, "starting_after"),
        (made, {"stream": True, "include": "file_search_call.results"}, "include"),
    ]
    for response_id, params, param in asked:
        reply = await client.get(f"/v1/responses/{response_id}", params=params)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    reply = await client.post(f"/v1/responses/{plain}/cancel")
    assert reply.json()["error"]["code"] == "not_cancellable"


def test_the_official_client_polls_and_takes_up_a_stream(world: World) -> None:
    with serving(world.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        world.engine.enqueue(TEXT)
        with client.responses.create(model=MODEL, input="Count.", background=True, stream=True) as stream:
            first = next(iter(stream))
        assert first.type == "response.created"
        with client.responses.stream(response_id=first.response.id, starting_after=first.sequence_number) as rest:
            kinds = [event.type for event in rest]
        assert kinds[0] == "response.in_progress" and kinds[-1] == "response.completed"
        response = client.responses.retrieve(first.response.id)
        while response.status in ("queued", "in_progress"):
            response = client.responses.retrieve(first.response.id)
        assert response.output_text == TEXT and response.background is True
