"""Real questions of several sources asked of one long text: what each search finds alone, and what all find together.

    python -m bench.retrieval_sources --questions QA.jsonl.xz --seed 31

All contexts of the sources are joined into one text, article by article; of each source as many questions are asked.
Found means that an answer stands whole in the first passage, or in one of the first five, composed in the same way for
every search. Intervals are of 95 %, by the bootstrap over questions; differences are paired. ``--absent`` asks as many
questions of another file, whose answers are not in the text: how often is that said, and how often wrongly?
"""

import argparse
import json
import lzma
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contents import Contents
from retrieval.embedder import Embedder, MiniLMEmbedder
from retrieval.faiss_index import FaissIndex
from retrieval.fusion import fuse
from retrieval.index_memory import IndexMemory
from retrieval.library import Library
from retrieval.passage import Span
from retrieval.passages import Rankings, compose
from retrieval.search import WEIGHTS, Search
from retrieval.shelf_files import ShelfFiles
from retrieval.shelves import Shelves
from retrieval.store import Store

SOURCES = ("squad1.1-dev", "nq-gold-eval", "fairytaleqa-val", "tatqa-dev", "wikitablequestions-test", "afriqa-dev")
TENANT = "bench"
Row = dict[str, Any]
FIRST = 5
NUM_DRAWS = 4000
LEGS = ("lexical", "dense", "reciprocal ranks", "learned", "shipped")


@dataclass(frozen=True)
class Asked:
    """A question and where its answers stand."""

    source: str
    text: str
    answers: tuple[Span, ...]


def main() -> None:
    """Prints the table, and everything as JSON in the last line."""
    arguments = _arguments()
    embedder = MiniLMEmbedder(threads=arguments.threads)
    seen = set(json.loads(arguments.seen.read_text(encoding="utf-8"))) if arguments.seen else set()
    draw = random.Random(arguments.seed)
    text, asked = joined(_rows(arguments.questions), arguments.per, seen, draw)
    absent = []
    if arguments.absent:
        rows = [row for row in _rows(arguments.absent) if row["answers"]]
        absent = [row["question"] for row in draw.sample(rows, len(asked))]
    print(json.dumps(measure(text, asked, absent, embedder)))


def measure(text: str, asked: Sequence[Asked], absent: Sequence[str], embedder: Embedder) -> dict[str, object]:
    """Reads ``text`` into a library, asks everything, prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "text.txt", Path(folder) / "data"
        source.write_bytes(text.encode())
        with closing(Library.open(data, embedder)) as library:
            document, _ = library.add(TENANT, "joined", "text/plain", source)
            library.process(document.id)
        with closing(Store(data)) as store:
            contents, indexes = Contents(store.database), data / "indexes"
            files = ShelfFiles(indexes, store, contents, embedder.fingerprint, embedder.dimension, FaissIndex)
            search = Search(store, contents, Shelves(indexes, store, files, IndexMemory(1 << 30)), embedder)
            record = store.record(document.id)
            hits: list[dict[str, tuple[bool, bool]]] = []
            told, seconds = [], []
            for question in asked:
                started = time.thread_time()
                rankings = search.rank(question.text, [record])
                seconds.append(time.thread_time() - started)
                told.append(not rankings.found)
                hits.append({})
                for leg, as_ranked in _legs(rankings).items():
                    passages = compose(store, contents, [record], as_ranked, FIRST)
                    held = [
                        any(one.span.start <= span.start and span.end <= one.span.end for span in question.answers)
                        for one in passages
                    ]
                    hits[-1][leg] = (any(held[:1]), any(held))
            refused = [not search.rank(question, [record]).found for question in absent]
    chunks = rankings.num_chunks
    print(f"{len(text):,} characters, {chunks:,} chunks, {len(asked)} questions; first / among {FIRST}, percent")
    table: dict[str, object] = {}
    for name in (*dict.fromkeys(one.source for one in asked), None):
        own = [hit for hit, one in zip(hits, asked, strict=True) if name in (None, one.source)]
        columns = {leg: np.array([hit[leg] for hit in own], float) * 100 for leg in LEGS}
        print(f"  {name or 'all'}, {len(own)}: " + ", ".join(f"{leg} {_ends(columns[leg])}" for leg in LEGS))
        table[name or "all"] = {leg: columns[leg].mean(axis=0).tolist() for leg in LEGS}
        if name is None:
            for other in LEGS[:-1]:
                print(f"  shipped less {other}: {_ends(columns['shipped'] - columns[other])}")
    print(f"  told not found: {np.mean(told):.1%} of these, of {len(refused)} absent {np.mean(refused or [False]):.1%}")
    print(f"  {np.median(seconds) * 1000:.1f} ms of processor a question, the embedding of it included")
    return {"bench": "retrieval_sources", "table": table, "told": float(np.mean(told)), "absent": len(refused)}


def _legs(rankings: Rankings) -> Mapping[str, Rankings]:
    by_words, by_meaning = list(rankings.lexical), [*rankings.dense]
    alone = replace(rankings, keys={}, hops=())
    return {
        "lexical": replace(alone, scores=fuse({"lexical": by_words}, {"lexical": 1.0})),
        "dense": replace(alone, scores=fuse({"dense": by_meaning}, {"dense": 1.0})),
        "reciprocal ranks": replace(alone, scores=fuse({"lexical": by_words, "dense": by_meaning}, WEIGHTS)),
        "learned": alone,
        "shipped": rankings,
    }


def _ends(values: NDArray[np.float64]) -> str:
    draws = np.random.default_rng(0).integers(0, len(values), (NUM_DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975), axis=0)
    ends = zip(values.mean(axis=0), low, high, strict=True)
    return " / ".join(f"{mean:.1f} ({a:.1f} to {b:.1f})" for mean, a, b in ends)


def joined(
    rows: Sequence[Row], per: int, seen: set[str], draw: random.Random, sources: Sequence[str] = SOURCES
) -> tuple[str, list[Asked]]:
    """One text of all contexts, and ``per`` questions of each source; none whose context has a question in ``seen``."""
    articles: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["source"] in sources:
            articles.setdefault((row["source"], row["title"] or row["context"][:40]), {})[row["context"]] = None
    order = sorted(articles)
    draw.shuffle(order)
    offsets: dict[str, int] = {}
    length = 0
    for article in order:
        for context in articles[article]:
            if context not in offsets:
                offsets[context] = length
                length += len(context) + 2
    known = {row["context"] for row in rows if row["question"] in seen}
    asked = []
    for source in sources:
        mine = [
            row
            for row in rows
            if row["source"] == source and row["answer_start"] and max(row["answer_start"]) >= 0
            and row["context"] not in known
        ]  # fmt: skip
        for row in draw.sample(mine, min(per, len(mine))):
            begin, places = offsets[row["context"]], zip(row["answer_start"], row["answers"], strict=True)
            spans = tuple(Span(begin + place, begin + place + len(answer)) for place, answer in places if place >= 0)
            asked.append(Asked(source, row["question"], spans))
    return "\n\n".join(offsets), asked


def _rows(path: Path) -> list[Row]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="questions as .jsonl.xz")
    parser.add_argument("--absent", type=Path, help="questions of other texts, as .jsonl.xz")
    parser.add_argument("--seen", type=Path, help="a JSON list of questions; their contexts are not asked about")
    parser.add_argument("--per", type=int, default=150, help="questions of each source")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1, help="cores for the embedder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
