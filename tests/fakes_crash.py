"""A life for a library that ends by ``kill -9``: several threads at work on it, each acknowledging what has returned.

A life is run by a child of ``python -m fakes_crash``, which imports everything once, and no torch. A line on its
standard input, ``DATA_DIR UPLOADS SEED KIND COUNT``, begins one; lines on its standard output tell what is done to
which document (``adding``, ``added``, ``processed``, ``deleting``, ``deleted``), what to which pin, its row after the
document (``pinning``, ``pinned``, ``unpinning``, ``unpinned``), and what must not be (``broken``).
"""

import hashlib
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from retrieval.database import Database
from retrieval.embedder import HashEmbedder
from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.library import Library
from retrieval.passage import Document, DocumentStatus, Span

DIMENSION = 32
TENANTS = ("acme", "birch")
MOST_KEPT = 7
MOST_BEHIND = 3
# Every text that can be read has these rows.
PINNED_ROWS = range(12)

# Where a life may end: before a call of the system, before a statement, after a line was said, or when it is killed
# from outside ("time").
KINDS = (
    "os.rename os.remove os.rmdir os.mkdir open fsync BEGIN INSERT UPDATE DELETE COMMIT PRAGMA said shutil.rmtree"
).split()


@lru_cache(maxsize=512)
def code_of(number: int) -> str:
    """A word that stands in every sentence, key, name and heading of a document, and in nothing else."""
    return f"k{hashlib.sha256(str(number).encode()).hexdigest()[:10]}"


def name_of(number: int) -> str:
    return f"{number}-{code_of(number)}.txt"


def number_of(name: str) -> int:
    return int(name.partition("-")[0])


@lru_cache(maxsize=64)
def text_of(number: int) -> str:
    """Every seventh cannot be read; one in three needs two batches of vectors."""
    dice, code = random.Random(number), code_of(number)
    rows = dice.choice([12, 40, 90])
    text = "".join(
        f"Keeper {code}{row:03d} tends lamp {row} of tower TW-{code}-{row}. It burns {dice.randint(2, 99)} nights.\n\n"
        for row in range(rows)
    )
    return text + "\0" if number % 7 == 5 else text


def questions(number: int) -> tuple[str, ...]:
    """One by key as it is written, one by key in another form, one by words, one of meaning."""
    code = code_of(number)
    return (
        f"Who tends the lamp of tower TW-{code}-7?",
        f"tower tw{code}8",
        f"Which keeper is {code}003?",
        "How many nights does lamp 5 burn?",
    )


def pin_of(number: int, row: int) -> tuple[Span, str]:
    """The keeper's name of a row, and a key that stands nowhere in the text."""
    name = f"{code_of(number)}{row:03d}"
    start = text_of(number).index(name)
    return Span(start, start + len(name)), f"PN-{code_of(number)}-{row}"


def pins_of(library: Library, tenant: str, document: Document) -> dict[int, str]:
    """The pins of a document by the row they stand in, each with its id."""
    pins = {}
    for fact in library.facts(tenant, document.id, source="user", limit=100):
        row = int(fact.key.rpartition("-")[2])
        assert (fact.span, fact.key) == pin_of(number_of(document.name), row), fact
        assert row not in pins, fact
        pins[row] = fact.id
    return pins


def tenants_of(number: int) -> tuple[str, ...]:
    """Every fourth document is sent by both tenants, whose bytes are then the same file."""
    return TENANTS if number % 4 == 0 else TENANTS[:1]


def say(*words: object) -> None:
    # One call, so that lines of two threads do not mix and a line is whole or not there.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Death:
    """Comes at the ``count``-th event of ``kind``, by the hand of the process itself."""

    def __init__(self, kind: str, count: int) -> None:
        self._kind = kind
        self._left = count
        self._lock = threading.Lock()

    def near(self, kind: str) -> None:
        if kind != self._kind:
            return
        with self._lock:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Hear of every change of files, and of every statement that changes a database."""

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            if event in KINDS and (event != "open" or (isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE)):
                self.near(event)

        def statement(sql: str) -> None:
            if sql != "BEGIN":  # a reader's
                self.near(sql.partition(" ")[0])

        sys.addaudithook(audit)
        fsync, connect = os.fsync, Database._connect

        def watched_fsync(descriptor: int) -> None:
            self.near("fsync")
            fsync(descriptor)

        def watched_connect(database: Database) -> object:
            connection = connect(database)
            connection.set_trace_callback(statement)
            return connection

        os.fsync = watched_fsync
        Database._connect = watched_connect  # type: ignore[method-assign, assignment]


class Life:
    """One thread adds, one processes, one deletes, one pins and unpins, and two search, until death."""

    def __init__(self, library: Library, upload: Path, seed: int, death: Death) -> None:
        self._library = library
        self._upload = upload
        self._seed = seed
        self._death = death
        self._lock = threading.Lock()
        # What stands, and nobody is deleting.
        self._kept = [(tenant, document) for tenant in TENANTS for document in library.list(tenant)]
        self._next = 1 + max((number_of(document.name) for _, document in self._kept), default=seed * 1000)

    def run(self) -> None:
        works: list[Callable[[], None]] = [self._add, self._process, self._delete, self._pin]
        works += [partial(self._search, each) for each in range(2)]
        threads = [threading.Thread(target=self._guarded, args=[work]) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            say("broken", work, repr(error).replace("\n", " "))
            raise

    def _tell(self, what: str, tenant: str, name: str, *row: int) -> None:
        say(what, tenant, number_of(name), *row)
        self._death.near("said")

    def _add(self) -> None:
        for number in itertools.count(self._next):
            while len(self._library.pending()) > MOST_BEHIND:
                time.sleep(0.002)
            self._upload.write_bytes(text_of(number).encode())
            for tenant in tenants_of(number):
                name = name_of(number)
                self._tell("adding", tenant, name)
                document, is_new = self._library.add(tenant, name, "text/plain", self._upload)
                assert is_new
                self._tell("added", tenant, name)
                with self._lock:
                    self._kept.append((tenant, document))

    def _process(self) -> None:
        while True:
            for document_id in self._library.pending():
                self._library.process(document_id)
                for tenant in TENANTS:
                    try:
                        document = self._library.get(tenant, document_id)
                    except UnknownDocument:
                        continue
                    assert document.status in (DocumentStatus.READY, DocumentStatus.FAILED), document
                    self._tell("processed", tenant, document.name)
            time.sleep(0.001)

    def _delete(self) -> None:
        dice = random.Random(self._seed)
        while True:
            with self._lock:
                # Old ones mostly; now and then one that is on its way.
                chosen = dice.choice([0, 0, -1, dice.randrange(MOST_KEPT)])
                gone = self._kept.pop(chosen) if len(self._kept) > MOST_KEPT else None
            if gone is None:
                time.sleep(0.002)
                continue
            tenant, document = gone
            self._tell("deleting", tenant, document.name)
            self._library.delete(tenant, document.id)
            self._tell("deleted", tenant, document.name)

    def _pin(self) -> None:
        dice = random.Random(self._seed + 1)
        while True:
            time.sleep(0.002)
            with self._lock:
                chosen = dice.choice(self._kept) if self._kept else None
            if chosen is None:
                continue
            tenant, document = chosen
            row = dice.choice(PINNED_ROWS)
            with suppress(UnknownDocument, DocumentNotReady):
                pin = pins_of(self._library, tenant, document).get(row)
                if pin is None:
                    self._pin_row(tenant, document, row)
                else:
                    self._tell("unpinning", tenant, document.name, row)
                    self._library.unpin(tenant, document.id, pin)
                    self._tell("unpinned", tenant, document.name, row)

    def _pin_row(self, tenant: str, document: Document, row: int) -> None:
        if self._library.get(tenant, document.id).num_characters is None:
            return
        span, key = pin_of(number_of(document.name), row)
        self._tell("pinning", tenant, document.name, row)
        _, is_new = self._library.pin(tenant, document.id, span, key)
        assert is_new
        self._tell("pinned", tenant, document.name, row)
        first = self._library.search(tenant, f"What is {key}?", [document.id]).passages[0]
        assert first.evidence is not None, first
        assert first.evidence.start <= span.start < span.end <= first.evidence.end, (first, key)

    def _search(self, which: int) -> None:
        dice = random.Random(100 * self._seed + which)
        while True:
            time.sleep(0.001)
            with self._lock:
                kept = [each for each in self._kept if each[0] == TENANTS[which]]
            if not kept:
                continue
            asked = [document for _, document in dice.sample(kept, min(len(kept), dice.randint(1, 3)))]
            question = dice.choice(questions(number_of(asked[0].name)))
            try:
                result = self._library.search(TENANTS[which], question, [document.id for document in asked])
            except (UnknownDocument, DocumentNotReady):
                continue
            names = {document.id: document.name for document in asked}
            for passage in result.passages:
                text = text_of(number_of(names[passage.document_id]))
                assert passage.text and text[passage.span.start : passage.span.end] == passage.text, passage
            first = asked[0].name
            if "lamp of tower" in question:
                assert f"tower TW-{code_of(number_of(first))}-7." in result.passages[0].text, (first, result)


def live(data_dir: Path, upload: Path, seed: int, kind: str, count: int) -> None:
    death = Death(kind, count)
    death.watch()
    library = Library.open(data_dir, HashEmbedder(dimension=DIMENSION))
    Life(library, upload, seed, death).run()


def main() -> None:
    assert "torch" not in sys.modules
    say("ready")
    for line in sys.stdin:
        data_dir, upload, seed, kind, count = line.split()
        child = os.fork()
        if child == 0:
            try:
                live(Path(data_dir), Path(upload), int(seed), kind, int(count))
            finally:
                os._exit(1)  # A life does not end by itself.
        say("born", child)
        _, status = os.waitpid(child, 0)
        say("dead", os.WTERMSIG(status))


if __name__ == "__main__":
    main()
