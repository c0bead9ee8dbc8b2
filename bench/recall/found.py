"""P(found): is what a question needs among the first passages? By length, by depth, beside baselines."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.recall.archive import FIRST, PRODUCT, Archive
from bench.recall.cases import Case
from bench.recall.haystack import CountTokens
from bench.recall.ledger import Cell, Ledger
from bench.recall.tally import Tally
from bench.recall.tasks import Tasks
from retrieval.embedder import Embedder


class FoundStage:
    """Measures cells in libraries of their own, which are gone afterwards. ``misses`` gets a line for each miss."""

    def __init__(
        self, tasks: Tasks, embedder: Embedder, count_tokens: CountTokens, work: Path, misses: Path | None = None
    ) -> None:
        self._tasks = tasks
        self._embedder = embedder
        self._count_tokens = count_tokens
        self._work = work
        self._misses = misses

    def run(self, ledger: Ledger, names: list[str], lengths: list[int], num_cases: int) -> None:
        """All cells that are not in the ledger yet, short texts first."""
        for num_tokens in sorted(lengths):
            for name in names:
                if num_tokens in self._tasks.lengths(name, lengths) and not ledger.has("found", name, num_tokens):
                    cell = self.measure(name, num_tokens, num_cases)
                    ledger.add(cell)
                    print_found(cell)

    def measure(self, name: str, num_tokens: int, num_cases: int) -> Cell:
        """One cell."""
        tally, counted, seconds, told_nothing = Tally(), [], [], 0
        started, cpu_started = time.perf_counter(), time.process_time()
        self._work.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=self._work))
        with Archive(directory, self._embedder, self._count_tokens) as archive:
            for number, corpus in enumerate(self._tasks.corpora(name, num_tokens, num_cases)):
                document = archive.add(corpus.text, f"{name}-{number}.txt")
                counted.append(archive.num_tokens(document))
                for case in corpus.cases:
                    asked = time.perf_counter()
                    spans = archive.product(case.question, document)
                    seconds.append(time.perf_counter() - asked)
                    told_nothing += not spans
                    is_found = tally.note(case, PRODUCT, spans)
                    for way, others in archive.baselines(case.question, document).items():
                        tally.note(case, way, others)
                    if not is_found and self._misses is not None:
                        given = [archive.text(document, span)[:400] for span in spans]
                        self._note_miss(f"{name} {num_tokens}", corpus.text, case, given)
        return {
            "bench": "recall",
            "kind": "found",
            "task": name,
            "tokens": num_tokens,
            "seed": self._tasks.seed,
            "documents": len(counted),
            "num_tokens": [min(counted), max(counted)],
            "passages": FIRST,
            "told_nothing": told_nothing,
            "groups": tally.as_json(),
            "search_milliseconds": round(1000 * statistics.median(seconds), 2),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu_started, 1),
        }

    def _note_miss(self, cell: str, text: str, case: Case, given: Sequence[str]) -> None:
        line = {
            "cell": cell,
            "group": case.group,
            "question": case.question,
            "wanted": [text[part.places[0].start : part.places[0].end] for part in case.parts],
            "passages": given,
        }
        assert self._misses is not None
        with self._misses.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def print_found(cell: Cell) -> None:
    """For people."""
    low, high = cell["num_tokens"]
    print(f"\n{cell['task']} at {cell['tokens']:,}: {cell['documents']} texts of {low:,} to {high:,} tokens, "
          f"{cell['cpu_seconds']} CPU s, {cell['search_milliseconds']} ms a search")  # fmt: skip
    for group, ways in cell["groups"].items():
        for way, hits in ways.items():
            low, high = hits["interval"]
            print(f"  {group:24} {way:12} first {hits['first']:4} found {hits['found']:4} of {hits['asked']:4}"
                  f"  {hits['found'] / hits['asked']:6.1%} ({low:.1%} to {high:.1%})"
                  f"  parts {hits['parts_found']}/{hits['parts']}", flush=True)  # fmt: skip
