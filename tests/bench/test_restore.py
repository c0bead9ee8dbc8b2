"""The comparison of restored sessions, as far as it needs neither llama.cpp nor a model: scripted servers."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers

from bench import llama
from bench.checkpoints import TOKENIZER, words_of_one_token
from bench.llama import LlamaBuild, LlamaServer, render
from bench.peers import Answer, Child, Message, Saved, ServerFailed, Spent, servers
from bench.restore import CHANGED, CONTINUED, LIVE, READ, Talk, compare, medians, parse_options, table, user

SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.startswith("/slots"):
            action = self.path.partition("=")[2]
            self.send_response(200 if action == "save" else 400); self.end_headers()
            self.wfile.write(json.dumps({"action": action}).encode())
            return
        self.send_response(200); self.end_headers()
        events = [{"content": "", "tokens": []},
                  {"content": " hun", "tokens": [900]}, {"content": "ger", "tokens": [901]},
                  {"content": "", "tokens": [], "timings": {"prompt_n": len(body["prompt"]) - 2, "cache_n": 2}}]
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


class ScriptedPeer:
    """Reads everything again after a restart, if it is ``forgetful``; otherwise the last 24 tokens."""

    def __init__(self, name: str, forgetful: bool, calls: list[str]) -> None:
        self.name = name
        self.forgetful = forgetful
        self.calls = calls
        self.is_warm = False

    def start(self) -> float:
        self.calls.append(f"{self.name} start")
        self.is_warm = False
        return 0.5

    def kill(self) -> None:
        self.calls.append(f"{self.name} kill")

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        self.calls.append(f"{self.name} ask {len(messages)}")
        num_tokens = 4 + sum(len(message["content"].split()) for message in messages)
        num_read = 24 if self.is_warm else num_tokens
        self.is_warm = True
        return Answer(
            f"reply to {messages[-1]['content'][-9:]}", Spent(num_read / 100, num_read / 50), num_tokens, num_read
        )

    def save(self) -> Saved:
        return Saved(0.25, 1 << 20)

    def restore(self) -> Spent:
        self.calls.append(f"{self.name} restore")
        self.is_warm = not self.forgetful
        return Spent(0.01, 0.02)

    def forget(self) -> None:
        self.calls.append(f"{self.name} forget")


def test_a_talk_has_the_tokens_that_were_asked_for_and_changes_only_its_tail() -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    talk = Talk.draw(words_of_one_token(), 300, random.Random(0))
    first, changed = (
        tokenizer.encode(render(user(text)), add_special_tokens=False).ids for text in (talk.prompt, talk.changed)
    )
    assert len(first) == len(changed) == 300
    same = [a == b for a, b in zip(first, changed, strict=True)]
    # The head, then 20 words, then end and assistant.
    assert all(same[:278]) and not any(same[278:280])
    assert [message["role"] for message in talk.going_on("hm")] == ["user", "assistant", "user"]


def test_servers_take_turns_and_restart_before_each_continuation() -> None:
    calls: list[str] = []
    peers = [ScriptedPeer("llama.cpp", True, calls), ScriptedPeer("fano", False, calls)]
    turns = compare(peers, num_tokens=200, repetitions=2, seed=0)
    once = ["forget", "start", "ask 1", "ask 1", "kill", "start", "restore", "ask 3", "kill"]
    once += ["start", "restore", "ask 1", "kill", "kill"]
    assert calls == [f"{name} {call}" for name in ("llama.cpp", "fano", "fano", "llama.cpp") for call in once]
    assert [turn.step for turn in turns[:4]] == [READ, LIVE, CONTINUED, CHANGED]
    assert all(turn.same_text for turn in turns if turn.step == CHANGED)


def test_a_row_is_the_median_and_says_how_much_sooner() -> None:
    peers = [ScriptedPeer("llama.cpp", True, []), ScriptedPeer("fano", False, [])]
    rows = medians(compare(peers, num_tokens=200, repetitions=3, seed=0))
    assert [(row["step"], row["peer"]) for row in rows[-2:]] == [(CHANGED, "llama.cpp"), (CHANGED, "fano")]
    slow, quick = rows[-2:]
    assert (slow["num_read_tokens"], quick["num_read_tokens"]) == (200, 24)
    assert quick["ratio_seconds"] == pytest.approx((0.01 + 2.0) / (0.01 + 0.24)) and slow["ratio_seconds"] == 1
    lines = table(rows).splitlines()
    assert len(lines) == 1 + 4 * 2
    assert lines[-1].split()[-9:] == ["0.500", "0.010", "0.240", "0.250", "0.500", "8.0", "8.0", "24", "200"]


def test_a_prompt_that_goes_on_keeps_the_ids_that_were_drawn(tmp_path: Path) -> None:
    server = llama_server(tmp_path)
    assert server.start() > 0
    try:
        answer = server.ask(user("bread and"), 2)
        going_on = [*user("bread and"), {"role": "assistant", "content": answer.text}, *user("salt")]
        prompt_ids = server.ids_of(render(user("bread and")))
        assert (answer.text, answer.num_prompt_tokens) == (" hunger", len(prompt_ids))
        assert answer.num_read_tokens == len(prompt_ids) - 2 and answer.first_token.seconds > 0
        assert 0 <= answer.first_token.cpu_seconds < 1
        assert server.ids_of(render(going_on))[: len(prompt_ids) + 2] == [*prompt_ids, 900, 901]
        assert server.ids_of(render(user("bread or")))[-1] == prompt_ids[-1]
    finally:
        server.kill()


def test_what_a_server_refuses_is_an_error(tmp_path: Path) -> None:
    server = llama_server(tmp_path)
    server.start()
    try:
        (server.slots / "session.bin").write_bytes(b"12345")
        assert server.save().num_bytes == 5
        with pytest.raises(ServerFailed, match=r"action=restore: 400"):
            server.restore()
    finally:
        server.kill()


def test_a_server_that_ends_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "READY_SECONDS", float("inf"))  # it is not time that ends the waiting
    child = Child(tmp_path / "log")
    with pytest.raises(ServerFailed, match="out of luck"):
        child.start([sys.executable, "-c", "raise SystemExit('out of luck')"], "/")


def test_cpu_time_counts_threads_that_have_ended(tmp_path: Path) -> None:
    script = """
import threading, time
def spend():
    while time.process_time() < 0.3: pass
thread = threading.Thread(target=spend); thread.start(); thread.join()
"""
    child = Child(tmp_path / "log")
    child.start([sys.executable, "-c", script + SERVER], "/")
    try:
        assert 0.3 <= child.cpu_seconds() < 10
    finally:
        child.kill()


def test_options_name_the_remedy_where_llama_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_options(["--peers", "fano", "--tokens", "500"]).tokens == [500]
    monkeypatch.setenv(llama.VARIABLE, str(tmp_path))
    with pytest.raises(SystemExit):
        parse_options([])
    assert f"python -m bench.llama --directory {tmp_path}" in capsys.readouterr().err


def test_the_version_is_read_from_the_change_log(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "CHANGELOG.md").write_text(
        "- feat: update llama.cpp to ggml-org/llama.cpp@abc123\n- @def456"
    )
    assert LlamaBuild(tmp_path).version == "llama-cpp-python==0.3.36 (llama.cpp abc123)"


def llama_server(directory: Path) -> LlamaServer:
    """Its client half, with a scripted server behind."""
    script = directory / "server.py"
    script.write_text(SERVER)
    (directory / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    server = LlamaServer(LlamaBuild(directory), directory / "model.gguf", directory, 1, 512)
    server.command = [sys.executable, str(script)]
    return server
