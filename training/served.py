"""Answers of the product itself: a server over a checkpoint, one large corpus, questions in its two recall modes."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from training.cases import Case
from training.corpus import records

PARTS = 6


def corpus(data: Path) -> list[str]:
    """Texts that hold the haystack's books and every paragraph of SQuAD's development set, shuffled among them."""
    rng = random.Random(7)
    books = [f.read_text(encoding="utf-8").split("\n\n") for f in sorted((data / "haystack").glob("*.txt"))]
    paragraphs = [paragraph for book in books for paragraph in book if paragraph.strip()]
    rows = records(data / "qa_eval.jsonl.xz")
    evaluated = sorted({r["context"] for r in rows if r["source"] == "squad1.1-dev"})
    for context in evaluated:
        paragraphs.insert(rng.randrange(len(paragraphs) + 1), context)
    size = -(-len(paragraphs) // PARTS)
    return ["\n\n".join(paragraphs[first : first + size]) for first in range(0, len(paragraphs), size)]


@contextmanager
def server(checkpoint: Path, data_dir: Path) -> Iterator[httpx.Client]:
    """A client of a server of its own, which ends with the block. Raises SystemExit when it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data_dir.mkdir(parents=True, exist_ok=True)
    # The server refuses FANO_ variables that are not its settings, such as the one that names the training text.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FANO_")}
    with (data_dir / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--port", str(port), "--data-dir", str(data_dir)],
            stdout=log, stderr=log, env=environment | {"FANO_MODEL": str(checkpoint.resolve())},
        )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                _wait(client, process, data_dir)
                yield client
        finally:
            process.terminate()
            process.wait(60)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], data_dir: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended before it was ready: see {data_dir / 'server.log'}")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server was not ready within two minutes: see {data_dir / 'server.log'}")


def upload(client: httpx.Client, texts: list[str]) -> list[str]:
    """Ids of the documents, all indexed; a text that is stored already is not indexed again."""
    ids = []
    for number, text in enumerate(texts):
        document = client.post("/v1/documents", json={"text": text, "name": f"part-{number}.txt"}).raise_for_status()
        ids.append(document.json()["id"])
    for name in ids:
        while (view := client.get(f"/v1/documents/{name}").json())["status"] != "ready":
            if view["status"] == "failed":
                raise SystemExit(f"document {name} failed: {view['error']}")
            time.sleep(1)
    return ids


def ask(client: httpx.Client, documents: list[str], case: Case, recall: str) -> tuple[str, list[str]]:
    """The answer, and the texts of the sources it was given."""
    body = {"question": case.question, "documents": documents, "recall": recall, "max_tokens": 32}
    reply = client.post("/v1/ask", json=body).raise_for_status().json()
    return reply["answer"], [source["text"] for source in reply["sources"]]
