"""Servers that keep a conversation behind one interface: start, ask, save, kill, start again, restore.

Each is a process of its own that is spoken to over HTTP, so that what is measured is what a client waits for.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

READY_SECONDS = 180.0
ANSWER_SECONDS = 3600.0
Message = dict[str, str]


class ServerFailed(Exception):
    """A server ended or did not become ready; the message has the end of its log."""


@dataclass(frozen=True)
class Spent:
    """Seconds that a client waited, and seconds of CPU time that the server took."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Answer:
    """A streamed reply: what its first token took from sending the request, and prompt tokens the server says it read.

    Beside busy neighbours CPU time says more than the wall-clock.
    """

    text: str
    first_token: Spent
    num_prompt_tokens: int
    num_read_tokens: int


@dataclass(frozen=True)
class Saved:
    """What saving cost: the client's seconds, and bytes on the disk afterwards."""

    seconds: float
    num_bytes: int


class Peer(Protocol):
    """One conversation at a time. ``start`` returns the seconds until ready; what was saved outlives ``kill``."""

    name: str

    def start(self) -> float: ...

    def kill(self) -> None: ...

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Answer: ...

    def save(self) -> Saved: ...

    def restore(self) -> Spent: ...

    def forget(self) -> None:
        """Drop what was saved, so that the next conversation starts with an empty disk; not while running."""
        ...


class Child:
    """A server process on a free port of this machine, with its log in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.client: httpx.Client

    def start(self, command: Sequence[str], ready_path: str, environ: Mapping[str, str] | None = None) -> float:
        """Run ``command`` with ``--port`` added and return the seconds until ``ready_path`` answers 200."""
        port = free_port()
        started = time.perf_counter()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environ or {}),
                start_new_session=True,  # so that its own children can be killed with it
            )
        # A connection for each request: a server may close one after a stream while the next request goes out on it.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_SECONDS, limits=limits)
        while not self._is_ready(ready_path):
            if self.process.poll() is not None or time.perf_counter() - started > READY_SECONDS:
                self.kill()
                raise ServerFailed(f"{command[0]} is not ready; its log ends:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.01)
        return time.perf_counter() - started

    def _is_ready(self, path: str) -> bool:
        try:
            return self.client.get(path).status_code == httpx.codes.OK
        except httpx.TransportError:  # it does not listen yet
            return False

    def kill(self) -> None:
        """SIGKILL, as a machine that loses its power would: nothing is said or written at the end."""
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None
        self.client.close()

    def cpu_seconds(self) -> float:
        """CPU time that the process's threads have had so far (Linux)."""
        assert self.process is not None
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Spent:
        """What the answer took. Raises ``ServerFailed`` for an error's status."""
        watch = Watch(self)
        reply = self.client.post(path, json=body or {})
        spent = watch.spent()
        if reply.is_error:
            raise ServerFailed(f"{path}: {reply.status_code} {reply.text[:500]}")
        return spent

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Events of a streamed reply. Raises ``ServerFailed`` for an error's status and for an error in the stream."""
        with self.client.stream("POST", path, json=body) as reply:
            if reply.is_error:
                raise ServerFailed(f"{path}: {reply.status_code} {reply.read().decode()[:500]}")
            for line in reply.iter_lines():
                told = line.removeprefix("data:").strip()
                if line.startswith("data:") and told != "[DONE]":
                    event = json.loads(told)
                    if "error" in event:
                        raise ServerFailed(f"{path}: {event['error']}")
                    yield event


class Watch:
    """Both clocks of a server, from now on."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.started = Spent(time.perf_counter(), child.cpu_seconds())

    def spent(self) -> Spent:
        return Spent(time.perf_counter() - self.started.seconds, self.child.cpu_seconds() - self.started.cpu_seconds)


class Listener:
    """Puts a streamed text together, and looks at the clocks when it begins."""

    def __init__(self, child: Child) -> None:
        self.watch = Watch(child)
        self.text = ""
        self.first: Spent | None = None

    def hear(self, piece: str) -> None:
        if piece and self.first is None:
            self.first = self.watch.spent()
        self.text += piece

    def answer(self, num_prompt_tokens: int, num_read_tokens: int) -> Answer:
        assert self.first is not None, "the reply has no text"
        return Answer(self.text, self.first, num_prompt_tokens, num_read_tokens)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def bytes_below(directory: Path) -> int:
    """Sizes of all files below a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
