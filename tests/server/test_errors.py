"""One envelope for every refusal, whoever makes it; keys; ids; and nothing a client sends is a 500."""

import errno
import inspect
import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fakes_routes import routes_of
from fakes_server import MODEL, World, WorldMaker, open_client

import model.errors
import retrieval.errors
from model.errors import ModelError, RequestRefused
from retrieval.errors import RetrievalError
from server.error_table import TABLE, envelope, row_of

# Raised while loading or inside the library, never by a request.
NOT_OVER_HTTP = {
    "ModelError",
    "RequestRefused",
    "ConfigInvalid",
    "CheckpointNotFound",
    "WeightsMismatch",
    "PoolExhausted",
    "RetrievalError",
    "ParseFailed",
    "DataDirectoryInUse",
    "StoreInvalid",
    "VectorsInvalid",
    "IndexDamaged",
    "IndexUnavailable",
}


def test_every_error_of_the_packages_has_a_row_or_never_meets_a_request() -> None:
    for package, root in ((model.errors, ModelError), (retrieval.errors, RetrievalError)):
        for name, cls in inspect.getmembers(package, inspect.isclass):
            if issubclass(cls, root):
                assert (name in NOT_OVER_HTTP) != any(each in TABLE for each in cls.__mro__), name
    assert RequestRefused in inspect.getmro(model.errors.PromptTooLong)


def test_statuses_are_those_of_the_contract() -> None:
    statuses = {cls.__name__: row.status for cls, row in TABLE.items()}
    assert statuses["UnknownDocument"] == 404 and statuses["DocumentNotReady"] == 409
    assert statuses["BodyTooLarge"] == 413 and statuses["UnsupportedMediaType"] == 415
    assert statuses["QueueFull"] == 429 and statuses["EngineDraining"] == 503


def test_an_unexpected_error_tells_nothing_of_itself() -> None:
    assert row_of(ValueError("secret")).status == 500
    assert "secret" not in str(envelope(ValueError("secret")))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_route"),
        ("GET", "/v1/documents/a/b/c", 404, "unknown_route"),
        ("POST", "/v1/nothing", 404, "unknown_route"),
        ("PUT", "/v1/documents", 405, "method_not_allowed"),
        ("GET", "/v1/ask", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-6", 404, "model_not_found"),
    ],
)
async def test_the_frameworks_refusals_use_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"} and set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert reply.json()["error"]["code"] == code
    assert (reply.headers.get("allow") is not None) == (status == 405)


async def test_every_reply_has_an_id_and_a_plain_one_is_kept(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/v1/nothing", "/v1/models"):
        assert (await client.get(path)).headers["x-request-id"].startswith("req_")
    assert (await client.get("/healthz", headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
    forged = await client.get("/healthz", headers={"x-request-id": "a b\tc"})
    assert forged.headers["x-request-id"].startswith("req_")


async def test_a_disk_without_room_is_told_wherever_it_is_met(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_sqlite = sqlite3.OperationalError("database or disk is full")
    of_sqlite.sqlite_errorcode = sqlite3.SQLITE_FULL
    for error in (of_sqlite, OSError(errno.ENOSPC, "No space left on device")):
        monkeypatch.setattr(world.library, "get", raising(error))
        reply = await client.get("/v1/documents/doc_1")
        assert (reply.status_code, reply.json()["error"]["code"]) == (507, "storage_full")
    monkeypatch.setattr(world.library, "get", raising(PermissionError("secret")))
    reply = await client.get("/v1/documents/doc_1")
    assert reply.status_code == 500 and "secret" not in reply.text


def raising(error: Exception) -> Callable[..., None]:
    def broken(*_: Any) -> None:
        raise error

    return broken


async def test_a_defect_is_a_500_with_the_id_and_without_its_words(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.library, "get", raising(RuntimeError("secret")))
    reply = await client.get("/v1/documents/doc_1", headers={"x-request-id": "mine-2"})
    assert reply.status_code == 500 and reply.headers["x-request-id"] == "mine-2"
    assert reply.json()["error"]["code"] == "internal_error" and "secret" not in reply.text


async def test_the_same_request_id_twice_is_no_conflict(client: httpx.AsyncClient, world: World) -> None:
    import asyncio

    world.engine.stall()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"x-request-id": "same"}
    both = [asyncio.create_task(client.post("/v1/chat/completions", json=body, headers=headers)) for _ in range(2)]
    await asyncio.sleep(0.05)
    world.engine.go_on()
    assert [(await reply).status_code for reply in both] == [200, 200]


KEY = "a-long-random-string"


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xe4"]
)
async def test_without_the_key_nothing_is_served(new_world: WorldMaker, authorization: str | None) -> None:
    headers = {"authorization": authorization.encode("latin-1")} if authorization is not None else {}
    async with open_client(new_world(api_key=KEY, host="0.0.0.0")) as client:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/documents"),
            ("POST", "/v1/documents"),
            ("DELETE", "/v1/documents/doc_1"),
            ("GET", "/v1/documents/doc_1/events"),
            ("GET", "/metrics"),
        ):
            reply = await client.request(method, path, headers=headers)
            assert reply.status_code == 401, path
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_with_the_key_everything_is(new_world: WorldMaker) -> None:
    async with open_client(new_world(api_key=KEY, host="0.0.0.0")) as client:
        for path in ("/v1/models", "/v1/documents", "/metrics"):
            assert (await client.get(path, headers={"authorization": f"bearer {KEY}"})).status_code == 200


async def test_metrics_may_be_opened(new_world: WorldMaker) -> None:
    async with open_client(new_world(api_key=KEY, host="0.0.0.0", open_metrics=True)) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


async def test_a_key_is_checked_before_the_question_is(new_world: WorldMaker) -> None:
    async with open_client(new_world(api_key=KEY)) as client:
        assert (await client.post("/v1/ask", json={"question": "q", "documents": ["d"]})).status_code == 401
        assert (await client.post("/v1/documents", content=b"x" * 100)).status_code == 401


async def test_the_openapi_page_lists_the_routes(client: httpx.AsyncClient, world: World) -> None:
    assert (await client.get("/docs")).status_code == 200
    schema = (await client.get("/openapi.json")).json()
    assert set(schema["paths"]) == {path for _, path in routes_of(world.app)}
