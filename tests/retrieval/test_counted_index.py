"""Short texts are searched by counted words, long ones by tantivy, and nobody can tell from what is found."""

import gc
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.counted_index import CountedIndex, rounded_length
from retrieval.lexical_index import LexicalPart, LexicalQuery, search_lexical
from retrieval.tantivy_index import TantivyIndex

# Words with stems, accents, parts, other scripts, and words of questions.
WORDS = "horse horses ran the of Who crème brûlée QX-7741-B 7741 東京都 voyage voyages lamp's foo_bar.py".split()
TEXTS = st.lists(st.sampled_from(WORDS), max_size=90).map(" ".join)
CHUNKS = st.lists(st.tuples(TEXTS, st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)), min_size=1, max_size=9)
# Single precision, and a sum of some two dozen words.
PRECISION = 1e-5


def both(chunks):
    return CountedIndex(chunks), TantivyIndex.build(None, chunks, 1000)


def assert_same_hits(one, two):
    """The same places in the same order, but for scores that are the same to the precision there is."""
    scores, others = ({hit[:-1]: hit[-1] for hit in hits} for hits in (one, two))
    assert scores == pytest.approx(others, rel=PRECISION)
    for hits in (one, two):
        mine = [others[hit[:-1]] if hits is one else scores[hit[:-1]] for hit in hits]
        assert all(later <= earlier * (1 + PRECISION) for earlier, later in pairwise(mine))


@settings(max_examples=80, deadline=None)
@given(CHUNKS, TEXTS, st.randoms(use_true_random=False))
def test_what_is_found_is_what_tantivy_finds(chunks, question, dice):
    mine, other = both(chunks)
    query = LexicalQuery.of(question)
    terms = [term for term, _ in query.terms()]
    assert len(mine) == len(other)
    assert [mine.frequency(term) for term in terms] == [other.frequency(term) for term in terms]
    boosts = {term: dice.uniform(0.2, 3.0) for term in terms if dice.random() < 0.7}
    assert_same_hits(mine.search(query, 20, boosts), other.search(query, 20, boosts))


@settings(max_examples=60, deadline=None)
@given(CHUNKS, TEXTS, st.data())
def test_parts_are_searched_alike(chunks, question, data):
    query = LexicalQuery.of(question)
    ordinals = sorted(data.draw(st.sets(st.integers(0, len(chunks) - 1))))
    cut = {each: "horse" for each in ordinals if data.draw(st.booleans())}
    mine, other = (LexicalPart(whole, ordinals, cut) for whole in both(chunks))
    assert all(mine.frequency(term) == other.frequency(term) for term, _ in query.terms())
    one, two = (search_lexical([part], query, 20) for part in (mine, other))
    assert_same_hits(one.hits, two.hits)
    assert {ordinal for _, ordinal, _ in one.hits} <= set(ordinals)
    assert one[1:] == two[1:]


@settings(max_examples=40, deadline=None)
@given(CHUNKS, CHUNKS, TEXTS)
def test_documents_of_both_kinds_are_asked_as_one(first, second, question):
    query = LexicalQuery.of(question)
    mine, other = both(first), both(second)
    mixed = search_lexical([mine[0], other[1]], query, 20)
    alike = search_lexical([mine[1], other[1]], query, 20)
    assert_same_hits(mixed.hits, alike.hits)
    assert mixed[1:] == alike[1:]


def test_only_the_best_are_given():
    index = CountedIndex([(f"lamp {'lamp ' * number}", "") for number in range(9)])
    query = LexicalQuery.of("lamp")
    assert index.search(query, 2, {}) == index.search(query, 9, {})[:2]


def test_lengths_are_rounded_as_tantivy_rounds_them():
    """One word among so many others: the score tells the length that was kept."""
    lengths = [*range(1, 70), 95, 96, 103, 104, 151, 152, 500, 1000, 5000]
    chunks = [("lamp " + "x " * (length - 1), "") for length in lengths]
    query = LexicalQuery((), ("lamp",))
    mine, other = both(chunks)
    assert_same_hits(mine.search(query, 100, {}), other.search(query, 100, {}))
    assert [rounded_length(length) for length in (0, 23, 24, 40, 41, 42, 55, 57, 60, 1000)] == [
        0, 23, 24, 40, 40, 42, 54, 56, 60, 984
    ]  # fmt: skip


@pytest.mark.parametrize("num_chunks", [1, 6, 15])
def test_its_bytes_are_told_about_right(num_chunks):
    chunks = [
        (" ".join(f"word{7 * number * place % 400}" for place in range(90)), "Voyage")
        for number in range(1, num_chunks + 1)
    ]
    CountedIndex(chunks)  # What is made once is not counted.
    gc.collect()  # Nor are tuples that Python keeps for reuse, which this gives back.
    tracemalloc.start()
    try:
        index = CountedIndex(chunks)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.num_bytes == pytest.approx(held, rel=0.2)
