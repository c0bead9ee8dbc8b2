"""Named sessions over HTTP, with a scripted engine and a real disk."""

import asyncio
from array import array
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_checkpoints import CONV_BYTES, KV_BYTES, SSM_BYTES
from fakes_engine import WINDOW
from fakes_server import MODEL, World, WorldMaker, open_client

from model.tokenizer import Tokenizer
from server.answers.inquiry import AnswerDone, ChoiceDone, Inquiry, Sampling
from server.answers.prompt import Turn
from server.services import Services
from server.sessions.errors import SessionStorageFull
from server.sessions.vault import Vault

MAX_BYTES = 1 << 30


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


HELLO = [message("user", "Hello there")]


def body(messages: list[dict[str, str]], session: str = "talk", **more: Any) -> dict[str, Any]:
    fano = {"session": session} | more.pop("fano", {})
    return {"model": MODEL, "messages": messages, "fano": fano, **more}


async def say(
    client: httpx.AsyncClient, messages: list[dict[str, str]], session: str = "talk", **more: Any
) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body(messages, session, **more))


async def act(client: httpx.AsyncClient, path: str, status: int = 200, **more: Any) -> dict[str, Any]:
    reply = await client.post(f"/v1/sessions/{path}", **more)
    assert reply.status_code == status, reply.text
    told: dict[str, Any] = reply.json()
    return told


async def look(client: httpx.AsyncClient, name: str = "talk") -> dict[str, Any]:
    reply = await client.get(f"/v1/sessions/{name}")
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def error_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def scripted(world: World, tokenizer: Tokenizer, text: str) -> list[int]:
    """Let the engine answer with ``text`` and the end of the turn; the ids it will draw."""
    end = next(iter(tokenizer.chat_parts(HELLO)[3:4]))
    assert isinstance(end, int)
    ids = [*tokenizer.encode_ids(text), end]
    pieces = [text, *[""] * (len(ids) - 1)]
    world.engine.enqueue("", pieces=pieces, token_ids=ids)
    return ids


def stored(world: World, name: str = "talk") -> "array[int]":
    """The history on the disk, as another process would find it."""
    vault = Vault(world.settings.data_dir / "sessions", MAX_BYTES)
    manifest = vault.get("default", name)
    assert manifest is not None
    return vault.load_tokens(manifest)


def services_of(world: World) -> Services:
    services: Services = world.app.state.fano.services
    return services


async def test_a_turn_becomes_the_history_and_the_next_one_begins_with_it(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    drawn = scripted(world, tokenizer, "clause twelve")
    reply = await say(client, HELLO)
    assert reply.json()["choices"][0]["message"]["content"] == "clause twelve"
    history = [*tokenizer.encode_chat(HELLO), *drawn]
    assert list(stored(world)) == history
    again = [*HELLO, message("assistant", "clause twelve"), message("user", "Which of them? " * 20)]
    await say(client, again)
    request = world.engine.requests[1]
    assert list(request.prompt_ids[: len(history)]) == history
    # The end of the last message stands beside the end of the prompt.
    assert request.keep.tail and request.keep.borders == (len(tokenizer.encode_chat(HELLO)) - 1, len(history))
    assert (await look(client))["version"] == 2


async def test_the_object_tells_tokens_tier_and_bytes(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    drawn = scripted(world, tokenizer, "clause twelve")
    await say(client, HELLO)
    num_tokens = len(tokenizer.encode_chat(HELLO)) + len(drawn)
    told = await look(client)
    # The token drawn last was not read.
    assert (told["num_tokens"], told["state_tokens"], told["status"]) == (num_tokens, num_tokens - 1, "resident")
    assert told["bytes"] == {"ssm_state": SSM_BYTES, "conv_state": CONV_BYTES, "kv": KV_BYTES, "kv_archive": 0}
    assert (told["version"], told["saved_version"], told["documents"]) == (1, None, [])
    assert told["fingerprint"]["policy"] == "window, sinks 64, window 2048"
    world.engine.checkpoints.drop_all()
    told = await look(client)
    assert (told["status"], told["state_tokens"], told["bytes"]["ssm_state"]) == ("tokens", 0, 0)


@pytest.mark.parametrize("asks_document", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_on_the_disk_before_the_end_of_the_turn_is_told(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch, stream: bool, asks_document: bool
) -> None:
    told: list[bool] = []

    def failing(self: Vault, *args: Any, **more: Any) -> Any:
        told.append(True)
        monkeypatch.undo()
        raise SessionStorageFull("the disk is full")

    documents = [world.library.put("Hello there, said the vault.")] if asks_document else []
    monkeypatch.setattr(Vault, "commit_turn", failing)
    reply = await say(client, HELLO, stream=stream, fano={"documents": documents})
    assert told == [True]
    if stream:
        assert "[DONE]" not in reply.text and '"finish_reason":"stop"' not in reply.text
        assert '"content":"ok"' in reply.text and '"code":"session_storage_full"' in reply.text
    else:
        assert error_of(reply) == (507, "session_storage_full")
    # Nothing was changed, and the name is free.
    assert (await client.get("/v1/sessions/talk")).status_code == 404
    assert (await say(client, HELLO)).status_code == 200


async def test_two_requests_at_once_cannot_have_one_session(client: httpx.AsyncClient, world: World) -> None:
    await say(client, HELLO)
    world.engine.stall()
    first = asyncio.create_task(say(client, HELLO))
    while len(world.engine.requests) < 2:
        await asyncio.sleep(0.002)
    for path in ("save", "restore", "fork"):
        reply = await client.post(f"/v1/sessions/talk/{path}", json={"to": "copy"} if path == "fork" else None)
        assert error_of(reply) == (409, "session_busy")
    assert error_of(await client.delete("/v1/sessions/talk")) == (409, "session_busy")
    second = await say(client, HELLO, stream=True)
    assert error_of(second) == (409, "session_busy") and "Retry-After" in second.headers
    assert (await look(client))["version"] == 1
    world.engine.go_on()
    assert (await first).status_code == 200
    assert (await say(client, HELLO)).status_code == 200


async def test_the_next_turn_may_follow_when_the_end_of_this_one_is_told(
    client: httpx.AsyncClient, world: World
) -> None:
    services = services_of(world)
    inquiry = Inquiry("r", "default", (Turn("user", "Hello"),), (), "free", Sampling(), 5, 0.0, session="talk")
    async with services.answering.answer(inquiry) as answer:
        async for event in answer.events():
            if isinstance(event, ChoiceDone | AnswerDone):
                # The first answer's block is not left yet: a client is quicker than the end of its reply.
                assert (await say(client, HELLO)).status_code == 200
            else:
                assert error_of(await say(client, HELLO)) == (409, "session_busy")
    assert (await look(client))["version"] == 3


async def test_a_turn_that_fails_leaves_the_history_as_it_was(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    from model.errors import DeadlineExceeded

    drawn = scripted(world, tokenizer, "clause twelve")
    await say(client, HELLO)
    world.engine.enqueue("half an", error=DeadlineExceeded(3))
    assert (await say(client, HELLO)).status_code == 504
    assert list(stored(world)) == [*tokenizer.encode_chat(HELLO), *drawn]
    assert (await look(client))["version"] == 1


async def test_a_client_that_leaves_frees_the_name(client: httpx.AsyncClient, world: World) -> None:
    world.engine.stall()
    task = asyncio.create_task(say(client, HELLO))
    while not world.engine.requests:
        await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.wait({task})
    world.engine.go_on()
    async with asyncio.timeout(60):
        while (await say(client, HELLO)).status_code == 409:
            await asyncio.sleep(0.01)
    assert (await look(client))["version"] == 1


async def test_a_conversation_that_diverges_replaces_the_history(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    await say(client, HELLO)
    other = [message("user", "Something else")]
    drawn = scripted(world, tokenizer, "indeed")
    await say(client, other)
    assert list(stored(world)) == [*tokenizer.encode_chat(other), *drawn]
    assert (await look(client))["version"] == 2


async def test_passages_never_enter_the_history(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    document = world.library.put("The vault opens at noon. Nobody knows why.")
    scripted(world, tokenizer, "at noon")
    question = [message("user", "When does the vault open?")]
    reply = await say(client, question, fano={"documents": [document]})
    answer = reply.json()["choices"][0]["message"]["content"]
    assert "noon" in tokenizer.decode(world.engine.requests[0].prompt_ids)
    expected = [*tokenizer.encode_chat(question), *tokenizer.encode_ids(answer)]
    assert list(stored(world)) == expected and answer
    assert (await look(client))["documents"] == [document]
    # Later questions keep the ids of earlier turns, passages stand only before the question.
    second = [*question, message("assistant", answer), message("user", "And who knows why?")]
    await say(client, second, fano={"documents": [document]})
    assert list(world.engine.requests[1].prompt_ids[: len(expected)]) == expected


async def test_what_was_not_found_is_remembered_as_it_was_told(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put("The vault opens at noon.")
    reply = await say(client, [message("user", "Zzz qqq?")], fano={"documents": [document]})
    assert reply.json()["choices"][0]["message"]["content"].startswith("Nothing about this was found")
    assert world.engine.requests == [] and (await look(client))["version"] == 1


async def test_another_policy_is_refused_and_the_sessions_own_is_kept(client: httpx.AsyncClient, world: World) -> None:
    own = {"name": "window", "sinks": 64, "window": 1024}
    await say(client, HELLO, fano={"policy": own})
    refused = await say(client, HELLO, fano={"policy": {"name": "full"}})
    assert error_of(refused) == (409, "session_policy")
    assert "sinks 64, window 1024" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "fano.policy"
    assert refused.headers["x-should-retry"] == "false"
    await say(client, HELLO)
    assert world.engine.requests[-1].policy is not None and world.engine.requests[-1].policy.window == 1024


async def test_save_reads_what_is_missing_and_restore_brings_it_back(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    scripted(world, tokenizer, "clause twelve")
    await say(client, HELLO)
    saved = await act(client, "talk/save")
    assert (saved["version"], saved["saved_version"]) == (2, 2)
    assert saved["state_tokens"] == saved["num_tokens"]
    assert ("default", "talk") in world.engine.checkpoints.released
    assert world.engine.requests[-1].is_background and world.engine.requests[-1].sampling.max_tokens == 0
    world.engine.checkpoints.drop_all()
    assert (await look(client))["status"] == "saved"
    restored = await act(client, "talk/restore")
    assert (restored["status"], restored["state_tokens"]) == ("host", saved["num_tokens"])
    assert restored["checksum"] == saved["checksum"] and restored["version"] == 2


async def test_restore_goes_back_to_the_history_that_was_saved(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    drawn = scripted(world, tokenizer, "clause twelve")
    await say(client, HELLO)
    await act(client, "talk/save")
    await say(client, [*HELLO, message("assistant", "clause twelve"), message("user", "Which?")])
    restored = await act(client, "talk/restore")
    assert list(stored(world)) == [*tokenizer.encode_chat(HELLO), *drawn]
    assert (restored["version"], restored["num_tokens"]) == (4, len(stored(world)))


async def test_a_session_that_was_not_saved_cannot_be_restored(client: httpx.AsyncClient) -> None:
    await say(client, HELLO)
    reply = await client.post("/v1/sessions/talk/restore")
    assert error_of(reply) == (409, "session_not_saved") and "/v1/sessions/talk/save" in reply.text


async def test_what_is_too_short_for_a_state_is_restored_as_it_stands(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.engine.checkpoints, "keep", lambda *_: None)
    await say(client, HELLO)
    saved = await act(client, "talk/save")
    assert (saved["status"], saved["state_tokens"], saved["saved_version"]) == ("tokens", 0, 2)
    assert await act(client, "talk/restore") == saved


async def test_a_fork_goes_on_by_itself(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    scripted(world, tokenizer, "clause twelve")
    await say(client, HELLO)
    before = list(stored(world))
    num_requests = len(world.engine.requests)
    fork = await act(client, "talk/fork", 201, json={"to": "copy"})
    assert (fork["name"], fork["num_tokens"], fork["status"]) == ("copy", len(before), "resident")
    assert len(world.engine.requests) == num_requests
    # Neither is on the disk, so neither may be given up; a fork of what was saved may.
    assert {"talk", "copy"} <= {name for _, name in world.engine.checkpoints.anchors}
    assert world.engine.checkpoints.released == set()
    await say(client, [*HELLO, message("assistant", "clause twelve"), message("user", "Which?")], "copy")
    assert list(world.engine.requests[-1].prompt_ids[: len(before)]) == before
    assert list(stored(world)) == before and len(stored(world, "copy")) > len(before)
    assert error_of(await client.post("/v1/sessions/talk/fork", json={"to": "copy"})) == (409, "session_exists")
    assert error_of(await client.post("/v1/sessions/talk/fork", json={"to": "talk"})) == (409, "session_exists")
    assert error_of(await client.post("/v1/sessions/none/fork", json={"to": "none"})) == (404, "session_not_found")
    await act(client, "talk/save")
    await act(client, "talk/fork", 201, json={"to": "third"})
    assert world.engine.checkpoints.released == {("default", "talk"), ("default", "third")}
    for to in ("", "no name", "document:x", "-x", "x" * 129):
        assert (await client.post("/v1/sessions/talk/fork", json={"to": to})).status_code == 400


async def test_the_list_is_by_name_in_pages(client: httpx.AsyncClient) -> None:
    for name in ("b", "a", "c"):
        await say(client, HELLO, name)
    first = (await client.get("/v1/sessions?limit=2")).json()
    assert [each["name"] for each in first["data"]] == ["a", "b"] and first["has_more"]
    rest = (await client.get(f"/v1/sessions?after={first['last_id']}")).json()
    assert [each["name"] for each in rest["data"]] == ["c"] and not rest["has_more"]


async def test_nothing_of_a_deleted_session_is_left(client: httpx.AsyncClient, world: World) -> None:
    await say(client, HELLO)
    await act(client, "talk/save")
    reply = await client.delete("/v1/sessions/talk")
    assert reply.json() == {"name": "talk", "object": "session.deleted", "deleted": True}
    assert error_of(await client.get("/v1/sessions/talk")) == (404, "session_not_found")
    assert error_of(await client.delete("/v1/sessions/talk")) == (404, "session_not_found")
    assert not [path for path in (world.settings.data_dir / "sessions").rglob("*") if path.is_file()]
    assert world.engine.checkpoints.kept == {} and world.engine.checkpoints.anchors == {}


async def test_another_tenants_sessions_are_unknown(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        await say(client, HELLO)
        services = services_of(world)
        assert await services.book.page("other", None, 10) == []
        for work in (services.book.get, services.book.save, services.book.restore, services.book.delete):
            with pytest.raises(Exception, match="no session has the name"):
                await work("other", "talk")


async def test_a_later_process_goes_on_with_the_tokens(
    new_world: WorldMaker, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    world = new_world()
    async with open_client(world) as client:
        drawn = scripted(world, tokenizer, "clause twelve")
        await say(client, HELLO)
        await act(client, "talk/save")
    history = [*tokenizer.encode_chat(HELLO), *drawn]
    later = new_world()
    async with open_client(later) as client:
        assert (await look(client))["status"] == "saved"
        await say(client, [*HELLO, message("assistant", "clause twelve"), message("user", "Which?")])
        assert list(later.engine.requests[0].prompt_ids[: len(history)]) == history
        # The saved state was brought to the host before the question was read.
        assert later.engine.checkpoints.kept[(("default", WINDOW), tuple(history))] == "host"


async def test_another_fingerprint_is_refused_with_both_values_and_the_remedy(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        await say(client, HELLO)
        await say(client, HELLO, "unsaved")
        await act(client, "talk/save")
    later = new_world()
    later.engine.parts["dtype"] = "bfloat16"
    async with open_client(later) as client:
        for reply in (await say(client, HELLO), await client.post("/v1/sessions/talk/restore")):
            assert error_of(reply) == (409, "session_fingerprint")
            told = reply.json()["error"]["message"]
            assert "dtype was 'float32' and is 'bfloat16'" in told and "FANO_DTYPE set to float32" in told
        # Tokens alone do not depend on it.
        assert (await say(client, HELLO, "unsaved")).status_code == 200
        assert (await look(client, "unsaved"))["fingerprint"]["dtype"] == "bfloat16"
        assert (await client.delete("/v1/sessions/talk")).status_code == 200


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


async def test_a_damaged_state_is_refused_and_saving_again_mends_it(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        await say(client, HELLO)
        await act(client, "talk/save")
    manifest = Vault(world.settings.data_dir / "sessions", MAX_BYTES).get("default", "talk")
    assert manifest is not None
    state = manifest.checkpoints[-1].state.name
    (path,) = (world.settings.data_dir / "sessions").rglob(f"{state}*")
    alter(path)
    later = new_world()
    async with open_client(later) as client:
        for reply in (await say(client, HELLO), await client.post("/v1/sessions/talk/restore")):
            assert error_of(reply) == (409, "session_damaged")
            assert "/v1/sessions/talk/save" in reply.json()["error"]["message"]
        assert later.engine.checkpoints.kept == {}
        assert (await act(client, "talk/save"))["num_tokens"] == manifest.num_tokens
        assert (await say(client, HELLO)).status_code == 200


async def test_damaged_tokens_are_refused_until_the_session_is_deleted(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        await say(client, HELLO)
    (path,) = [each for each in (world.settings.data_dir / "sessions" / "segments").rglob("*") if each.is_file()]
    alter(path)
    async with open_client(new_world()) as client:
        assert error_of(await say(client, HELLO)) == (409, "session_damaged")
        assert (await client.delete("/v1/sessions/talk")).status_code == 200
        assert (await say(client, HELLO)).status_code == 200


async def test_a_damaged_manifest_is_not_taken_for_a_new_session(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        await say(client, HELLO)
    (path,) = [each for each in (world.settings.data_dir / "sessions" / "manifests").rglob("*") if each.is_file()]
    alter(path)
    async with open_client(new_world()) as client:
        assert error_of(await say(client, HELLO)) == (409, "session_damaged")
        assert error_of(await client.get("/v1/sessions/talk")) == (409, "session_damaged")
        assert (await client.delete("/v1/sessions/talk")).status_code == 200
        assert (await say(client, HELLO)).status_code == 200


async def test_a_host_without_room_reads_the_tokens_again_but_restore_says_so(new_world: WorldMaker) -> None:
    world = new_world()
    async with open_client(world) as client:
        await say(client, HELLO)
        await act(client, "talk/save")
        world.engine.checkpoints.drop_all()
        world.engine.checkpoints.room = 0
        assert (await say(client, HELLO)).status_code == 200
        await act(client, "talk/save")
        world.engine.checkpoints.drop_all()
        assert error_of(await client.post("/v1/sessions/talk/restore")) == (507, "session_memory_full")


async def test_when_the_host_fills_up_what_was_used_longest_ago_is_saved(
    client: httpx.AsyncClient, world: World
) -> None:
    for name in ("old", "mid"):
        await say(client, HELLO, name)
    one = SSM_BYTES + CONV_BYTES + KV_BYTES
    world.engine.tell(checkpoint_budget_bytes=4 * one, checkpoint_bytes=3 * one + 1)
    await say(client, HELLO, "new")
    async with asyncio.timeout(60):
        while (await look(client, "old"))["saved_version"] is None:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert (await look(client, "mid"))["saved_version"] is None
    assert (await look(client, "new"))["saved_version"] is None
    assert world.engine.checkpoints.released == {("default", "old")}


async def test_the_servers_own_saving_is_waited_for(client: httpx.AsyncClient, world: World) -> None:
    await say(client, HELLO)
    with services_of(world).book._register.occupied("default", "talk", is_upkeep=True):
        waiting = asyncio.create_task(say(client, HELLO))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    assert (await waiting).status_code == 200


async def test_a_full_disk_budget_refuses_and_changes_nothing(new_world: WorldMaker) -> None:
    world = new_world(session_disk_bytes=2000)
    async with open_client(world) as client:
        assert (await say(client, HELLO)).status_code == 200
        reply = await client.post("/v1/sessions/talk/save")
        assert error_of(reply) == (507, "session_storage_full") and "FANO_SESSION_DISK_BYTES" in reply.text
        assert (await look(client))["version"] == 1
