"""What needs a real socket or a process of its own: clients that leave, bodies that are cut off, signals."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes_bridge import until
from fakes_server import MODEL, World, WorldMaker, serving

HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."


@pytest.fixture
def url(world: World) -> Iterator[str]:
    with serving(world.app) as url:
        yield url


def metric(url: str, sample: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{sample} ")), 0.0)


def wait_for(url: str, sample: str, value: float) -> None:
    deadline = time.monotonic() + 60
    while (seen := metric(url, sample)) != value:
        assert time.monotonic() < deadline, f"{sample} is {seen}"
        time.sleep(0.01)


RUNNING = 'fano_requests{status="running"}'
ABORTED = 'fano_requests_finished_total{reason="abort"}'


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_work(url: str, world: World, stream: bool) -> None:
    world.engine.stall()
    async with httpx.AsyncClient(timeout=60) as client:
        asking = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json={**HELLO, "stream": stream}))
        await until(lambda: bool(world.engine.requests))
        wait_for(url, RUNNING, 1)
        asking.cancel()
        await asyncio.wait({asking})
    wait_for(url, RUNNING, 0)
    assert metric(url, ABORTED) == 1 and len(world.engine.aborted) == 1
    assert metric(url, 'fano_state_slots{status="used"}') == 0


def test_a_client_that_leaves_between_tokens_ends_the_work(url: str, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("", pieces=["Margarethe "] * 100_000)
    body = {"question": "Who paid invoice QX-7741-B?", "stream": True}
    with httpx.stream("POST", f"{url}/v1/documents/{document}/ask", json=body, timeout=30) as response:
        for line in response.iter_lines():
            if line == "event: token":
                break
    wait_for(url, ABORTED, 1)
    wait_for(url, RUNNING, 0)


@contextmanager
def unread_stream(url: str) -> Iterator[socket.socket]:
    """The connection of a client that asks for a stream and has not read any of it."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
        body = json.dumps({**HELLO, "stream": True}).encode()
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        yield connection


def received(connection: socket.socket) -> str:
    connection.settimeout(60)
    return b"".join(iter(lambda: connection.recv(1 << 20), b"")).decode()


def wait_until_paused(world: World) -> None:
    deadline = time.monotonic() + 60
    while not world.engine.paused:
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG_PIECES = ["word " * 4096] * 2000


def test_a_client_that_does_not_read_holds_nobody_up(url: str, world: World) -> None:
    world.engine.enqueue("", pieces=LONG_PIECES)
    with unread_stream(url) as connection:
        wait_until_paused(world)
        assert metric(url, RUNNING) == 1
        quick = httpx.post(f"{url}/v1/chat/completions", json=HELLO, timeout=30)
        assert quick.json()["choices"][0]["message"]["content"] == "ok"
        text = received(connection)
    assert text.count("word ") == 2000 * 4096 and "data: [DONE]" in text
    assert world.engine.resumed and world.engine.aborted == []


def test_a_client_that_never_reads_loses_its_place(new_world: WorldMaker) -> None:
    world = new_world(stalled_reader_seconds=0.3)
    world.engine.enqueue("", pieces=LONG_PIECES)
    with serving(world.app) as url, unread_stream(url) as connection:
        wait_for(url, ABORTED, 1)
        wait_for(url, RUNNING, 0)
        text = received(connection)
        assert '"code":"reader_stalled"' in text and "data: [DONE]" not in text


def test_eight_clients_at_once_get_their_own_answers(url: str, world: World) -> None:
    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=HELLO) for _ in range(8)))
        return [reply.json()["choices"][0]["message"]["content"] for reply in replies]

    for number in range(8):
        world.engine.enqueue(f"answer {number} of eight")
    assert sorted(asyncio.run(ask_all())) == [f"answer {number} of eight" for number in range(8)]


def test_a_413_reaches_a_client_that_is_still_sending(new_world: WorldMaker) -> None:
    world = new_world(max_upload_bytes=100_000)

    def body() -> Iterator[bytes]:
        yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(200):
            yield b"a" * 20_000
        yield b"\r\n--X--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=X"}
    with serving(world.app) as url:
        reply = httpx.post(f"{url}/v1/documents", content=body(), headers=headers, timeout=30)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
        # The connection is of no further use, but the server is.
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert list((world.settings.data_dir / "uploads").iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(url: str, world: World) -> None:
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=X\r\n\r\n"
            b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello'
        )
        time.sleep(0.2)
    spool = world.settings.data_dir / "uploads"
    deadline = time.monotonic() + 60
    while not spool.is_dir() or list(spool.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert world.library.documents == {}
    # No fault of the server's, which an alert would count.
    wait_for(url, 'fano_http_requests_total{method="POST",route="/v1/documents",status="499"}', 1)


DRAIN = """
import json, os, sys, threading, time
from pathlib import Path
import server.app, server.commands.serve
from fakes_engine import write_tokenizer
from fakes_server import make_world
from model.tokenizer import Tokenizer
from server.settings import load_settings

data = Path(sys.argv[1])
world = make_world(data, Tokenizer(write_tokenizer(data / "tokenizer")), port=0, drain_seconds=float(sys.argv[2]))
world.engine.enqueue("one two three")
world.engine.stall()
server.commands.serve.create_app = lambda settings: world.app
bind = server.commands.serve.bind

def told(host, port):
    listener = bind(host, port)
    print(listener.getsockname()[1], flush=True)
    return listener

server.commands.serve.bind = told
threading.Thread(target=lambda: (sys.stdin.readline(), world.engine.go_on()), daemon=True).start()
sys.exit(server.commands.serve.serve(world.settings))
"""


class Process:
    """A server with a stalled engine; a line on its standard input ends the stall."""

    def __init__(self, data: Path, drain_seconds: float) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRAIN, str(data), str(drain_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            time.sleep(0.02)

    def resume(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def wait_for_status(url: str, status: int) -> httpx.Response:
    deadline = time.monotonic() + 60
    while (reply := httpx.get(f"{url}/readyz")).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return reply


def test_a_signal_drains(tmp_path: Path) -> None:
    server = Process(tmp_path, 30)
    try:
        body = {**HELLO, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert wait_for_status(server.url, 503).json()["status"] == "draining"
            refused = httpx.post(f"{server.url}/v1/chat/completions", json=HELLO)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            server.resume()
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest) == "one two three"
        assert rest[-1]["choices"][0]["finish_reason"] == "stop"
        assert server.process.wait(20) == 0
    finally:
        server.end()


def test_a_drain_that_takes_too_long_tells_who_waits(tmp_path: Path) -> None:
    server = Process(tmp_path, 0.3)
    try:
        body = {**HELLO, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            data = [line for line in lines if line.startswith("data: {")]
        assert json.loads(data[-1][6:])["error"]["code"] == "engine_stopped"
        assert server.process.wait(20) == 0
    finally:
        server.end()
