"""One contract, every vector index; the exact one is the ground truth."""

import threading

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.clustered_index import ClusteredIndex
from retrieval.errors import IndexUnavailable, VectorsInvalid
from retrieval.faiss_index import FaissIndex
from retrieval.gpu_index import GpuIndex, check_device
from retrieval.vector_index import ExactIndex


class RoundingIndex(GpuIndex):
    """As on a GPU, on the CPU: what picks the rows has other roundings than what compares them."""

    def _copied(self, flat):
        rows = flat.reconstruct_n(0, flat.ntotal)
        noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, rows.shape)
        copy = faiss.IndexFlatIP(flat.d)
        copy.add((rows + noise).astype(np.float32))
        return copy


def has_gpu() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


on_gpu = pytest.mark.skipif(not has_gpu(), reason="needs a GPU and a FAISS that knows of it")
INDEXES = [
    pytest.param(ExactIndex, id="exact"),
    pytest.param(FaissIndex, id="faiss"),
    pytest.param(ClusteredIndex, id="clustered"),
    pytest.param(RoundingIndex, id="rounding"),
    pytest.param(GpuIndex, id="gpu", marks=[pytest.mark.gpu, on_gpu]),
]
device_index = pytest.mark.parametrize("make", INDEXES[3:])
every_index = pytest.mark.parametrize("make", INDEXES)
served_index = pytest.mark.parametrize("make", INDEXES[1:])


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
def test_among_some_ids_none_of_the_nearest_is_missed(make, unit_rows):
    vectors, query = clustered_rows(9000, 16, 11), clustered_rows(1, 16, 12)[0]
    index = make(16)
    index.add(np.arange(9000), vectors)
    farthest = np.argsort(vectors @ query, kind="stable")[:300].astype(np.int64)
    truth = sorted(farthest.tolist(), key=lambda row: (-float(vectors[row] @ query), row))
    found = index.search(query, 300, farthest)
    assert [number for number, _ in found] == truth
    assert index.search(query, 7, farthest) == found[:7]
    run = np.arange(4000, 4300)
    by_hand = sorted(run.tolist(), key=lambda row: (-float(vectors[row] @ query), row))
    assert [number for number, _ in index.search(query, 300, run)] == by_hand
    # Those that are not held are passed over.
    assert index.search(query, 7, np.append(farthest[:3], 10_000)) == index.search(query, 7, farthest[:3])
    assert len(index.search(query, 7, farthest[:3])) == 3
    assert index.search(query, 7, ids()) == []


@every_index
def test_removed_means_gone(make, unit_rows):
    vectors = unit_rows(10, 8, 4)
    index = make(8)
    index.add(np.arange(10), vectors)
    held = index.num_bytes
    assert index.remove(ids(3, 4, 99)) == 2
    assert len(index) == 8
    two_rows = held - index.num_bytes
    assert two_rows >= 2 * 4 * 8
    assert {number for number, _ in index.search(vectors[3], 10)} == {0, 1, 2, 5, 6, 7, 8, 9}
    assert vectors[3].tobytes() not in index.to_bytes()
    index.add(ids(3), vectors[3:4])
    assert index.num_bytes == held - two_rows // 2
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


@served_index
@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 30), min_size=1)), max_size=12))
def test_any_history_leaves_both_indexes_alike(make, steps):
    table = np.random.default_rng(6).standard_normal((31, 6)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    exact, fast, held = ExactIndex(6), make(6), set()
    for add, numbers in steps:
        chosen = np.array(sorted(numbers - held if add else numbers), dtype=np.int64)
        for index in (exact, fast):
            index.add(chosen, table[chosen]) if add else index.remove(chosen)
        held = held | numbers if add else held - numbers
    assert len(exact) == len(fast) == len(held)
    found = fast.search(table[0], 31)
    assert [number for number, _ in found] == [number for number, _ in exact.search(table[0], 31)]
    assert {number for number, _ in found} == held


@device_index
def test_a_device_index_answers_as_the_flat_one_does_to_the_last_bit(make, monkeypatch):
    vectors, queries = clustered_rows(5000, 32, 21), clustered_rows(40, 32, 22)
    # Many equal rows, and many that hardly differ: more than are picked beyond k.
    vectors[:300] = vectors[0]
    vectors[300:600] = vectors[300] + np.random.default_rng(1).uniform(-2e-6, 2e-6, (300, 32)).astype(np.float32)
    flat, index = FaissIndex(32), make(32)
    for each in (flat, index):
        each.add(np.arange(5000)[::-1].copy(), vectors)
    for query in [*queries, vectors[0], vectors[300]]:
        for k in (1, 10, 200, 2500):
            assert index.search(query, k) == flat.search(query, k)
    for each in (flat, index):
        each.remove(np.arange(100, 3000))
    again = make.from_bytes(32, index.to_bytes())
    assert again.search(queries[0], 50) == index.search(queries[0], 50) == flat.search(queries[0], 50)
    assert again._on_device is not None and again._on_device[0] is again._index
    # Most questions never have all rows compared on the CPU.
    monkeypatch.setattr(FaissIndex, "search", lambda self, query, k, among=None: [(among[0], 1.0)] * k)
    assert index.search(queries[0], 10)[0][0] >= 0


def test_a_gpu_that_is_not_there_is_told():
    if has_gpu():
        return check_device()
    with pytest.raises(IndexUnavailable, match=r"set FANO_INDEX_DEVICE=cpu"):
        check_device()


def clustered_rows(count: int, dimension: int, seed: int) -> np.ndarray:
    """Unit rows about a few hundred directions, as those of sentences are, and not all over the sphere."""
    dice = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((300, dimension))
    rows = centres[dice.integers(300, size=count)] + 0.7 * dice.standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_many_rows_in_clusters_are_searched_in_part_and_found_nearly_all():
    vectors, queries = clustered_rows(30_000, 32, 1), clustered_rows(50, 32, 2)
    exact, index = FaissIndex(32), ClusteredIndex(32)
    for each in (exact, index):
        each.add(np.arange(30_000), vectors)
    found = [index.search(query, 50) for query in queries]
    truth = [dict(exact.search(query, 50)) for query in queries]
    shares = [len(truth[row].keys() & dict(hits).keys()) / 50 for row, hits in enumerate(found)]
    assert np.mean(shares) > 0.97
    for row, hits in enumerate(found):
        assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
        numbers = np.array([number for number, _ in hits])
        assert [score for _, score in hits] == pytest.approx((vectors[numbers] @ queries[row]).tolist(), abs=1e-6)
    everything = index.search(queries[0], 30_000)
    assert len({number for number, _ in everything}) == 30_000


def test_the_same_rows_give_the_same_bytes_and_rows_come_and_go():
    vectors = clustered_rows(6000, 16, 3)
    first, again = ClusteredIndex(16), ClusteredIndex(16)
    for each in (first, again):
        each.add(np.arange(6000), vectors)
    assert first.to_bytes() == again.to_bytes() == ClusteredIndex.from_bytes(16, first.to_bytes()).to_bytes()
    # Fewer than half are left, so that they are clustered anew.
    assert first.remove(np.arange(4000)) == 4000
    assert first.num_bytes < again.num_bytes / 2
    assert vectors[17].tobytes() not in first.to_bytes()
    assert first.search(vectors[5000], 1)[0][0] == 5000
    assert first.products(vectors[5000], ids(5000)) == pytest.approx([1.0], abs=1e-6)


@served_index
def test_searching_while_adding_and_removing_neither_crashes_nor_errs(make, unit_rows):
    # FAISS itself dies of this (segmentation fault, 3 of 3 runs) when the index is changed in place.
    vectors = unit_rows(8000, 16, 7)
    index = make(16)
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
    for start in range(500, 8000, 500):
        index.add(np.arange(start, start + 500), vectors[start : start + 500])
        index.remove(ids(start, start + 1))
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(index) == 8000 - 2 * 15
