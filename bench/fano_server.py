"""A Fano server as a peer: a named session that is saved and restored."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers import Answer, Child, Listener, Message, Saved, Spent, bytes_below

SESSION = "bench"


class FanoServer:
    """``fano serve`` with a data directory of its own.

    Each start works on a copy of the saved directory, so that every continuation begins with the same disk whatever
    the one before it left there.
    """

    def __init__(self, model: Path, directory: Path, dtype: str, threads: int, context: int, policy: str) -> None:
        self.name = f"fano {policy}"
        self.data = directory / "data"
        self.saved = directory / "saved"
        self.child = Child(directory / "fano.log")
        self.command = [str(Path(sys.executable).with_name("fano")), "serve", "--model", str(model)]
        self.environ = {
            "FANO_DTYPE": dtype,
            "FANO_THREADS": str(threads),
            "FANO_POLICY": policy,
            "FANO_MAX_CONTEXT_TOKENS": str(context),
        }
        self.model = ""
        self.bytes_before = 0

    def start(self) -> float:
        shutil.rmtree(self.data, ignore_errors=True)
        if self.saved.exists():
            shutil.copytree(self.saved, self.data)
        seconds = self.child.start([*self.command, "--data-dir", str(self.data)], "/readyz", self.environ)
        self.model = self.child.client.get("/v1/models").json()["data"][0]["id"]
        self.bytes_before = bytes_below(self.data)
        return seconds

    def kill(self) -> None:
        self.child.kill()

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "fano": {"session": SESSION},
        }
        listener, usage = Listener(self.child), None
        for event in self.child.stream("/v1/chat/completions", body):
            listener.hear("".join(choice["delta"].get("content") or "" for choice in event["choices"]))
            usage = event.get("usage") or usage
        assert usage is not None, "the stream told no usage"
        num_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return listener.answer(usage["prompt_tokens"], usage["prompt_tokens"] - num_cached)

    def save(self) -> Saved:
        """The bytes are those that the data directory grew by since the start: history and state."""
        spent = self.child.post(f"/v1/sessions/{SESSION}/save")
        # The server is idle, so a copy is what a power cut would leave.
        shutil.copytree(self.data, self.saved)
        return Saved(spent.seconds, bytes_below(self.saved) - self.bytes_before)

    def restore(self) -> Spent:
        return self.child.post(f"/v1/sessions/{SESSION}/restore")

    def forget(self) -> None:
        shutil.rmtree(self.saved, ignore_errors=True)
