"""Sessions with the embedded model: reuse, saving, a kill, restoring, forks, and what must not be restored."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fakes_talk import MODEL, SECOND, THIRD, cached, first, say, server, story, text_of

from model.cache.plan import MemoryPlan
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from server.services import embedded_checkpoint, engine_config
from server.settings import Settings

STORY = story(40)
FIRST = first(40)


def settings_of(data_dir: Path, **changes: Any) -> Settings:
    return Settings(data_dir=data_dir, dtype=changes.pop("dtype", "float32"), max_sequences=2, threads=2, **changes)


def refusal(reply: httpx.Response) -> str:
    assert reply.status_code == 409, reply.text
    error = reply.json()["error"]
    return f"{error['code']}: {error['message']}"


KILLED = """
import json, os, sys
from pathlib import Path
import httpx
from fakes_talk import SECOND, THIRD, say, server, text_of
from test_sessions_live import FIRST, settings_of

with server(settings_of(Path(sys.argv[1]))) as url:
    first = say(url, [FIRST], "talk")
    turns = [FIRST, {"role": "assistant", "content": text_of(first)}, SECOND]
    second = say(url, turns, "talk")
    turns += [{"role": "assistant", "content": text_of(second)}, THIRD]
    saved = httpx.post(f"{url}/v1/sessions/talk/save", timeout=60).json()
    httpx.post(f"{url}/v1/sessions/talk/fork", json={"to": "copy"}).raise_for_status()
    whole = say(url, turns, "copy")
    print(json.dumps({"turns": turns, "saved": saved, "second": second, "whole": whole}), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server said and saved before it was killed, and where."""
    data_dir = tmp_path_factory.mktemp("sessions") / "data"
    here = Path(__file__).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FANO_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    said: dict[str, Any] = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()
    return said | {"data_dir": data_dir}


@pytest.fixture(scope="module")
def url(told: dict[str, Any]) -> Iterator[str]:
    with server(settings_of(told["data_dir"])) as url:
        yield url


def test_the_second_turn_reads_only_what_is_new(told: dict[str, Any]) -> None:
    # All of the first turn but the token drawn last, which was not read.
    assert cached(told["second"]) > 400 and told["second"]["usage"]["fano"]["prefix"]["result"] == "hit"
    assert told["second"]["usage"]["prompt_tokens"] - cached(told["second"]) < 20


def test_what_was_saved_outlives_a_kill_and_goes_on_with_the_same_text(url: str, told: dict[str, Any]) -> None:
    listed = {each["name"]: each for each in httpx.get(f"{url}/v1/sessions").json()["data"]}
    assert listed["talk"] == told["saved"] | {"status": "saved"}
    restored = httpx.post(f"{url}/v1/sessions/talk/restore", timeout=60).json()
    assert restored == told["saved"] | {"status": "host"}
    again = say(url, told["turns"], "talk")
    assert text_of(again) == text_of(told["whole"])
    assert cached(again) == told["saved"]["num_tokens"]
    # A fork that was not saved since is used all the same, from the state that it shared.
    assert listed["copy"]["num_tokens"] > listed["copy"]["state_tokens"] == told["saved"]["num_tokens"]
    assert text_of(say(url, told["turns"], "copy")) == text_of(told["whole"])


def test_the_official_client_goes_on_with_a_session_and_a_fork_diverges(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)

    def chat(messages: list[Any], session: str) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=8, extra_body={"fano": {"session": session}}
        )

    first = chat([FIRST], "official")
    turns = [FIRST, {"role": "assistant", "content": first.choices[0].message.content}]
    httpx.post(f"{url}/v1/sessions/official/fork", json={"to": "other"}).raise_for_status()
    before = httpx.get(f"{url}/v1/sessions/official").json()
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[*turns, THIRD],
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"fano": {"session": "other"}},
    )
    usage = list(stream)[-1].usage
    assert usage is not None and usage.prompt_tokens_details.cached_tokens == before["num_tokens"] - 1
    second = chat([*turns, SECOND], "official")
    assert second.usage.prompt_tokens_details.cached_tokens >= before["num_tokens"] - 1
    shown = {each["name"]: each for each in httpx.get(f"{url}/v1/sessions").json()["data"]}
    assert shown["official"]["checksum"] != shown["other"]["checksum"]


def test_bytes_are_those_of_the_plan(url: str, told: dict[str, Any]) -> None:
    model = ModelConfig.from_pretrained(embedded_checkpoint())
    plan = MemoryPlan.of(model, engine_config(settings_of(told["data_dir"]), model))
    session = say(url, [FIRST], "measured") and httpx.get(f"{url}/v1/sessions/measured").json()
    num_states = plan.num_slots + plan.num_checkpoint_slots
    # The window has room for all of it, so every token's keys and values are held.
    num_blocks = -(-session["state_tokens"] // 64)
    assert session["bytes"] == {
        "ssm_state": plan.ssm_state_bytes // num_states,
        "conv_state": plan.conv_state_bytes // num_states,
        "kv": num_blocks * (plan.kv_bytes // plan.num_blocks),
        "kv_archive": 0,
    }
    saved = httpx.post(f"{url}/v1/sessions/measured/save", timeout=60).json()
    assert saved["bytes"]["ssm_state"] == session["bytes"]["ssm_state"]


def test_one_request_at_a_time(url: str) -> None:
    never_ends = {str(token_id): -100 for token_id in Tokenizer(embedded_checkpoint()).eos_ids}
    body = {
        "model": MODEL,
        "messages": [FIRST],
        "max_tokens": 2000,
        "logit_bias": never_ends,
        "stream": True,
        "fano": {"session": "busy"},
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()  # kept: an iterator that is dropped closes the connection
        next(lines)
        assert refusal(httpx.post(f"{url}/v1/chat/completions", json=body)).startswith("session_busy")
    # The client has left: the name is free again, and nothing was remembered under it.
    deadline = time.monotonic() + 60
    while (reply := httpx.delete(f"{url}/v1/sessions/busy")).status_code != 404:
        assert refusal(reply).startswith("session_busy") and time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_of_a_deleted_document_is_on_the_disk(url: str, told: dict[str, Any]) -> None:
    secret = "The custodian of the northern archive is Wilhelmina Thackeray-Oduya."
    name = "custodian-dossier.txt"
    sent = httpx.post(f"{url}/v1/documents", json={"text": f"{STORY} {secret}", "name": name}, timeout=60).json()
    document = f"{url}/v1/documents/{sent['id']}"
    deadline = time.monotonic() + 60
    while httpx.get(document).json()["status"] != "ready":
        assert time.monotonic() < deadline, httpx.get(document).text
        time.sleep(0.05)
    reading = f"{url}/v1/sessions/document:{sent['id']}"
    ids = array("i", Tokenizer(embedded_checkpoint()).encode_ids(secret))[2:10].tobytes()
    httpx.post(f"{reading}/fork", json={"to": "asked"}).raise_for_status()
    first = say(url, [THIRD], "asked")
    # The document was read once, and the fork goes on from there.
    assert cached(first) >= httpx.get(reading).json()["num_tokens"] > 400
    httpx.post(f"{url}/v1/sessions/asked/save", timeout=60).raise_for_status()
    say(url, [{"role": "user", "content": "Who is the custodian?"}], "cited", fano_documents=[sent["id"]])

    def traces() -> set[str]:
        wanted = {"text": secret[4:24].encode(), "tokens": ids, "name": name.encode(), "id": sent["id"].encode()}
        content = b"".join(path.read_bytes() for path in told["data_dir"].rglob("*") if path.is_file())
        return {what for what, trace in wanted.items() if trace in content}

    assert traces() == {"text", "tokens", "name", "id"}
    refused = httpx.delete(document)
    assert refusal(refused).startswith("document_in_use") and "'asked', 'cited'" in refused.text
    assert httpx.delete(f"{document}?cascade=true", timeout=60).status_code == 200
    assert traces() == set()
    left = {each["name"] for each in httpx.get(f"{url}/v1/sessions").json()["data"]}
    assert not left & {"asked", "cited", f"document:{sent['id']}"}


def test_what_was_made_otherwise_or_altered_is_refused(url: str, told: dict[str, Any], tmp_path: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(told["data_dir"] / "sessions", copied / "sessions")
    largest = max((copied / "sessions" / "segments").rglob("*"), key=lambda path: path.stat().st_size)
    with server(settings_of(copied, dtype="bfloat16")) as other:
        said = refusal(httpx.post(f"{other}/v1/sessions/talk/restore"))
        assert said.startswith("session_fingerprint: ")
        assert "dtype was 'float32' and is 'bfloat16'" in said and "FANO_DTYPE set to float32" in said
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with server(settings_of(copied)) as same:
        codes = [
            refusal(reply).partition(":")[0]
            for each in httpx.get(f"{same}/v1/sessions").json()["data"]
            if (reply := httpx.post(f"{same}/v1/sessions/{each['name']}/restore", timeout=60)).status_code != 200
        ]
        assert "session_damaged" in codes and set(codes) <= {"session_damaged", "session_not_saved"}
