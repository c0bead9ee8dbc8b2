"""Flat against clustered: what is found, how fast, and how large, by the number of rows.

    python -m bench.vector_index --vectors VECTORS.npy --rows 50000 100000 200000 400000

VECTORS.npy holds float32 [n, dimension]: embeddings of sentences, each once. 200 of them are the queries and stand in
no index. Where there are fewer rows than asked for, the rest are real rows moved by noise (inner product about 0.85
with the row they come from), and the figures say how many are real. One thread; times are those it computed.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.throughput import describe_machine
from retrieval.clustered_index import ClusteredIndex
from retrieval.faiss_index import FaissIndex
from retrieval.vector_index import VectorIndex

NUM_QUERIES = 200
DEPTHS = (10, 50, 200)
KINDS: tuple[type[VectorIndex], ...] = (FaissIndex, ClusteredIndex)
KINSHIP = 0.85

Rows = NDArray[np.float32]


def enlarged(real: Rows, count: int, seed: int) -> Rows:
    """``count`` unit rows, the real ones first, then real ones moved."""
    dice = np.random.default_rng(seed)
    missing = max(0, count - len(real))
    noise = dice.standard_normal((missing, real.shape[1]), dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    moved = KINSHIP * real[dice.integers(len(real), size=missing)] + (1 - KINSHIP**2) ** 0.5 * noise
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    rows: Rows = np.concatenate([real[:count], moved])
    return rows


def measure(kind: type[VectorIndex], rows: Rows, queries: Rows, truth: list[list[int]]) -> dict[str, object]:
    """One kind over these rows; ``truth`` are the nearest rows of each query, nearest first."""
    started = time.thread_time()
    index = kind(rows.shape[1])
    index.add(np.arange(len(rows), dtype=np.int64), rows)
    build_seconds = time.thread_time() - started
    started = time.thread_time()
    found = [[number for number, _ in index.search(query, max(DEPTHS))] for query in queries]
    search_seconds = time.thread_time() - started
    recall = {
        f"recall_at_{depth}": round(
            sum(len(set(hits[:depth]) & set(near[:depth])) for hits, near in zip(found, truth, strict=True))
            / (depth * len(queries)),
            4,
        )
        for depth in DEPTHS
    }
    started = time.thread_time()
    content = index.to_bytes()
    kind.from_bytes(rows.shape[1], content)
    return {
        "kind": kind.__name__,
        **recall,
        "nearest_found": sum(hits[0] == near[0] for hits, near in zip(found, truth, strict=True)) / len(queries),
        "ms_per_query": round(1000 * search_seconds / len(queries), 2),
        "build_seconds": round(build_seconds, 2),
        "load_and_write_seconds": round(time.thread_time() - started, 2),
        "mib": round(len(content) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000, 200_000, 400_000])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    vectors = np.load(options.vectors)
    order = np.random.default_rng(options.seed).permutation(len(vectors))
    queries, real = vectors[order[-NUM_QUERIES:]], vectors[order[:-NUM_QUERIES]]
    for count in options.rows:
        rows = enlarged(real, count, options.seed)
        scores = queries @ rows.T
        truth = np.argsort(-scores, axis=1, kind="stable")[:, : max(DEPTHS)].tolist()
        for kind in KINDS:
            figures = {"rows": count, "real_rows": min(count, len(real)), **measure(kind, rows, queries, truth)}
            print(json.dumps(figures), flush=True)
    print(json.dumps({"bench": "vector_index", "machine": describe_machine(len(os.sched_getaffinity(0)))}))


if __name__ == "__main__":
    main()
