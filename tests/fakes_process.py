"""``fano serve`` in a process of its own: what only a real process shows, as that it can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

PATIENCE_SECONDS = 240


def wait(until: Callable[[], bool]) -> None:
    """Until it is so; gives up after minutes, as a machine may be busy."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.02)


class Server:
    """One server over ``data_dir`` on a free port, which it keeps when it is started again. Of the variables of the
    environment it has ``settings`` alone."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("FANO_")}
        self.environment |= settings or {}

    def start(self) -> None:
        command = [sys.executable, "-m", "server", "serve", "--port", str(self.port), "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        wait(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """The exit status of an orderly end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def metric(self, name: str) -> float:
        """Sum of all samples of a metric."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def post(self, name: str, text: str) -> str:
        """The id of a document with this text."""
        files = {"file": (name, text.encode(), "text/plain")}
        response = httpx.post(f"{self.url}/v1/documents", files=files, timeout=60)
        assert response.status_code == 202, response.text
        identifier = response.json()["id"]
        assert isinstance(identifier, str)
        return identifier

    def wait(self, document_id: str, key: str) -> dict[str, object]:
        """The document, once it is ``answerable`` or has the status ``key``."""
        document: dict[str, object] = {}

        def is_so() -> bool:
            document.update(httpx.get(f"{self.url}/v1/documents/{document_id}", timeout=60).json())
            assert document["status"] != "failed", document
            return bool(document["answerable"]) if key == "answerable" else document["status"] == key

        wait(is_so)
        return document


@contextmanager
def served(data_dir: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """A server that is ready; killed on leaving, if it still lives."""
    server = Server(data_dir, settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()
