"""What the server says of the console, without a browser: who gets it, under which policy, and what lies in it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fakes_engine import write_tokenizer
from fakes_server import World, WorldMaker, make_world, open_client

from model.tokenizer import Tokenizer
from server.routes.console import MEDIA_TYPES, console_assets

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "server" / "console"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
KEY = "a-long-random-string"
REMOTE = {"host": "0.0.0.0", "api_key": KEY}


@pytest.fixture
def new_world(tmp_path: Path) -> WorldMaker:
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    return lambda **changes: make_world(tmp_path / "data", tokenizer, **changes)


@pytest.fixture
async def client(new_world: WorldMaker) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(new_world()) as client:
        yield client


async def test_the_page_and_all_that_it_names_are_served_under_a_strict_policy(client: httpx.AsyncClient) -> None:
    page = await client.get("/", headers=BROWSER)
    named = set(re.findall(r'(?:href|src)="(/[^"]+)"', page.text))
    assert len(named) >= 4
    for reply in [page, *[await client.get(path) for path in sorted(named)]]:
        assert reply.status_code == 200, reply.url
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-cache"
    assert page.headers["content-type"] == "text/html; charset=utf-8"


async def test_every_module_that_a_module_names_is_served_as_a_script(client: httpx.AsyncClient) -> None:
    for path in FOLDER.glob("*.js"):
        reply = await client.get(f"/console/{path.name}")
        assert reply.headers["content-type"].startswith("text/javascript") and reply.content == path.read_bytes()
        for name in re.findall(r'from "\./([^"]+)"', reply.text):
            assert (await client.get(f"/console/{name}")).status_code == 200, name


async def test_what_did_not_change_is_not_sent_again(client: httpx.AsyncClient) -> None:
    for path in ("/", "/console/look.css"):
        tag = (await client.get(path)).headers["etag"]
        again = await client.get(path, headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content) == (304, b"")
        assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "%2e%2e%2fapp.py", "..%2Fapp.py", "look.css/", ""])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    reply = await client.get(f"/console/{name}")
    assert reply.status_code in (307, 404)
    if reply.status_code == 404:
        assert reply.json()["error"]["code"] == "unknown_route"


async def test_where_a_key_is_needed_a_browser_gets_the_page_with_the_401(new_world: WorldMaker) -> None:
    async with open_client(new_world(**REMOTE)) as client:
        page = await client.get("/", headers=BROWSER)
        assert page.status_code == 401 and page.headers["www-authenticate"] == "Bearer"
        assert page.content == (FOLDER / "index.html").read_bytes()
        assert page.headers["cache-control"] == "no-store" and "etag" not in page.headers
        # A program is told in the envelope, and whoever has the key gets a 200.
        plain = await client.get("/")
        assert (plain.status_code, plain.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await client.get("/", headers={"Authorization": f"Bearer {KEY}"})).status_code == 200
        # Nothing but a key in a header opens the API: neither a cookie is set nor a password asked for.
        for reply in (page, plain):
            assert "set-cookie" not in reply.headers and "Basic" not in reply.headers["www-authenticate"]
        assert (
            'fano_refusals_total{code="invalid_api_key"} 2.0'
            in (await client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"})).text
        )


async def test_operators_may_open_it_and_other_sites_may_not(new_world: WorldMaker) -> None:
    async with open_client(new_world(**REMOTE, open_metrics=True)) as client:
        assert (await client.get("/", headers=BROWSER)).status_code == 200
    async with open_client(new_world()) as client:
        assert (await client.get("/", headers={"Host": "attacker.example"})).status_code == 403


async def test_what_can_be_chosen_is_told_by_the_server(client: httpx.AsyncClient, new_world: WorldMaker) -> None:
    told = (await client.get("/v1/models")).json()["data"][0]["fano"]
    for policy in told["policies"]:
        sent = {"prompt_tokens": 1000, "max_tokens": 1, "fano": {"policy": {"name": policy}}}
        assert (await client.post("/v1/plan", json=sent)).status_code == 200, policy
    refused = await client.post("/v1/plan", json={"prompt_tokens": 1000, "fano": {"policy": {"name": "none"}}})
    assert refused.status_code == 400
    assert set(told["policies"]) >= {"full", "window"} and told["recalls"] == ["verbatim", "grounded", "free"]


async def test_the_bill_tells_the_tokens(new_world: WorldMaker) -> None:
    world: World = new_world()
    world.engine.tell(num_prompt_tokens=70, num_cached_tokens=30, num_completion_tokens=5)
    async with open_client(world) as client:
        told = (await client.get("/v1/memory")).json()["tokens"]
    assert told == {"prompt": 70, "cached": 30, "completion": 5}


def test_nothing_in_it_comes_from_elsewhere_or_stands_inline() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(console_assets())
    assert {path.suffix for path in FOLDER.iterdir()} == set(MEDIA_TYPES)
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert not re.search(r"(?<!xmlns=\")(?<!NS\(\")https?://|url\(|@import", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
