"""What one search over a store of many documents costs: CPU time and memory, the first time and after.

    python -m bench.stores --questions QA_TRAIN.jsonl.xz --data STORE --documents 1 100 1000 10000

Documents are paragraphs that questions were written for. STORE is made once, if it is not there, and kept: most of it
is embedding. Asked are questions about documents that are among those asked; the CPU time is that of the whole process
on one thread, the vector of the question included, and found is whether the first five passages hold the answer.
``alone`` asks each document by itself, which is the specification and finds the same.
"""

import argparse
import json
import lzma
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.soak import resident_mib
from bench.throughput import describe_machine
from retrieval.embedder import MiniLMEmbedder
from retrieval.library import Library
from retrieval.limits import Limits

TENANT = "stores"
SEED = 0
NUM_ASKED = 25


def paragraphs(path: Path, count: int, source: str) -> list[tuple[str, str, str]]:
    """Text, question and answer, one of each paragraph."""
    asked: dict[str, tuple[str, str, str]] = {}
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["source"] == source and row["answers"]:
                asked.setdefault(row["context"], (row["context"], row["question"], row["answers"][0]))
    every = list(asked.values())
    random.Random(SEED).shuffle(every)
    return every[:count]


def make(data: Path, texts: Sequence[str], embedder: MiniLMEmbedder) -> None:
    """Take in what is not there yet."""
    with closing(Library.open(data, embedder)) as library:
        if len(ids_in(library, len(texts))) == len(texts) and not library.pending(1):
            return
        upload = data / "upload"
        for number, text in enumerate(texts):
            upload.write_bytes(text.encode())
            document, _ = library.add(TENANT, f"note {number}.txt", "text/plain", upload)
            library.process(document.id)
        upload.unlink()


def ids_in(library: Library, count: int) -> list[str]:
    """The first documents."""
    found: list[str] = []
    while len(found) < count and (page := library.list(TENANT, found[-1] if found else None, 100)):
        found += [document.id for document in page]
    return found[:count]


def measure(data: Path, asked: Sequence[tuple[str, str, str]], embedder: MiniLMEmbedder, alone: bool) -> dict[str, Any]:
    """One point: a library newly opened, asked over so many documents."""
    questions = random.Random(SEED).choices(asked, k=NUM_ASKED)
    with closing(Library.open(data, embedder, limits=Limits(max_index_bytes=1 << 32))) as library:
        if alone:
            library._search._stacks = None
        ids = ids_in(library, len(asked))
        before = resident_mib(os.getpid())
        seconds, num_found = [], 0
        for _, question, answer in questions:
            started = time.process_time()
            passages = library.search(TENANT, question, ids, 5).passages
            seconds.append(time.process_time() - started)
            num_found += any(answer in passage.text for passage in passages)
        return {
            "documents": len(ids),
            "alone": alone,
            "first_cpu_seconds": round(seconds[0], 4),
            "cpu_seconds": round(statistics.median(seconds[1:]), 4),
            "slowest_cpu_seconds": round(max(seconds[1:]), 4),
            "found": num_found,
            "asked": len(questions),
            "resident_mib": round(resident_mib(os.getpid()) - before, 1),
            "host_bytes": library.stats().host_bytes,
        }


def points(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    embedder = MiniLMEmbedder(threads=1)
    every = paragraphs(arguments.questions, max(arguments.documents), arguments.source)
    make(arguments.data, [text for text, _, _ in every], embedder)
    embedder.embed_query("The weights are loaded and the kernels are warm.")
    for count in arguments.documents:
        for alone in (False, True) if arguments.alone else (False,):
            yield measure(arguments.data, every[:count], embedder, alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="questions as .jsonl.xz")
    parser.add_argument("--source", default="squad1.1", help="which questions of the file")
    parser.add_argument("--data", type=Path, required=True, help="the store, made if need be")
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 100, 1_000, 10_000])
    parser.add_argument("--alone", action="store_true", help="each document by itself as well")
    arguments = parser.parse_args()
    for point in points(arguments):
        print(json.dumps(point), flush=True)
    print(json.dumps({"bench": "stores", "machine": describe_machine(1)}))


if __name__ == "__main__":
    main()
