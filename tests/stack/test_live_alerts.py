"""Each alert provoked: a server gets into trouble, the alert fires, the trouble ends, and so does the alert.

With the committed rules, but that minutes are seconds (``live.shortened``). What cannot or should not be done to a real
server is scripted behind the real routes: a machine whose memory is nearly gone, as others work on this one, memory
beyond the plan, and an engine that ends with an error.
"""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
from fakes_engine import write_tokenizer
from fakes_server import MODEL, make_world, serving
from stack import live
from stack.prometheus import Prometheus, program

from bench.peers.servers import Child
from bench.pictures.load import WORDS
from model.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FIRES_SECONDS = 60.0
ENDS_SECONDS = 60.0
# All of a server that is small enough to be filled: one sequence with 4,096 tokens, a short queue, little for sessions,
# and a disk on which their states find no room, or they would be saved before they are given up.
SMALL = {"MAX_SEQUENCES": "1", "MAX_QUEUE": "2", "POLICY": "full", "MAX_CONTEXT_TOKENS": "4096",
         "CHECKPOINT_SLOTS": "1", "SESSION_BYTES": "2000000", "SESSION_DISK_BYTES": "1000000",
         "READ_DOCUMENTS": "false"}  # fmt: skip
STUBBORN = {"MAX_REQUEST_SECONDS": "1", "DRAIN_SECONDS": "300", "STALLED_READER_SECONDS": "300"}


@contextmanager
def watched(directory: Path, *targets: str) -> Iterator[Prometheus]:
    """A Prometheus with the shortened alerts that looks at these servers."""
    program("prometheus")
    place = directory / "prometheus"
    place.mkdir(exist_ok=True)
    (directory / "key").write_text(live.KEY)
    (place / "alerts.yml").write_text(live.shortened(live.committed_rules()))
    with Prometheus(place, live.configuration(directory / "key", *targets)) as prometheus:
        prometheus.wait_for('count(up{job="fano"} == 1)', lambda found: bool(found) and found[0].value == len(targets))
        yield prometheus


@contextmanager
def doing(work: Callable[[], None], num_threads: int = 1) -> Iterator[None]:
    """Do something again and again meanwhile."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):
                work()

    threads = [threading.Thread(target=repeat) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def talk(words: int, tokens: int, seed: int = 0, **extension: str) -> dict[str, object]:
    text = " ".join(WORDS[(seed + number * (seed + 1)) % len(WORDS)] for number in range(words))
    return {"model": "fano-reader", "messages": [{"role": "user", "content": text}], "max_tokens": tokens,
            "logit_bias": {"2": -100}, "fano": extension}  # fmt: skip


def expect(prometheus: Prometheus, alert: str) -> None:
    prometheus.wait_for_alert(alert, "firing", FIRES_SECONDS)


def expect_end(prometheus: Prometheus, alert: str) -> None:
    prometheus.wait_for_alert(alert, None, ENDS_SECONDS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, Prometheus]]:
    directory = tmp_path_factory.mktemp("small")
    with live.running(directory / "server", **SMALL) as child:
        with watched(directory, live.address(str(child.client.base_url))) as prometheus:
            yield child, prometheus


def test_a_queue_that_grows(small: tuple[Child, Prometheus]) -> None:
    child, prometheus = small
    with doing(lambda: expect_some(child, talk(30, 300)), num_threads=5):
        expect(prometheus, "FanoQueueGrowing")
    expect_end(prometheus, "FanoQueueGrowing")


def expect_some(child: Child, body: dict[str, object]) -> None:
    """An answer, or to be told that there are too many."""
    reply = child.client.post("/v1/chat/completions", json=body)
    assert reply.status_code in (200, 429), reply.text
    if reply.status_code == 429:
        time.sleep(0.1)


def test_memory_near_its_plan(small: tuple[Child, Prometheus]) -> None:
    child, prometheus = small
    usage = child.client.post("/v1/chat/completions", json=talk(1000, 1)).raise_for_status().json()["usage"]
    words = round(1000 * 3850 / usage["prompt_tokens"])
    with doing(lambda: expect_some(child, talk(words, 150)), num_threads=2):
        expect(prometheus, "FanoMemoryNearPlan")
        labels = prometheus.query('ALERTS{alertname="FanoMemoryNearPlan", alertstate="firing"}')[0].labels
        assert labels["pool"] == "kv"
    expect_end(prometheus, "FanoMemoryNearPlan")


def test_an_index_that_is_behind(small: tuple[Child, Prometheus]) -> None:
    child, prometheus = small
    for number in range(3):
        text = " ".join(f"On day {row} of {number} the {WORDS[row % 13]} left." for row in range(60_000))
        files = {"file": (f"{number}.txt", text.encode(), "text/plain")}
        assert child.client.post("/v1/documents", files=files).status_code == 202
    expect(prometheus, "FanoIndexBehind")
    for document in child.client.get("/v1/documents").json()["data"]:
        child.client.delete(f"/v1/documents/{document['id']}")
    expect_end(prometheus, "FanoIndexBehind")


def test_sessions_that_are_given_up(small: tuple[Child, Prometheus]) -> None:
    child, prometheus = small
    for number in range(12):
        reply = child.client.post("/v1/chat/completions", json=talk(900, 2, number, session=f"talk-{number}"))
        assert reply.status_code == 200, reply.text
    expect(prometheus, "FanoSessionsLost")
    expect_end(prometheus, "FanoSessionsLost")


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with (
            live.running(tmp_path / "server", DATA_DIR=str(disk)) as child,
            watched(tmp_path, live.address(str(child.client.base_url))) as prometheus,
        ):
            assert "FanoDiskFilling" not in prometheus.alerts()
            (disk / "of somebody else").write_bytes(bytes(60 << 20))
            expect(prometheus, "FanoDiskFilling")
            (disk / "of somebody else").unlink()
            expect_end(prometheus, "FanoDiskFilling")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_errors_a_drain_that_is_stuck_and_a_target_that_is_gone(tmp_path: Path) -> None:
    """The life of one process: it fails at what takes too long, is told to end, and waits for a client."""
    with live.running(tmp_path / "server", **STUBBORN) as child:
        url = str(child.client.base_url)
        with watched(tmp_path, live.address(url)) as prometheus:
            with doing(lambda: child.client.post("/v1/chat/completions", json=talk(10, 1000)).close(), num_threads=2):
                expect(prometheus, "FanoErrors")
            with doing(lambda: child.client.post("/v1/chat/completions", json=talk(10, 2)).close()):
                expect_end(prometheus, "FanoErrors")

            with unfinished_request(url):
                live.end(child)
                expect(prometheus, "FanoDrainStuck")
            process = child.process
            assert process is not None and process.wait(60) == 0
            expect_end(prometheus, "FanoDrainStuck")

            expect(prometheus, "FanoTargetDown")
            same = patch("bench.peers.servers.free_port", return_value=int(url.rsplit(":", 1)[1]))
            with same, live.running(tmp_path / "again"):
                expect_end(prometheus, "FanoTargetDown")


@contextmanager
def unfinished_request(url: str) -> Iterator[None]:
    """A client in the middle of a request: it has said that a body comes, and sends it at the end of the block."""
    host, port = live.address(url).split(":")
    body = b'{"model": "fano-reader", "messages": []}'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (live.KEY.encode(), len(body))
        )
        time.sleep(1)
        yield
        connection.sendall(body)
        connection.recv(1 << 16)


def test_what_nobody_should_do_to_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without memory, memory beyond the plan, an engine that ends: scripted behind the real routes."""
    world = make_world(tmp_path / "data", Tokenizer(write_tokenizer(tmp_path)), api_key=live.KEY)
    with ExitStack() as process:
        url = process.enter_context(serving(world.app))
        with watched(tmp_path, live.address(url)) as prometheus:
            monkeypatch.setattr("server.measures.bill_collector.available_bytes", lambda: 1 << 20)
            expect(prometheus, "FanoMemoryNearPlan")
            (series,) = prometheus.query('ALERTS{alertname="FanoMemoryNearPlan", alertstate="firing"}')
            assert series.labels["pool"] == "resident"
            monkeypatch.undo()
            expect_end(prometheus, "FanoMemoryNearPlan")

            stats = world.engine.stats()
            world.engine.tell(pool_bytes={**stats.pool_bytes, "kv": stats.plan_bytes["kv"] + 1})
            expect(prometheus, "FanoMemoryOverPlan")
            world.engine.tell(pool_bytes=stats.pool_bytes)
            expect_end(prometheus, "FanoMemoryOverPlan")

            world.engine.crash(RuntimeError("out of luck"))
            headers = {"Authorization": f"Bearer {live.KEY}"}
            httpx.post(f"{url}/v1/chat/completions", json=talk(5, 5) | {"model": MODEL}, headers=headers)
            expect(prometheus, "FanoEngineFailed")
            process.close()  # As whoever was called by the alert does.
            expect_end(prometheus, "FanoEngineFailed")
