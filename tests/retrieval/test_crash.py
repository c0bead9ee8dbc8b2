"""kill -9 at any moment of ingest, delete, pin and search: what was acknowledged is there, and nothing else is."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes_crash import DIMENSION, KINDS, TENANTS, code_of, name_of, number_of, pin_of, pins_of, questions, text_of

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.passage import Document, DocumentStatus

# One that dies by itself may wait long for an event of its kind.
MOST_SECONDS = 4.0


class Key(NamedTuple):
    """Which document: the same number with both tenants is the same bytes."""

    tenant: str
    number: int


class Pin(NamedTuple):
    """Which pin: the row of the document it stands in."""

    document: Key
    row: int


# What was last said of each document and each pin.
Said = dict[Key | Pin, str]


@pytest.fixture(scope="module")
def worker() -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "fakes_crash"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def live_and_die(
    worker: "subprocess.Popen[str]", data_dir: Path, seed: int, kind: str, count: int, seconds: float
) -> Said:
    """What was said before death, which comes from outside after ``seconds`` if not before."""
    worker.stdin.write(f"{data_dir} {data_dir.with_name('upload')} {seed} {kind} {count}\n")
    worker.stdin.flush()
    what, child = worker.stdout.readline().split()
    assert what == "born"

    def kill() -> None:
        with suppress(ProcessLookupError):  # It died just now.
            os.kill(int(child), signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    said: Said = {}
    while (line := worker.stdout.readline().split())[0] != "dead":
        what, tenant, number, *row = line
        assert what != "broken", " ".join(line)
        document = Key(tenant, int(number))
        key = Pin(document, int(row[0])) if row else document
        # The thread that processes and the one that deletes speak at the same time.
        if not (what in ("added", "processed") and said.get(key, "").startswith("delet")):
            said[key] = what
    timer.cancel()
    assert line == ["dead", str(int(signal.SIGKILL))]
    return said


class Twin:
    """A library that is never interrupted, with the same documents and pins."""

    def __init__(self, directory: Path) -> None:
        self._upload = directory / "upload"
        self._ids: dict[Key, str] = {}
        self.library = Library.open(directory / "data", HashEmbedder(dimension=DIMENSION))

    def hold(self, wanted: list[Key], pins: set[Pin]) -> None:
        for key in set(self._ids) - set(wanted):
            self.library.delete(key.tenant, self._ids.pop(key))
        for key in sorted(set(wanted) - set(self._ids), key=lambda key: key.number):
            self._upload.write_bytes(text_of(key.number).encode())
            document, _ = self.library.add(key.tenant, name_of(key.number), "text/plain", self._upload)
            self.library.process(document.id)
            self._ids[key] = document.id
        held = pins_by_document(self.library)
        for pin in sorted(pins - set(held)):
            self.library.pin(pin.document.tenant, self._ids[pin.document], *pin_of(pin.document.number, pin.row))
        for pin in set(held) - pins:
            self.library.unpin(pin.document.tenant, self._ids[pin.document], held[pin])


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[Twin]:
    (tmp_path / "twin").mkdir()
    twin = Twin(tmp_path / "twin")
    yield twin
    twin.library.close()


def documents_of(library: Library) -> dict[Key, Document]:
    listed = [(tenant, document) for tenant in TENANTS for document in library.list(tenant, limit=1000)]
    return {Key(tenant, number_of(document.name)): document for tenant, document in listed}


def pins_by_document(library: Library) -> dict[Pin, str]:
    """All pins there are, each with its id."""
    return {
        Pin(key, row): fact_id
        for key, document in documents_of(library).items()
        for row, fact_id in pins_of(library, key.tenant, document).items()
    }


def assert_pins_found(library: Library) -> None:
    """Every pin of a document that can be asked is the first passage's evidence under its key, in another form too."""
    documents = documents_of(library)
    for key, row in pins_by_document(library):
        span, name = pin_of(key.number, row)
        for asked in (name, name.replace("-", "").lower()):
            passage = library.search(key.tenant, f"What is {asked}?", [documents[key].id]).passages[0]
            assert passage.found_by[0] == "key"
            assert passage.evidence.start <= span.start < span.end <= passage.evidence.end


def answers_of(library: Library) -> list[object]:
    """Everything of the passages for a fixed list of questions, to each document and to all of a tenant."""
    answers: list[object] = []
    for tenant in TENANTS:
        ready = {
            key.number: document.id
            for key, document in documents_of(library).items()
            if key.tenant == tenant and document.status is DocumentStatus.READY
        }
        pins = sorted(pin for pin in pins_by_document(library) if pin.document.tenant == tenant)
        answers.append(pins)
        for number in sorted(ready):
            pinned = [pin_of(number, pin.row)[1] for pin in pins if pin.document.number == number]
            # One of them only, for the time it takes: each is asked for in assert_pins_found.
            for question in (*questions(number), *pinned[:1]):
                for asked in ([ready[number]], [ready[each] for each in sorted(ready)]):
                    result = library.search(tenant, question, asked)
                    answers.append((result.found, result.num_facts, result.num_chunks_searched))
                    answers += [
                        (p.document_name, p.span, p.text, p.score, p.found_by, p.evidence, p.nearest)
                        for p in result.passages
                    ]
    return answers


def assert_rows(path: Path, documents: dict[Key, Document]) -> None:
    """Every row belongs to a document, and every document has all of its rows."""
    with closing(sqlite3.connect(path)) as connection:

        def all_of(query: str) -> list[tuple[object, ...]]:
            return connection.execute(query).fetchall()

        assert all_of("PRAGMA integrity_check") == [("ok",)]
        assert all_of("PRAGMA foreign_key_check") == []
        assert {row[0] for row in all_of("SELECT id FROM documents")} == {each.id for each in documents.values()}
        assert all_of("SELECT sha256 FROM blobs EXCEPT SELECT sha256 FROM documents") == []
        tables = [row[0] for row in all_of("SELECT name FROM sqlite_master WHERE type = 'table'")]
        by_document = [
            name for name in tables if "document" in {row[1] for row in all_of(f"PRAGMA table_info({name})")}
        ]
        assert {"texts", "chunks", "vector_rows", "embeddings", "facts", "fact_keys", "pins"} <= set(by_document)
        for name in by_document:
            assert all_of(f"SELECT document FROM {name} WHERE document NOT IN (SELECT number FROM documents)") == [], (
                name
            )
        assert all_of("SELECT document, fact FROM fact_keys EXCEPT SELECT document, fact FROM facts") == []
        assert (
            all_of("SELECT document, pin FROM facts WHERE pin IS NOT NULL EXCEPT SELECT document, id FROM pins") == []
        )
        assert all_of("SELECT document, id FROM pins EXCEPT SELECT document, pin FROM facts") == []
        wrong = all_of(
            "SELECT id FROM documents d WHERE stage = 'ready' AND NOT ("
            "num_characters = (SELECT sum(length(text)) FROM texts WHERE document = number) "
            "AND num_rows = (SELECT count(*) FROM vector_rows WHERE document = number) "
            "AND num_rows = (SELECT count(*) FROM embeddings WHERE document = number) "
            "AND EXISTS (SELECT 1 FROM chunks WHERE document = number))"
        )
        assert wrong == []


def assert_files(data_dir: Path, documents: dict[Key, Document]) -> None:
    """Every file and folder is one that a document needs."""
    with closing(sqlite3.connect(data_dir / "store.sqlite3")) as connection:
        hashes = {row[0] for row in connection.execute("SELECT sha256 FROM documents")}
    expected = {"library.lock", "store.sqlite3", "store.sqlite3-wal", "store.sqlite3-shm", "blobs/staging"}
    expected |= {f"blobs/{each[:2]}" for each in hashes} | {f"blobs/{each[:2]}/{each}" for each in hashes}
    for document in documents.values():
        shelf = data_dir / "indexes" / document.id
        if document.status is DocumentStatus.READY and shelf.exists():
            names = json.loads((shelf / "lexical.json").read_bytes())["files"]
            own = ["lexical.json", "lexical", "vectors.fano", *(f"lexical/{name}" for name in names)]
            expected |= {f"indexes/{document.id}", *(f"indexes/{document.id}/{name}" for name in own)}
    present = {str(path.relative_to(data_dir)) for path in data_dir.rglob("*")}
    locks = {name for name in present if name.startswith("indexes/") and name.endswith(".lock")}  # tantivy's
    assert present - locks - {"blobs", "indexes"} <= expected
    assert {f"blobs/{each[:2]}/{each}" for each in hashes} <= present


def assert_gone(data_dir: Path, gone: set[int]) -> None:
    """Neither a word nor a key of these documents is in any file, nor in the name of one."""
    everything = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file()).lower()
    assert [number for number in sorted(gone) if code_of(number).encode() in everything] == []


def assert_survived(data_dir: Path, said: Said, before: set[Key | Pin], twin: Twin) -> set[Key | Pin]:
    """After a crash the library is whole; the documents and pins it has. ``before`` are those it had when the life
    began."""
    library = Library.open(data_dir, HashEmbedder(dimension=DIMENSION))
    documents, pins = documents_of(library), set(pins_by_document(library))
    # One whose adding or deleting was not acknowledged may be there or not; a pin goes with its document.
    must = {key for key in {*before, *said} if said.get(key, "added") in ("added", "processed", "pinned")}
    must -= {key for key in must if isinstance(key, Pin) and key.document not in documents}
    may = must | {key for key, what in said.items() if what in ("adding", "deleting", "pinning", "unpinning")}
    assert must <= {*documents, *pins} <= may
    for key, document in documents.items():
        if said.get(key) == "processed":
            assert document.status in (DocumentStatus.READY, DocumentStatus.FAILED)
    for document_id in library.pending():
        library.process(document_id)
    documents = documents_of(library)
    for key, document in documents.items():
        if key.number % 7 == 5:
            assert document.error.code == "undecodable"
        else:
            assert document.status is DocumentStatus.READY
            assert library.text(key.tenant, document.id) == text_of(key.number)
    assert set(pins_by_document(library)) == pins
    assert_pins_found(library)
    twin.hold(list(documents), pins)
    expected = answers_of(twin.library)
    assert answers_of(library) == expected
    assert_rows(data_dir / "store.sqlite3", documents)
    assert_files(data_dir, documents)
    spoken_of = {key.number for key in {*before, *said} if isinstance(key, Key)}
    assert_gone(data_dir, spoken_of - {key.number for key in documents})
    library.close()
    # The indexes are derived: without them the answers are the same.
    shutil.rmtree(data_dir / "indexes")
    library = Library.open(data_dir, HashEmbedder(dimension=DIMENSION))
    assert answers_of(library) == expected
    library.close()
    return {*documents, *pins}


def kill_again_and_again(
    worker: "subprocess.Popen[str]", tmp_path: Path, twin: Twin, seed: int, num_kills: int
) -> Counter[str]:
    """One library through ``num_kills`` lives, each checked; how often each word was said."""
    dice, data_dir, alive = random.Random(seed), tmp_path / "data", set[Key | Pin]()
    words: Counter[str] = Counter()
    for life in range(num_kills):
        # Half at a moment of the clock, the opening included, half at a named point.
        kind, seconds = ("time", dice.uniform(0.0, 1.2)) if life % 2 else (dice.choice(KINDS), MOST_SECONDS)
        said = live_and_die(worker, data_dir, seed, kind, dice.randrange(40), seconds)
        words.update(said.values())
        alive = assert_survived(data_dir, said, alive, twin)
    return words


def test_what_was_acknowledged_survives_kill_9(worker: "subprocess.Popen[str]", tmp_path: Path, twin: Twin) -> None:
    words = kill_again_and_again(worker, tmp_path, twin, 0, 10)
    assert words["processed"] and words["deleted"] and words["pinned"] and words["unpinned"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_what_was_acknowledged_survives_kill_9_at_a_hundred_moments(
    worker: "subprocess.Popen[str]", tmp_path: Path, twin: Twin, seed: int
) -> None:
    words = kill_again_and_again(worker, tmp_path, twin, seed, 20)
    assert words["processed"] and words["deleted"] and words["pinned"] and words["unpinned"]
