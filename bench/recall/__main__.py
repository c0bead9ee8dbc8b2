"""What is found, and what is answered right once it was found, from 4K to a million tokens and by depth.

    python -m bench.recall --short                                     seconds; no data, no weights
    python -m bench.recall --data DATA --out RESULTS.jsonl             an hour on one core; resumes where it was stopped

Tasks: `single` (a sentence in a book, asked in other words: with its name, or with no word in common), `uuids` (RULER's
multi-key 3: every sentence a needle, also asked in other writings), `keyed` (RULER's multi-value and multi-query),
`chains` (variable tracking over 2 and 4 hops), `lone` (InfiniteBench's passkey and number), `kv` (lost in the middle's
JSON), `questions` (what people asked, over the joined texts), `records` (10,000 look-alike records in a million tokens,
500 asked by key, a third of the keys rewritten).

Stages: `found` (in process; passages of the product beside the same without keys, plain fusion, words alone, meaning
alone), `answers` (over HTTP, verbatim and grounded, spans checked), `reading` (the model reads the text itself, no
archive, under `window`, and under `full` where that ends). Nothing in the product is tuned on any of this.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from bench.recall.found import FoundStage
from bench.recall.ledger import Ledger
from bench.recall.tasks import LENGTHS, real_tasks, short_tasks
from retrieval.embedder import HashEmbedder

SHORT_TOKENS = 4_096
SHORT_CASES = 20
STAGES = ("found", "answers", "reading")


def main() -> int:
    """Run what the arguments allow; 1 when an exact key was missed, which must never happen."""
    arguments = _arguments()
    if arguments.short:
        return _short(arguments.seed)
    if arguments.data is None:
        raise SystemExit("--data names a directory with haystack/, qa_eval.jsonl.xz and the key-value sets; or --short")
    from bench.recall.machine import describe, embedded_tokenizer, open_embedder
    from bench.recall.tables import write_tables

    count_tokens = embedded_tokenizer().count
    tasks = real_tasks(arguments.data, count_tokens, arguments.seed)
    names = arguments.tasks or list(tasks.by_name)
    ledger = Ledger(arguments.out)
    work = arguments.work or Path(tempfile.gettempdir()) / f"bench-recall-{os.getpid()}"
    vectors = arguments.vectors or work / "vectors.sqlite3"
    if not ledger.has("machine", "", 0):
        ledger.add({"kind": "machine", "task": "", "tokens": 0, **describe(arguments.threads, arguments.seed)})
    if "found" in arguments.stages:
        embedder = open_embedder(vectors, arguments.threads)
        stage = FoundStage(tasks, embedder, count_tokens, work / "found", arguments.misses)
        stage.run(ledger, names, arguments.tokens, arguments.cases)
        embedder.close()
    if "answers" in arguments.stages:
        from bench.recall.answers import AnswersStage

        AnswersStage(tasks, vectors, count_tokens, work / "answers", arguments.threads, arguments.misses).run(
            ledger, names, arguments.tokens, arguments.cases, arguments.asked
        )
    if "reading" in arguments.stages:
        from bench.recall.reading import ReadingStage

        ReadingStage(tasks, arguments.threads, arguments.longest_full).run(
            ledger, names, arguments.tokens, arguments.cases, arguments.asked
        )
    print(write_tables(ledger))
    if arguments.heatmap is not None:
        from bench.recall.heatmap import draw

        draw(ledger, arguments.heatmap)
    return 0 if keys_held(ledger) else 1


def keys_held(ledger: Ledger) -> bool:
    """Whether every key that was asked as it stands was found."""
    return all(
        ways["product"]["found"] == ways["product"]["asked"]
        for task in ("uuids", "kv", "records")
        for cell in ledger.of("found", task)
        for group, ways in cell["groups"].items()
    )


def _short(seed: int) -> int:
    ledger = Ledger(None)
    tasks = short_tasks(seed)
    with tempfile.TemporaryDirectory() as directory:
        stage = FoundStage(tasks, HashEmbedder(), lambda text: len(text) // 4, Path(directory))
        stage.run(ledger, list(tasks.by_name), [SHORT_TOKENS], SHORT_CASES)
    return 0 if keys_held(ledger) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="made-up prose and the hashing embedder")
    parser.add_argument("--data", type=Path, help="books, questions and key-value sets")
    parser.add_argument("--out", type=Path, help="where cells are written as they are measured")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--tasks", nargs="+", help="[default: all]")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--cases", type=int, default=300, help="questions of a cell for what is found")
    parser.add_argument("--asked", type=int, default=20, help="questions of a cell and group for what is answered")
    parser.add_argument("--longest-full", type=int, default=131_072, help="policy full is not tried beyond this")
    parser.add_argument("--vectors", type=Path, help="cache of the haystack's vectors, good for other runs too")
    parser.add_argument("--work", type=Path, help="directory for libraries; large")
    parser.add_argument("--misses", type=Path, help="write each miss here")
    parser.add_argument("--heatmap", type=Path, help="draw length x depth here (png)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
