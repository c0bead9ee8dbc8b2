"""Many documents are asked as one, and nobody can tell from what is found: each by itself is the specification."""

import random
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import key_lookup
from retrieval.embedder import HashEmbedder
from retrieval.errors import UnknownDocument
from retrieval.laid_out import LaidOut, Piece
from retrieval.limits import Limits
from retrieval.passage import Span
from retrieval.scope import Scope
from retrieval.segment import Segment
from retrieval.stacks import TOGETHER, Stack
from retrieval.word_counts import WordCounts

TENANT = "acme"
WORDS = "porter key globe lantern oil harbour voyage horses ran café of the was LO-17 KX-3 2019 = VAR".split()
NAMES = ("lease.txt", "plan 7.txt", "notes.md", "Harbour report.txt", "KX-3.txt")


def text_by(dice: random.Random, most: int = 20) -> str:
    sentences = [" ".join(dice.choices(WORDS, k=dice.randint(3, 25))) + "." for _ in range(dice.randint(1, most))]
    headings = [f"\n\n# {dice.choice(WORDS)} {number}\n\n" if dice.random() < 0.2 else " " for number in range(most)]
    return "".join(piece for pair in zip(sentences, headings, strict=False) for piece in pair)


@contextmanager
def each_by_itself(library):
    """The twin."""
    stacks, library._search._stacks = library._search._stacks, None
    many, key_lookup.MANY_DOCUMENTS = key_lookup.MANY_DOCUMENTS, 1 << 30
    try:
        yield
    finally:
        library._search._stacks, key_lookup.MANY_DOCUMENTS = stacks, many


def told(result):
    passages = [(p.document_id, p.span, p.text, p.found_by, p.evidence, p.is_named) for p in result.passages]
    return passages, result.found, result.num_chunks_searched, result.num_facts, result.reason


def assert_alike(library, question, ids, **options):
    found = library.search(TENANT, question, ids, 8, **options)
    with each_by_itself(library):
        expected = library.search(TENANT, question, ids, 8, **options)
    assert told(found) == told(expected)
    assert [p.score for p in found.passages] == pytest.approx([p.score for p in expected.passages], abs=1e-4)
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)
    assert [p.nearest and p.nearest.span for p in found.passages] == [
        p.nearest and p.nearest.span for p in expected.passages
    ]
    return found


def stack_of(library, tenant=TENANT) -> Stack:
    return library._memory.get(("stack", tenant), None, Stack) or Stack()


@pytest.mark.parametrize("learned", [True, False])
def test_the_answers_are_those_of_each_document_by_itself(open_library, add_text, learned, monkeypatch):
    """Documents come and go between the questions; some are asked in part, some before their vectors stand, and one is
    too long to be asked as one with others."""
    monkeypatch.setattr("retrieval.search.STACKED_ROWS", 30)
    monkeypatch.setattr("retrieval.key_lookup.MANY_DOCUMENTS", 20)
    library, dice = open_library(), random.Random(5)
    library._search._is_learned = learned
    ids: list[str] = []
    for round_ in range(4):
        for number in range(9):
            text = text_by(dice, 60 if number == 8 else 12)
            document = add_text(library, text, f"{round_}-{number} {dice.choice(NAMES)}", process=False)
            stop = (lambda at: lambda: library.is_answerable(at))(document.id) if number % 4 == 3 else (lambda: False)
            library.process(document.id, stop=stop)
            ids.append(document.id)
        for _ in range(3):
            chosen = dice.sample(ids, dice.randint(TOGETHER // 2, len(ids)) if len(ids) > TOGETHER else len(ids))
            question = " ".join(dice.choices(WORDS, k=dice.randint(1, 6)))
            parts = {each: (Span(0, 150),) for each in dice.sample(chosen, 2)} if dice.random() < 0.3 else {}
            assert_alike(library, question, chosen, scope=Scope(parts))
        assert_alike(library, f"What do KX-3 and the harbour have in common in all documents? {round_}", ids[:60])
        for gone in dice.sample(ids, 3):
            library.delete(TENANT, gone)
            ids.remove(gone)
    assert any(record.num_rows > 30 for record in library._store.records(ids))
    assert 1 <= len(stack_of(library).segments) <= 4


def test_equal_texts_come_by_the_order_of_the_documents(open_library, add_text):
    library = open_library()
    ids = [
        add_text(library, f"The porter keeps the globe.\n\nRow {number}", f"{number}.txt").id for number in range(30)
    ]
    random.Random(0).shuffle(ids)
    assert assert_alike(library, "Who keeps the globe?", ids).passages[0].document_id == ids[0]


def test_each_document_that_has_a_share_is_looked_into(open_library, add_text):
    library = open_library()
    library._search._is_learned = True
    loud = "\n\n".join("The ferry leaves, the ferry comes, the ferry man says ferry. " * 8 for _ in range(70))
    quiet = [
        "They spoke of roads, and of a ferry or a cart that was to be had in town. " * 5 + f"{n}" for n in range(20)
    ]
    ids = [add_text(library, text, f"{n}.txt").id for n, text in enumerate([loud, *quiet])]
    found = assert_alike(library, "The ferry, compared in all documents", ids)
    assert len({passage.document_id for passage in found.passages}) > 1


def test_keys_of_documents_that_are_not_asked_lead_nowhere(open_library, add_text, monkeypatch):
    monkeypatch.setattr("retrieval.key_lookup.MANY_DOCUMENTS", TOGETHER)
    library = open_library()
    texts = [f"Voucher LO-00{n} paid for the lamp oil of house {n}." for n in range(40, 40 + 2 * TOGETHER)]
    ids = [add_text(library, text).id for text in texts]
    for text in texts:
        add_text(library, text, tenant="other")
    found = assert_alike(library, "What did voucher LO-0043 pay for, and LO-0061?", ids[: TOGETHER + 1])
    assert [p.document_id for p in found.passages if p.evidence] == [ids[3]] and found.num_facts == 1


def test_nothing_of_another_tenant_is_in_a_stack(open_library, add_text):
    library, dice = open_library(), random.Random(1)
    mine = [add_text(library, text_by(dice)).id for _ in range(TOGETHER)]
    before = library.search(TENANT, "porter key", mine)
    theirs = [add_text(library, "porter " * 30 + text_by(dice), tenant="other").id for _ in range(TOGETHER)]
    library.search("other", "porter key", theirs)
    after = library.search(TENANT, "porter key", mine)
    assert told(after) == told(before) and [p.score for p in after.passages] == [p.score for p in before.passages]
    numbers = {number for segment in stack_of(library).segments for number in segment.numbers.tolist()}
    assert numbers == {record.number for record in library._store.records(mine)}
    with pytest.raises(UnknownDocument, match=theirs[3]):
        library.search(TENANT, "porter key", [*mine, theirs[3]])


def test_words_that_were_counted_are_derived(open_library, add_text):
    library, dice = open_library(), random.Random(2)
    ids = [add_text(library, text_by(dice)).id for _ in range(TOGETHER)]
    before = library.search(TENANT, "porter key LO-17", ids)
    with library._store.database.write() as (connection, _):
        stored = connection.execute("SELECT * FROM word_counts ORDER BY document").fetchall()
        connection.execute("DELETE FROM word_counts WHERE document % 3 = 0")
        connection.execute("UPDATE word_counts SET format = 0, counts = x'00' WHERE document % 3 = 1")
    library = open_library()
    assert told(library.search(TENANT, "porter key LO-17", ids)) == told(before)
    with library._store.database.read() as connection:
        assert connection.execute("SELECT * FROM word_counts ORDER BY document").fetchall() == stored


def test_a_deleted_document_is_neither_found_nor_held(open_library, add_text):
    library, dice = open_library(), random.Random(3)
    ids = [add_text(library, text_by(dice)).id for _ in range(TOGETHER + 4)]
    gone = add_text(library, "The zebra key lies under the mat.")
    assert gone.id in {passage.document_id for passage in library.search(TENANT, "zebra", [*ids, gone.id]).passages}
    number = library._store.record(gone.id).number
    library.delete(TENANT, gone.id)
    with library._store.database.read() as connection:
        assert connection.execute("SELECT 1 FROM word_counts WHERE document = ?", (number,)).fetchone() is None
    with pytest.raises(UnknownDocument):
        library.search(TENANT, "zebra", [*ids, gone.id])
    library.search(TENANT, "zebra", ids)
    assert all(number not in segment.numbers for segment in stack_of(library).segments)


def test_a_document_deleted_while_many_are_searched_is_unknown(open_library, add_text, monkeypatch):
    library, dice = open_library(), random.Random(4)
    ids = [add_text(library, text_by(dice)).id for _ in range(TOGETHER)]
    library.search(TENANT, "porter", ids)
    texts_of = library._store.texts_of

    def deleting(spans):
        monkeypatch.undo()
        library.delete(TENANT, ids[2])
        return texts_of(spans)

    library._search._is_learned = True
    monkeypatch.setattr(library._store, "texts_of", deleting)
    with pytest.raises(UnknownDocument):
        library.search(TENANT, "porter", ids)


def test_what_is_held_of_many_is_in_the_bill_and_within_its_limit(open_library, add_text):
    library, dice = open_library(), random.Random(6)
    ids = [add_text(library, text_by(dice), f"{number}.txt").id for number in range(TOGETHER)]
    library.search(TENANT, "porter", ids)
    (segment,) = stack_of(library).segments
    arrays = [each for each in vars(segment).values() if isinstance(each, np.ndarray)]
    held = library.stats().host_bytes
    assert held["embeddings"] == segment.vectors.nbytes == library.stats().num_vectors * 64 * 4
    listed = sum(held.values()) - sum(each.nbytes for each in arrays)
    names = sum(sys.getsizeof(document.id) + sys.getsizeof(document.name) for document in library.list(TENANT))
    assert names < listed < 2000 * len(ids)
    # Of what is more than may be held each is asked by itself.
    library = open_library(limits=Limits(max_index_bytes=segment.vectors.nbytes))
    assert library.search(TENANT, "porter", ids).passages and stack_of(library) == Stack()


TEXTS = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)
CHUNKS = st.lists(st.tuples(TEXTS, st.sampled_from(["", "Voyage", "Oil > Lantern"])), max_size=4)


def piece(number: int, chunks: list[tuple[str, str]]) -> Piece:
    dice = np.random.default_rng(number)
    rows = dice.integers(1, 4, len(chunks)).tolist()
    vectors = dice.standard_normal((sum(rows), 8)).astype(np.float32)
    vectors = None if number % 3 == 0 else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Piece(
        number, number * 2, -1 if vectors is None else number * 2 + 1, WordCounts.of(chunks, rows).to_bytes(), vectors
    )


def assert_same_segment(one: Segment, two: Segment) -> None:
    for name, array in vars(one).items():
        if name not in ("_chunks", "_counts", "_bits"):  # The places of a word may come in any order.
            np.testing.assert_array_equal(array, vars(two)[name], err_msg=name)
    for word in {stem for text in WORDS for stem in (text, text.lower(), text.lower()[:-1])}:
        for field in ("stemmed", "heading", "exact"):
            mine, other = (
                {*zip(*map(np.ndarray.tolist, each.postings((field, word))), strict=True)} for each in (one, two)
            )
            assert mine == other


@settings(max_examples=40, deadline=None)
@given(st.lists(CHUNKS, min_size=1, max_size=8), st.data())
def test_what_is_joined_or_left_out_is_as_if_made_at_once(documents, data):
    pieces = [piece(number, chunks) for number, chunks in enumerate(documents)]
    cut = data.draw(st.integers(0, len(pieces)))
    parts = [Segment(LaidOut.of(part, 8)).laid_out() for part in (pieces[:cut], pieces[cut:])]
    assert_same_segment(Segment(LaidOut.end_to_end(parts)), Segment(LaidOut.of(pieces, 8)))
    wanted = np.array([data.draw(st.booleans()) for _ in pieces])
    kept = [each for each, is_wanted in zip(pieces, wanted, strict=True) if is_wanted]
    assert_same_segment(Segment(Segment(LaidOut.of(pieces, 8)).laid_out().kept(wanted)), Segment(LaidOut.of(kept, 8)))


def test_a_new_embedder_takes_the_place_of_the_one_before(open_library, add_text):
    library, dice = open_library(), random.Random(7)
    ids = [add_text(library, text_by(dice)).id for _ in range(TOGETHER)]
    library = open_library(HashEmbedder(dimension=32))
    assert library.search(TENANT, "porter", ids).reason.startswith("searched by keys and words; the vectors")
    for each in ids[:5]:
        library.process(each)
    assert "5 of 16 documents by meaning" in assert_alike(library, "porter key", ids).reason
