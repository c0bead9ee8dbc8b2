"""Conversations of stored responses: what is remembered, branches, a restart, deletion."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client, sse

from model.engine.request import FinishReason
from model.errors import GenerationFailed
from model.tokenizer import Tokenizer
from retrieval.errors import StoreInvalid
from server.responses import conversations
from server.responses.errors import ResponseNotStored
from server.responses.store import ResponseStore
from server.services import Services
from server.sessions.errors import SessionStorageFull
from server.sessions.vault import Vault


async def say(client: httpx.AsyncClient, text: str, previous: str | None = None, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "input": text, "previous_response_id": previous, **more}
    reply = await client.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


async def sessions(client: httpx.AsyncClient) -> dict[str, int]:
    """Versions of the sessions by name."""
    return {each["name"]: each["version"] for each in (await client.get("/v1/sessions")).json()["data"]}


def spelled(world: World, tokenizer: Tokenizer, text: str) -> list[int]:
    """Let the engine say ``text`` in tokens of one byte, as no tokenizer would; the ids it will draw."""
    by_byte = {tokenizer.token_bytes(token_id): token_id for token_id in range(tokenizer.vocab_size)}
    ids = [by_byte[bytes([byte])] for byte in text.encode()]
    end = next(iter(tokenizer.chat_parts([{"role": "user", "content": "Hi"}])[3:4]))
    assert isinstance(end, int)
    world.engine.enqueue("", pieces=[text, *[""] * len(ids)], token_ids=[*ids, end])
    return [*ids, end]


def prompt(world: World, number: int) -> list[int]:
    return list(world.engine.requests[number].prompt_ids)


async def test_a_conversation_goes_on_with_the_tokens_that_were_read_and_drawn(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    drawn = spelled(world, tokenizer, "clause twelve")
    first = await say(client, "Which?")
    remembered = prompt(world, 0) + drawn
    drawn = spelled(world, tokenizer, "and nine")
    second = await say(client, "Which else?", first["id"])
    assert prompt(world, 1)[: len(remembered)] == remembered
    remembered = prompt(world, 1) + drawn
    await say(client, "Go on", second["id"])
    assert prompt(world, 2)[: len(remembered)] == remembered
    # One branch, one session.
    assert list((await sessions(client)).values()) == [3]


async def test_two_replies_to_one_response_are_two_conversations(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    drawn = spelled(world, tokenizer, "clause twelve")
    first = await say(client, "Which?")
    remembered = prompt(world, 0) + drawn
    world.engine.enqueue("left")
    left = await say(client, "Left?", first["id"])
    world.engine.enqueue("right")
    right = await say(client, "Right?", first["id"])
    assert prompt(world, 2)[: len(remembered)] == remembered
    assert "Left" not in tokenizer.decode(prompt(world, 2)) and len(await sessions(client)) == 2
    for branch, own, other in ((left, "left", "right"), (right, "right", "left")):
        await say(client, "Go on", branch["id"])
        said = tokenizer.decode(prompt(world, -1))
        assert own in said and other not in said and "clause twelve" in said
        assert prompt(world, -1)[: len(remembered)] == remembered
    assert len(await sessions(client)) == 2


async def test_two_replies_at_the_same_time(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    first = await say(client, "Which?")
    world.engine.stall()
    both = [asyncio.create_task(say(client, text, first["id"])) for text in ("Left?", "Right?")]
    while len(world.engine.requests) < 3:
        await asyncio.sleep(0.001)
    world.engine.go_on()
    for made in await asyncio.gather(*both):
        assert made["previous_response_id"] == first["id"] and made["status"] == "completed"
    assert len(await sessions(client)) == 2


async def test_a_session_that_was_passed_on_is_not_given_away_again(client: httpx.AsyncClient, world: World) -> None:
    made = await say(client, "Which?")
    services: Services = world.app.state.fano.services
    stored = await services.conversations.get("default", made["id"])
    async with services.conversations.claimed("default", stored) as first:
        first.release()
        async with services.conversations.claimed("default", stored) as second:
            first.release()
            async with services.conversations.claimed("default", stored) as third:
                assert first.session == second.session != third.session


async def test_after_a_failure_the_conversation_goes_on_in_its_session(client: httpx.AsyncClient, world: World) -> None:
    first = await say(client, "Which?")
    world.engine.enqueue("half", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    body = {"model": MODEL, "input": "And?", "previous_response_id": first["id"], "stream": True}
    assert "event: response.failed\n" in (await client.post("/v1/responses", json=body)).text
    await say(client, "And?", first["id"])
    assert list((await sessions(client)).values()) == [2]


async def test_a_conversation_goes_on_while_the_end_of_the_stream_is_still_on_its_way(
    client: httpx.AsyncClient, world: World
) -> None:
    body = json.dumps({"model": MODEL, "input": "Which?", "stream": True}).encode()
    coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    coming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    completed: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    is_taken = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        for name, data in sse(message.get("body", b"").decode()):
            if name == "response.completed":
                completed.set_result(json.loads(data)["response"])
                await is_taken.wait()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/responses", "query_string": b""}
    scope |= {"scheme": "http", "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 80)}
    streaming = asyncio.create_task(world.app(scope, coming.get, send))
    made = await completed
    await say(client, "And?", made["id"])
    assert list((await sessions(client)).values()) == [2]
    is_taken.set()
    await streaming


async def test_what_is_remembered_is_counted_as_it_was_read(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    spelled(world, tokenizer, "clause twelve")
    first = await say(client, "Which?")
    body = {"model": MODEL, "input": "And?", "previous_response_id": first["id"]}
    counted = (await client.post("/v1/responses/input_tokens", json=body)).json()["input_tokens"]
    assert counted == (await say(client, "And?", first["id"]))["usage"]["input_tokens"]


async def test_instructions_are_those_of_the_request_alone(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    first = await say(client, "Which?", instructions="Be brief.")
    await say(client, "And?", first["id"], instructions="Be kind.")
    said = tokenizer.decode(prompt(world, 1))
    assert "Be kind." in said and "Be brief." not in said and "Which?" in said


async def test_without_store_a_conversation_goes_on_and_leaves_nothing(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("clause twelve")
    first = await say(client, "Which?")
    before = await sessions(client)
    await say(client, "And?", first["id"], store=False)
    assert "clause twelve" in tokenizer.decode(prompt(world, 1)) and await sessions(client) == before


async def test_a_conversation_survives_a_restart(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world()
    async with open_client(world) as client:
        drawn = spelled(world, tokenizer, "clause twelve")
        first = await say(client, "Which?")
        remembered = prompt(world, 0) + drawn
    world = new_world()
    async with open_client(world) as client:
        assert (await client.get(f"/v1/responses/{first['id']}")).json() == first
        second = await say(client, "And?", first["id"])
        assert prompt(world, 0)[: len(remembered)] == remembered
        assert len(await sessions(client)) == 1 and second["previous_response_id"] == first["id"]


async def test_a_session_that_is_gone_or_of_another_model_is_read_again(
    new_world: WorldMaker, tokenizer: Tokenizer
) -> None:
    world = new_world()
    async with open_client(world) as client:
        world.engine.enqueue("clause twelve")
        first = await say(client, "Which?")
        (name,) = await sessions(client)
        assert (await client.delete(f"/v1/sessions/{name}")).status_code == 200
        second = await say(client, "And?", first["id"])
        assert "clause twelve" in tokenizer.decode(prompt(world, 1))
    world = new_world()
    world.engine.parts["weights"] = "others"
    async with open_client(world) as client:
        third = await say(client, "Still?", second["id"])
        assert "clause twelve" in tokenizer.decode(prompt(world, 0)) and third["status"] == "completed"
        await say(client, "And now?", third["id"])
    other_policy = {"fano": {"policy": {"name": "full"}}}
    async with open_client(new_world()) as client:
        assert (await say(client, "Still?", second["id"], **other_policy))["status"] == "completed"


async def test_deleting_the_last_forgets_it_and_deleting_an_earlier_one_keeps_the_conversation(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("clause twelve")
    first = await say(client, "Which?")
    second = await say(client, "And?", first["id"])
    assert (await client.delete(f"/v1/responses/{first['id']}")).json() == {
        "id": first["id"],
        "object": "response",
        "deleted": True,
    }
    assert (await client.get(f"/v1/responses/{first['id']}")).status_code == 404
    third = await say(client, "More?", second["id"])
    assert "clause twelve" in tokenizer.decode(prompt(world, 2))
    refused = await client.post(
        "/v1/responses", json={"model": MODEL, "input": "And?", "previous_response_id": first["id"]}
    )
    assert refused.status_code == 404 and len(await sessions(client)) == 1
    for gone in (third, second):
        await client.delete(f"/v1/responses/{gone['id']}")
        assert await sessions(client) == {}
    path = world.settings.data_dir / "responses.sqlite3"
    kept = b"".join(each.read_bytes() for each in path.parent.glob("responses.sqlite3*"))
    assert b"clause twelve" not in kept and b"Which?" not in kept


async def test_another_tenant_finds_nothing(new_world: WorldMaker) -> None:
    from server.keys import Keys

    world = new_world(api_key="secret-of-default")
    _, other = Keys(world.settings.data_dir).add("theirs", "other")
    mine, theirs = ({"Authorization": f"Bearer {key}"} for key in ("secret-of-default", other))
    async with open_client(world, mine) as client:
        made = await say(client, "Which?")
        path = f"/v1/responses/{made['id']}"
        for method, at in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            reply = await client.request(method, f"{path}{at}", headers=theirs)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "response_not_found"), (method, at)
        for at in ("", "/input_tokens"):
            body = {"model": MODEL, "input": "And?", "previous_response_id": made["id"]}
            reply = await client.post(f"/v1/responses{at}", json=body, headers=theirs)
            assert (reply.status_code, reply.json()["error"]["param"]) == (404, "previous_response_id")
        assert (await client.get(path)).status_code == 200


async def test_sessions_of_responses_are_few_and_a_full_disk_fails_no_response(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_SESSIONS", 2)
    await client.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "fano": {"session": "mine"}},
    )
    made = [await say(client, f"Number {number}") for number in range(4)]
    names = list(await sessions(client))
    assert len(names) == 3 and "mine" in names
    assert (await say(client, "And?", made[0]["id"]))["status"] == "completed"

    def full(*_: Any, **__: Any) -> None:
        raise SessionStorageFull("no room")

    monkeypatch.setattr(Vault, "commit_turn", full)
    last = await say(client, "Once more", made[3]["id"])
    assert last["status"] == "completed" and (await client.get(f"/v1/responses/{last['id']}")).json() == last


async def test_a_disk_without_room_for_the_response(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise ResponseNotStored

    monkeypatch.setattr(ResponseStore, "put", full)
    reply = await client.post("/v1/responses", json={"model": MODEL, "input": "Hello"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "storage_full")
    streamed = await client.post("/v1/responses", json={"model": MODEL, "input": "Hello", "stream": True})
    assert streamed.status_code == 200 and "event: response.failed\n" in streamed.text
    assert "event: response.completed\n" not in streamed.text
    assert (await say(client, "Hello", store=False))["status"] == "completed"


async def test_old_responses_are_deleted(
    new_world: WorldMaker, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world()
    async with open_client(world) as client:
        old = await say(client, "Which?")
        services: Services = world.app.state.fano.services
        monkeypatch.setattr(conversations, "KEPT_SECONDS", -10)
        await say(client, "Hello", store=False)
        assert (await client.get(f"/v1/responses/{old['id']}")).status_code == 200, "it is looked at every ten minutes"
        services.conversations._swept = float("-inf")
        await say(client, "Hello", store=False)
        assert (await client.get(f"/v1/responses/{old['id']}")).status_code == 404
        assert await sessions(client) == {}


def test_a_store_of_a_later_version_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    ResponseStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreInvalid, match="schema 99"):
        ResponseStore(path)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreInvalid, match="cannot be read"):
        ResponseStore(path)


async def test_a_client_that_leaves_changes_nothing(client: httpx.AsyncClient, world: World) -> None:
    first = await say(client, "Which?")
    before = await sessions(client)
    world.engine.stall()
    going = asyncio.create_task(say(client, "And?", first["id"]))
    while len(world.engine.requests) < 2:
        await asyncio.sleep(0.001)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    world.engine.go_on()
    assert (await say(client, "Again?", first["id"]))["status"] == "completed"
    (version,) = (await sessions(client)).values()
    assert list(before.values()) == [1] and version == 2
