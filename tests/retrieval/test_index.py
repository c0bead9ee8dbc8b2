"""One contract, every vector index; the exact one is the ground truth."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import VectorsInvalid
from retrieval.faiss_index import FaissIndex
from retrieval.vector_index import ExactIndex

INDEXES = [pytest.param(ExactIndex, id="exact"), pytest.param(FaissIndex, id="faiss")]
every_index = pytest.mark.parametrize("make", INDEXES)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@every_index
def test_recall_against_brute_force_is_one(make, unit_rows):
    vectors, queries = unit_rows(2000, 32, 0), unit_rows(50, 32, 1)
    index = make(32)
    index.add(np.arange(2000), vectors)
    for query in queries:
        truth = np.argsort(-(vectors @ query), kind="stable")[:10].tolist()
        assert [number for number, _ in index.search(query, 10)] == truth


@every_index
def test_scores_are_inner_products(make, unit_rows):
    vectors = unit_rows(5, 8, 2)
    index = make(8)
    index.add(ids(10, 11, 12, 13, 14), vectors)
    hits = dict(index.search(vectors[3], 5))
    assert hits[13] == pytest.approx(1.0, abs=1e-6)
    assert hits[10] == pytest.approx(float(vectors[0] @ vectors[3]), abs=1e-6)


@every_index
def test_equal_vectors_come_by_id_even_across_the_cut(make, unit_rows):
    index = make(4)
    index.add(np.arange(100)[::-1].copy(), np.repeat(unit_rows(1, 4, 3), 100, axis=0))
    assert [number for number, _ in index.search(unit_rows(1, 4, 3)[0], 3)] == [0, 1, 2]


@every_index
def test_more_asked_than_held_gives_all_there_are(make, unit_rows):
    index = make(4)
    assert index.search(unit_rows(1, 4, 0)[0], 5) == []
    index.add(ids(7), unit_rows(1, 4, 0))
    assert [number for number, _ in index.search(unit_rows(1, 4, 0)[0], 5)] == [7]


@every_index
@pytest.mark.parametrize(
    ("numbers", "rows", "said"),
    [
        (ids(0), np.ones((1, 3), np.float32), r"shape \(1, 3\), this index holds rows of 4"),
        (ids(0), np.ones((1, 4), np.float32), "vector 0 has length 2, expected 1"),
        (ids(0), np.full((1, 4), np.nan, np.float32), "length nan"),
        (ids(0), np.full((1, 4), 0.5, np.float64), "float64, expected float32"),
        (ids(0, 1), np.full((1, 4), 0.5, np.float32), "1 vectors came with ids"),
        (ids(-1), np.full((1, 4), 0.5, np.float32), "id -1 is negative"),
        (ids(5), np.full((1, 4), 0.5, np.float32), "id 5 is in the index already"),
        (ids(6, 6), np.full((2, 4), 0.5, np.float32), "id 6 is in the index already or given twice"),
    ],
)
def test_what_would_be_stored_wrong_is_refused_and_nothing_is_added(make, numbers, rows, said):
    index = make(4)
    index.add(ids(5), np.full((1, 4), 0.5, np.float32))
    with pytest.raises(VectorsInvalid, match=said):
        index.add(numbers, rows)
    assert len(index) == 1


@every_index
@pytest.mark.parametrize(
    ("query", "said"),
    [
        (np.full(3, 0.5, np.float32), r"shape \(3,\), expected \(4,\)"),
        (np.full(4, np.nan, np.float32), "length nan"),
        (np.full(4, 2.0, np.float32), "length 4, expected 1"),
    ],
)
def test_a_query_that_would_find_nonsense_is_refused(make, query, said):
    with pytest.raises(VectorsInvalid, match=said):
        make(4).search(query, 1)


@every_index
def test_products_are_those_of_the_vectors_asked_for(make, unit_rows):
    vectors = unit_rows(20, 8, 9)
    index = make(8)
    index.add(np.arange(20) * 3, vectors)
    assert index.products(vectors[2], ids(27, 6, 6)) == pytest.approx([vectors[9] @ vectors[2], 1.0, 1.0], abs=1e-6)
    assert len(index.products(vectors[2], ids())) == 0
    with pytest.raises(VectorsInvalid, match="not in the index"):
        index.products(vectors[2], ids(6, 7))


@every_index
def test_removed_means_gone(make, unit_rows):
    vectors = unit_rows(10, 8, 4)
    index = make(8)
    index.add(np.arange(10), vectors)
    held = index.num_bytes
    assert index.remove(ids(3, 4, 99)) == 2
    assert len(index) == 8
    assert index.num_bytes == held * 8 // 10
    assert 3 not in dict(index.search(vectors[3], 10))
    index.add(ids(3), vectors[3:4])
    assert index.search(vectors[3], 1)[0][0] == 3


@every_index
def test_bytes_round_trip(make, unit_rows):
    vectors = unit_rows(20, 8, 5)
    index = make(8)
    index.add(np.arange(20) * 3, vectors)
    again = make.from_bytes(8, index.to_bytes())
    assert again.search(vectors[7], 20) == index.search(vectors[7], 20)
    again.add(ids(1), vectors[:1])
    assert (len(again), len(index), again.dimension) == (21, 20, 8)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 30), min_size=1)), max_size=12))
def test_any_history_leaves_both_indexes_alike(steps):
    table = np.random.default_rng(6).standard_normal((31, 6)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    exact, fast, held = ExactIndex(6), FaissIndex(6), set()
    for add, numbers in steps:
        chosen = np.array(sorted(numbers - held if add else numbers), dtype=np.int64)
        for index in (exact, fast):
            index.add(chosen, table[chosen]) if add else index.remove(chosen)
        held = held | numbers if add else held - numbers
    assert len(exact) == len(fast) == len(held)
    found = fast.search(table[0], 31)
    assert [number for number, _ in found] == [number for number, _ in exact.search(table[0], 31)]
    assert {number for number, _ in found} == held


def test_searching_while_adding_and_removing_neither_crashes_nor_errs(unit_rows):
    # FAISS itself dies of this (segmentation fault, 3 of 3 runs) when the index is changed in place.
    vectors = unit_rows(20_000, 16, 7)
    index = FaissIndex(16)
    index.add(np.arange(500), vectors[:500])
    done = threading.Event()
    wrong: list[object] = []

    def search() -> None:
        while not done.is_set():
            hits = index.search(vectors[17], 5)
            if hits[0][0] != 17:
                wrong.append(hits)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for start in range(500, 20_000, 500):
        index.add(np.arange(start, start + 500), vectors[start : start + 500])
        index.remove(ids(start, start + 1))
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(index) == 20_000 - 2 * 39
