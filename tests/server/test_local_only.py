"""Without a key only this machine is served, and no web page of another site."""

import httpx
import pytest
from fakes_server import World, WorldMaker, open_client


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "127.0.0.2"])
async def test_names_of_this_machine_are_served(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Host", "attacker.example"),
        ("Host", "127.0.0.1.attacker.example:8000"),
        ("Host", "[::1"),
        ("Origin", "https://attacker.example"),
        ("Origin", "null"),
    ],
)
async def test_other_names_and_sites_are_refused(client: httpx.AsyncClient, header: str, value: str) -> None:
    files = {"file": ("a.txt", b"text", "text/plain")}
    response = await client.post("/v1/documents", files=files, headers={header: value})
    assert response.status_code == 403
    error = response.json()["error"]
    assert error["code"] == "host_not_allowed"
    assert header in error["message"] and value in error["message"]
    assert response.headers["x-request-id"]


async def test_a_page_of_this_machine_may_ask(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"Origin": "http://127.0.0.1:8000"})
    assert response.status_code == 200


async def test_with_a_key_the_key_decides(new_world: WorldMaker) -> None:
    world: World = new_world(api_key="secret")
    async with open_client(world) as client:
        headers = {"Host": "fano.example", "Authorization": "Bearer secret"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
