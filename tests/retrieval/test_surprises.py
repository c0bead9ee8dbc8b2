"""Surprises as a library keeps them: told once, within the budget, gone with the document and with its index."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.errors import UnknownDocument
from retrieval.library import Library
from retrieval.limits import Limits
from retrieval.passage import DocumentStatus, Span
from retrieval.surprises import Surprise

TENANT = "acme"
TEXT = "Alpha drank rum. The old Kvorplax of Zed sang!\nInvoice INV-2024-001 is due. A quux, a blorb, a frobnitz."
Opener = Callable[..., Library]


@pytest.fixture
def open_library(data_dir: Path) -> Iterator[Opener]:
    opened: list[Library] = []

    def make(max_facts: int = 100) -> Library:
        if opened:
            opened.pop().close()
        limits = Limits(max_facts=max_facts)
        opened.append(Library.open(data_dir, HashEmbedder(dimension=16), limits=limits, has_reader=True))
        return opened[-1]

    yield make
    opened.pop().close()


def put(library: Library, tmp_path: Path) -> str:
    path = tmp_path / "upload"
    path.write_text(TEXT)
    document, _ = library.add(TENANT, "a.txt", "text/plain", path, True)
    library.process(document.id)
    return document.id


def at(*said: str, bits: float = 20.0) -> list[Surprise]:
    return [Surprise(Span(TEXT.index(each), TEXT.index(each) + len(each)), bits) for each in said]


def listed(library: Library, document_id: str, **query: str) -> list[str]:
    found = library.facts(TENANT, document_id, **{"kind": "surprising", **query})
    return [TEXT[each.span.start : each.span.end] for each in found]


def test_surprises_are_facts_with_keys_and_evidence(open_library: Opener, tmp_path: Path) -> None:
    library = open_library()
    document_id = put(library, tmp_path)
    num_facts = library.stats().num_facts
    assert library.surprises.tell(document_id, 0, 9, at("Kvorplax of Zed", bits=31.5))
    (fact,) = library.facts(TENANT, document_id, kind="surprising")
    assert (fact.source, fact.score, fact.keys[:2]) == ("reading", 31.5, ("Kvorplax of Zed", "kvorplax of zed"))
    assert TEXT[fact.evidence.start : fact.evidence.end] == "The old Kvorplax of Zed sang!"
    assert library.stats().num_facts == num_facts + 1
    assert listed(library, document_id, key="KVORPLAX-OF-ZED") == ["Kvorplax of Zed"]
    assert listed(library, document_id, kind="identifier") == ["INV-2024-001"]
    # It is no key that a search is led by.
    assert library.search(TENANT, "What is 'Kvorplax of Zed'?", [document_id]).num_facts == 0
    assert library.search(TENANT, "What is 'INV-2024-001'?", [document_id]).num_facts > 0


def test_each_stretch_is_told_once_and_in_order(open_library: Opener, tmp_path: Path) -> None:
    library = open_library()
    document_id = put(library, tmp_path)
    assert library.surprises.num_told(document_id) == 0
    assert not library.surprises.tell(document_id, 5, 9, at("quux")), "what is between is missing"
    assert library.surprises.tell(document_id, 0, 5, at("Kvorplax"))
    assert not library.surprises.tell(document_id, 0, 5, at("Kvorplax")), "it was told before"
    library = open_library()
    assert library.surprises.num_told(document_id) == 5
    assert library.surprises.tell(document_id, 5, 9, at("frobnitz", "quux"))
    assert listed(library, document_id) == ["Kvorplax", "quux", "frobnitz"]


def test_surprises_take_the_room_that_is_left_the_most_surprising_first(open_library: Opener, tmp_path: Path) -> None:
    library = open_library()
    num_recognised = len(library.facts(TENANT, document_id := put(library, tmp_path)))
    assert num_recognised > 0
    library = open_library(num_recognised + 2)
    library.pin(TENANT, document_id, Span(0, 5))
    pieces = [at("Kvorplax", bits=20.0), at("quux", bits=15.0), [*at("blorb", bits=30.0), *at("frobnitz", bits=12.0)]]
    for number, found in enumerate(pieces):
        library.surprises.tell(document_id, number, number + 1, found)
    assert listed(library, document_id) == ["Kvorplax", "blorb"]
    assert library.dropped_facts(TENANT, document_id) == {"surprising": 2}
    assert library.stats().num_facts == num_recognised + 3
    assert listed(library, document_id, key="quux") == []
    with library._store.database.read() as connection:
        orphans = "SELECT count(*) FROM fact_keys WHERE (document, fact) NOT IN (SELECT document, fact FROM facts)"
        assert connection.execute(orphans).fetchone() == (0,)
    library = open_library(num_recognised - 1)
    library.surprises.tell(document_id, 3, 4, at("quux", bits=99.0))
    assert listed(library, document_id) == [] and len(library.facts(TENANT, document_id)) == num_recognised + 1
    assert library.dropped_facts(TENANT, document_id) == {"surprising": 5}


def test_they_go_with_the_document_and_with_its_index(open_library: Opener, tmp_path: Path, data_dir: Path) -> None:
    library = open_library()
    document_id = put(library, tmp_path)
    library.surprises.tell(document_id, 0, 9, at("Kvorplax of Zed"))
    library.end_reading(document_id)
    assert library.get(TENANT, document_id).status is DocumentStatus.READY
    # Made anew, it has to be read anew: its text may be another.
    with library._store.database.write() as (connection, _):
        connection.execute("UPDATE documents SET stage = 'queued'")
    library.process(document_id)
    assert listed(library, document_id) == [] and library.surprises.num_told(document_id) == 0
    assert [each.id for each in library.unread()] == [document_id]
    library.surprises.tell(document_id, 0, 9, at("Kvorplax of Zed"))
    library.delete(TENANT, document_id)
    for call in (library.surprises.num_told, lambda each: library.surprises.tell(each, 9, 10, at("quux"))):
        with pytest.raises(UnknownDocument):
            call(document_id)
    assert library.stats().num_facts == 0
    assert b"Kvorplax" not in (data_dir / "store.sqlite3").read_bytes()
