"""Keys: kept as hashes, followed by a running server, needed from the first one on."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import WorldMaker, open_client
from pydantic import SecretStr
from typer.testing import CliRunner

from server.app import create_app
from server.commands.cli import app
from server.errors import KeyRefused, KeysUnknown
from server.keys import Keys, KeysError, KeysUnreadable, unreadable_by_name
from server.settings import Settings, SettingsInvalid
from server.tenants import Tenants, open_tenants

runner = CliRunner()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """That of ``new_world``."""
    return tmp_path / "data"


def run(data_dir: Path, *arguments: str) -> Any:
    return runner.invoke(app, ["keys", *arguments, "--data-dir", str(data_dir)])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def files_of(data_dir: Path) -> bytes:
    return b"".join(path.read_bytes() for path in data_dir.glob("keys.sqlite3*"))


def test_a_key_is_shown_once_and_kept_as_a_hash(data_dir: Path) -> None:
    done = run(data_dir, "add", "laptop")
    key = done.stdout.strip()
    assert done.exit_code == 0 and key.startswith("fano-") and len(key) >= 5 + 43
    assert "is not shown again" in done.stderr and key not in done.stderr
    assert key.encode() not in files_of(data_dir) and key[5:].encode() not in files_of(data_dir)
    assert stat.S_IMODE((data_dir / "keys.sqlite3").stat().st_mode) == 0o600
    listed = run(data_dir, "list")
    assert key not in listed.stdout and f"...{key[-4:]}" in listed.stdout and "laptop" in listed.stdout
    assert run(data_dir, "add", "another").stdout.strip() != key


def test_json_of_add_list_and_revoke(data_dir: Path) -> None:
    made = json.loads(run(data_dir, "add", "ci", "--tenant", "acme", "--json").stdout)
    assert set(made) == {"id", "tenant", "name", "last4", "created_at", "revoked_at", "key"}
    assert (made["tenant"], made["name"], made["last4"], made["revoked_at"]) == ("acme", "ci", made["key"][-4:], None)
    assert abs(made["created_at"] - time.time()) < 60
    (listed,) = json.loads(run(data_dir, "list", "--json").stdout)
    assert listed == {name: value for name, value in made.items() if name != "key"}
    ended = json.loads(run(data_dir, "revoke", made["id"], "--json").stdout)
    assert ended["id"] == made["id"] and ended["revoked_at"] >= made["created_at"]
    assert json.loads(run(data_dir, "list", "--json").stdout) == [ended]


def test_an_empty_list_says_how_to_begin(data_dir: Path) -> None:
    done = run(data_dir, "list")
    assert (done.exit_code, done.stdout) == (0, "") and "fano keys add NAME" in done.stderr
    assert run(data_dir, "list", "--json").stdout == "[]\n"
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "x", "--tenant", "Acme Inc"], "the tenant 'Acme Inc' must be"),
        (["add", "x", "--tenant", "../default"], "the tenant '../default' must be"),
        (["add", " "], "the name ' ' must be"),
        (["add", "a\nb"], "the name 'a\\nb' must be"),
        (["add", "taken"], "a key named 'taken' is in use; revoke it first"),
        (["revoke", "nobody"], "there is no key 'nobody' in use; `fano keys list` shows"),
    ],
)
def test_refusals_are_one_line_and_status_1(data_dir: Path, arguments: list[str], words: str) -> None:
    Keys(data_dir).add("taken")
    done = run(data_dir, *arguments)
    assert done.exit_code == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert len(Keys(data_dir).list()) == 1


def test_a_name_is_free_again_after_its_key_was_revoked(data_dir: Path) -> None:
    first, _ = Keys(data_dir).add("ci")
    done = run(data_dir, "revoke", "ci")
    assert done.exit_code == 0 and "is revoked; 0 in use" in done.stdout
    second, _ = Keys(data_dir).add("ci")
    assert run(data_dir, "revoke", first.id).stdout.endswith("1 in use.\n")
    assert "was revoked" in run(data_dir, "revoke", first.id).stdout
    assert [key.revoked_at is None for key in Keys(data_dir).list()] == [False, True]
    assert Keys(data_dir).revoke("ci")[0].id == second.id


def test_revoking_without_any_key_is_an_error(data_dir: Path) -> None:
    with pytest.raises(KeysError, match="has no keys yet"):
        Keys(data_dir).revoke("x")
    assert not data_dir.exists()


async def test_a_running_server_follows_at_the_next_request(new_world: WorldMaker, data_dir: Path) -> None:
    """Also where another process makes the change, as an operator's does."""
    kept = Keys(data_dir)
    _, first = kept.add("first")

    async def status(client: httpx.AsyncClient, key: str) -> int:
        return (await client.get("/v1/documents", headers=bearer(key))).status_code

    async with open_client(new_world(host="0.0.0.0")) as client:
        assert await status(client, first) == 200 and await status(client, "fano-wrong") == 401
        command = [sys.executable, "-m", "server", "keys", "add", "second", "--data-dir", str(data_dir)]
        second = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert [await status(client, key) for key in (first, second)] == [200, 200]
        kept.revoke("first")
        assert [await status(client, key) for key in (first, second)] == [401, 200]
        for place in range(20):  # However close together.
            _, key = kept.add(f"key {place}")
            assert await status(client, key) == 200
            kept.revoke(f"key {place}")
            assert await status(client, key) == 401


async def test_each_key_opens_what_its_tenant_has(new_world: WorldMaker, data_dir: Path) -> None:
    kept = Keys(data_dir)
    keys = [kept.add("a", "acme")[1], kept.add("b", "blue")[1], kept.add("also a", "acme")[1]]
    world = new_world(api_key="the settings' own")
    mine, theirs = world.library.put("The vault.", tenant="acme"), world.library.put("The vault.")
    async with open_client(world) as client:
        for key, seen in zip([*keys, "the settings' own"], [[mine], [], [mine], [theirs]], strict=True):
            listed = (await client.get("/v1/documents", headers=bearer(key))).json()["data"]
            assert [each["id"] for each in listed] == seen


async def test_the_first_key_ends_the_time_without_keys(new_world: WorldMaker, data_dir: Path) -> None:
    async with open_client(new_world()) as client:
        assert (await client.get("/v1/documents")).status_code == 200
        done = run(data_dir, "add", "first")
        assert "From now on every request needs a key" in done.stderr
        assert (await client.get("/v1/documents")).status_code == 401
        headers = bearer(done.stdout.strip())
        assert (await client.get("/v1/documents", headers=headers)).status_code == 200
        # With a key it is the key that decides, not the name by which the server is called.
        assert (await client.get("/v1/documents", headers=headers | {"Host": "fano.example"})).status_code == 200
        assert "is revoked; 0 in use" in run(data_dir, "revoke", "first").stdout
        assert (await client.get("/v1/documents")).status_code == 401
        for path in data_dir.glob("keys.sqlite3*"):
            path.unlink()
        assert (await client.get("/v1/documents")).status_code == 401
        assert (await client.get("/metrics")).status_code == (await client.get("/v1/memory")).status_code == 200
    # A new process on the directory as it is now serves this machine again.
    async with open_client(new_world()) as client:
        assert (await client.get("/v1/documents")).status_code == 200


async def test_without_a_good_key_nobody_is_served_after_a_restart(new_world: WorldMaker, data_dir: Path) -> None:
    Keys(data_dir).add("only")
    Keys(data_dir).revoke("only")
    async with open_client(new_world()) as client:
        assert (await client.get("/v1/documents")).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "fano.example.org"])
def test_another_host_needs_a_key(data_dir: Path, host: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"`fano keys add NAME`, set FANO_API_KEY to a long random string, or"):
        create_app(Settings(data_dir=data_dir, host=host))
    open_tenants(Settings(data_dir=data_dir, host=host, api_key=SecretStr("k"))).close()
    Keys(data_dir).add("first")
    open_tenants(Settings(data_dir=data_dir, host=host)).close()
    Keys(data_dir).revoke("first")
    with pytest.raises(SettingsInvalid, match="no key protects the documents"):
        open_tenants(Settings(data_dir=data_dir, host=host))


async def test_numbers_of_the_process_need_any_tenants_key(new_world: WorldMaker, data_dir: Path) -> None:
    _, key = Keys(data_dir).add("watch", "acme")
    async with open_client(new_world(host="0.0.0.0")) as client:
        for path in ("/metrics", "/v1/memory"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=bearer(key))).status_code == 200
        assert "acme" not in (await client.get("/metrics", headers=bearer(key))).text
    async with open_client(new_world(host="0.0.0.0", open_metrics=True)) as client:
        for path in ("/metrics", "/v1/memory"):
            assert (await client.get(path)).status_code == 200


async def test_keys_that_cannot_be_read_open_nothing(new_world: WorldMaker, data_dir: Path) -> None:
    _, key = Keys(data_dir).add("first")
    async with open_client(new_world()) as client:
        assert (await client.get("/v1/documents", headers=bearer(key))).status_code == 200
        damaged = data_dir / "damaged"
        damaged.write_bytes(b"not a database at all" * 100)
        os.replace(damaged, data_dir / "keys.sqlite3")
        for headers in ({}, bearer(key)):
            reply = await client.get("/v1/documents", headers=headers)
            assert reply.status_code == 503 and reply.json()["error"]["code"] == "keys_unknown"
            assert str(data_dir) not in reply.text
        assert (await client.get("/healthz")).status_code == 200
    with pytest.raises(KeysUnreadable, match="restore the file from a backup"):
        Tenants(None, data_dir)
    assert run(data_dir, "list").exit_code == 1


def test_a_full_disk_is_no_damage(data_dir: Path) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(KeysError, match="make room on it"), unreadable_by_name(data_dir / "keys.sqlite3"):
        raise full


def test_a_later_version_is_refused(data_dir: Path) -> None:
    Keys(data_dir).add("first")
    with closing(sqlite3.connect(data_dir / "keys.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 9")
    for attempt in (lambda: Tenants(None, data_dir), lambda: Keys(data_dir).list(), lambda: Keys(data_dir).add("x")):
        with pytest.raises(KeysUnreadable, match=r"newer version of this program \(schema 9, known are 1\)"):
            attempt()


def test_a_file_that_was_begun_is_no_key(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "keys.sqlite3").touch()
    tenants = Tenants(None, data_dir)
    assert tenants.needs_key is False
    _, key = Keys(data_dir).add("first", "acme")
    assert tenants.tenant_of(f"Bearer {key}") == "acme"
    with pytest.raises(KeyRefused):
        tenants.tenant_of(None)
    tenants.close()


def test_a_file_put_back_from_a_backup_counts(data_dir: Path, tmp_path: Path) -> None:
    _, old = Keys(data_dir).add("old")
    backup = tmp_path / "backup"
    backup.write_bytes((data_dir / "keys.sqlite3").read_bytes())
    tenants = Tenants(None, data_dir)
    Keys(data_dir).revoke("old")
    with pytest.raises(KeyRefused):
        tenants.tenant_of(f"Bearer {old}")
    tenants.close()
    for suffix in ("-wal", "-shm"):
        (data_dir / f"keys.sqlite3{suffix}").unlink(missing_ok=True)
    os.replace(backup, data_dir / "keys.sqlite3")
    assert tenants.tenant_of(f"Bearer {old}") == "default"
    tenants.close()


def test_what_the_key_is_compared_with_takes_all_its_bytes(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt ends in one comparison of hashes in constant time, also where no place in the table fits."""
    import hmac

    _, key = Keys(data_dir).add("first")
    tenants = Tenants(SecretStr("own"), data_dir)
    compared: list[tuple[bytes, bytes]] = []
    true_compare = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return true_compare(a, b)

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert tenants.tenant_of(f"Bearer {key}") == tenants.tenant_of("Bearer own") == "default"
    with pytest.raises(KeyRefused):
        tenants.tenant_of(f"Bearer {key[:-1]}")
    assert len(compared) == 3 and all(key.encode() not in each for pair in compared for each in pair)
    tenants.close()


def test_unreadable_while_asking_is_an_error_of_its_own(data_dir: Path) -> None:
    Keys(data_dir).add("first")
    tenants = Tenants(None, data_dir)
    (data_dir / "new").write_bytes(b"x" * 5000)
    os.replace(data_dir / "new", data_dir / "keys.sqlite3")
    with pytest.raises(KeysUnknown):
        tenants.tenant_of(None)
    assert tenants.needs_key is True
    tenants.close()
