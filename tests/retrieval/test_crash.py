"""kill -9 at random moments: what was acknowledged is there, and the work goes on where it was."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.passage import DocumentStatus

# Adds, processes and deletes documents for ever. A line on stdout acknowledges what has returned.
WORKER = """
import sys, time
from pathlib import Path
from retrieval.embedder import HashEmbedder
from retrieval.library import Library

class Slow(HashEmbedder):
    def embed_passages(self, texts):
        time.sleep(0.005)
        return super().embed_passages(texts)

data_dir, upload, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
library = Library.open(data_dir, Slow(dimension=32))
say = lambda *words: print(*words, flush=True)
say("open")
for document_id in library.pending():
    library.process(document_id)
kept = []
while True:
    number += 1
    text = "".join(f"Keeper{number}k{row} tends lamp {row} of tower TW-{number}-{row}. It burns all night.\\n\\n"
                   for row in range(150))
    upload.write_text(text)
    document, accepted = library.add("acme", f"{number}.txt", "text/plain", upload)
    say("added", number, document.id)
    library.process(document.id)
    say("processed", number, document.id)
    kept.append((number, document.id))
    if number % 3 == 0:
        number_gone, gone = kept.pop(0)
        say("deleting", number_gone, gone)
        library.delete("acme", gone)
        say("deleted", number_gone, gone)
"""


def run_and_kill(data_dir: Path, upload: Path, first: int, seconds: float) -> list[list[str]]:
    """What a worker acknowledged until it was killed ``seconds`` after it had opened the library."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(data_dir), str(upload), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout.readline() == "open\n"
        time.sleep(seconds)
        worker.send_signal(signal.SIGKILL)
        acknowledged = [line.split() for line in worker.stdout.read().splitlines()]
        assert worker.wait() == -signal.SIGKILL
    return acknowledged


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_acknowledged_survives_kill_9(tmp_path, seed):
    data_dir, upload = tmp_path / "data", tmp_path / "upload"
    moments = random.Random(seed)
    alive: dict[str, int] = {}
    gone: dict[str, int] = {}
    number = 0
    for _ in range(3):
        for what, count, document_id in run_and_kill(data_dir, upload, number, moments.uniform(0.0, 1.2)):
            number = max(number, int(count))
            if what in ("added", "processed"):
                alive[document_id] = int(count)
            elif what in ("deleting", "deleted"):
                # Deleting may or may not have begun when the process died; after "deleted" it must be true.
                alive.pop(document_id, None)
                if what == "deleted":
                    gone[document_id] = int(count)
        number += 1
        library = Library.open(data_dir, HashEmbedder(dimension=32))
        listed = {document.id: document for document in library.list("acme")}
        assert set(alive) <= set(listed)
        assert not set(gone) & set(listed)
        for document_id in library.pending():
            library.process(document_id)
        for document_id, count in alive.items():
            assert library.get("acme", document_id).status is DocumentStatus.READY
            result = library.search("acme", f"Who tends the lamp of tower tw{count}77?", [document_id])
            assert f"Keeper{count}k77 tends" in result.passages[0].text
        everything = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
        for count in gone.values():
            assert f"Keeper{count}k77 ".encode() not in everything
        library.close()
    assert alive
