"""P(right | found): what the server answers over HTTP, and whether every quote stands where it says."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import Child
from bench.recall.archive import Archive
from bench.recall.cases import Case, Corpus, num_found
from bench.recall.haystack import CountTokens
from bench.recall.intervals import bootstrap, wilson
from bench.recall.ledger import Cell, Ledger
from bench.recall.machine import fano_command, open_embedder
from bench.recall.tasks import Tasks
from retrieval.passage import Span
from training.cases import f1, normalised

WAYS = ("verbatim", "grounded")
MAX_TOKENS = 64
# All of the records' questions are asked verbatim, which guarantees; grounded, which does not, gets every eighth.
MOST_ASKED = {"records": 500}
GROUNDED_STEP = {"records": 8}


@dataclass
class Marks:
    """Of ``asked`` questions: what they need is in the sources; all answers are in the reply; both; the reply is the
    one answer and nothing else; the server said that it is not there. F1 is that of SQuAD, best over alternatives."""

    asked: int = 0
    found: int = 0
    right: int = 0
    right_found: int = 0
    exact: int = 0
    told_nothing: int = 0
    f1: list[float] = field(default_factory=list)

    def note(self, case: Case, answer: str, spans: Sequence[Span], is_told_found: bool) -> None:
        is_found = num_found(case, spans) == len(case.parts)
        is_right = is_told_found and all_right(case, answer)
        self.asked += 1
        self.found += is_found
        self.right += is_right
        self.right_found += is_right and is_found
        self.exact += is_told_found and is_exact(case, answer)
        self.told_nothing += not is_told_found
        given = answer if is_told_found else ""
        self.f1.append(max(f1(given, wanted) for wanted in wanted_texts(case)))

    def as_json(self) -> dict[str, Any]:
        low, high = wilson(self.right_found, self.found)
        return {
            "asked": self.asked,
            "found": self.found,
            "right": self.right,
            "right_found": self.right_found,
            "right_given_found_interval": [round(low, 4), round(high, 4)],
            "exact": self.exact,
            "told_nothing": self.told_nothing,
            "f1": round(statistics.mean(self.f1), 4),
            "f1_interval": [round(end, 4) for end in bootstrap(self.f1)],
        }


def all_right(case: Case, answer: str) -> bool:
    """Whether an answer of every part stands in ``answer``: as whole words, case, articles and punctuation aside."""
    given = f" {normalised(answer)} "
    return all(any(f" {normalised(wanted)} " in given for wanted in part.answers) for part in case.parts)


def is_exact(case: Case, answer: str) -> bool:
    """Whether ``answer`` is the value, sign for sign; of several values, in any order with anything between."""
    if len(case.parts) > 1:
        return all(any(wanted in answer for wanted in part.answers) for part in case.parts)
    return answer.strip() in case.parts[0].answers


def wanted_texts(case: Case) -> list[str]:
    """What a whole answer may be."""
    return list(case.parts[0].answers) if len(case.parts) == 1 else [" ".join(p.answers[0] for p in case.parts)]


def even_sample(cases: Sequence[Case], num_asked: int) -> list[Case]:
    """At most so many of each group, evenly over the text."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    return [
        group[number * len(group) // min(num_asked, len(group))]
        for group in groups.values()
        for number in range(min(num_asked, len(group)))
    ]


class AnswersStage:
    """Puts the texts into a data directory, starts ``fano serve`` on it, and asks.

    The texts are indexed in this process, with the vectors that are kept: the same library, tenant and embedder, so
    that the server finds what it would have made itself. Questions, answers and stored texts go over HTTP.
    """

    def __init__(
        self,
        tasks: Tasks,
        vectors: Path,
        count_tokens: CountTokens,
        work: Path,
        num_threads: int,
        misses: Path | None = None,
    ) -> None:
        self._tasks = tasks
        self._vectors = vectors
        self._count_tokens = count_tokens
        self._work = work
        self._num_threads = num_threads
        self._misses = misses

    def run(self, ledger: Ledger, names: list[str], lengths: list[int], num_cases: int, num_asked: int) -> None:
        """All cells that are not in the ledger yet."""
        wanted = [
            (name, num_tokens)
            for num_tokens in sorted(lengths)
            for name in names
            if num_tokens in self._tasks.lengths(name, lengths)
            and not all(ledger.has("answers", name, num_tokens, way) for way in WAYS)
        ]
        if not wanted:
            return
        self._work.mkdir(parents=True, exist_ok=True)
        embedder = open_embedder(self._vectors, self._num_threads)
        with Archive(self._work, embedder, self._count_tokens, keep=True) as archive:
            asked = {cell: self._take_in(archive, *cell, num_cases, num_asked) for cell in wanted}
        embedder.close()
        child = Child(self._work / "fano.log")
        environ = {"FANO_READ_DOCUMENTS": "false", "FANO_THREADS": str(self._num_threads)}
        child.start([*fano_command(), "serve", "--data-dir", str(self._work / "data")], "/readyz", environ)
        try:
            for (name, num_tokens), questions in asked.items():
                for way in WAYS:
                    if not ledger.has("answers", name, num_tokens, way):
                        cell = self._ask(child, name, num_tokens, way, questions)
                        ledger.add(cell)
                        print_answers(cell)
        finally:
            child.kill()

    def _take_in(
        self, archive: Archive, name: str, num_tokens: int, num_cases: int, num_asked: int
    ) -> list[tuple[str, Corpus, Case]]:
        """(document, its text, question): as many of each group as are asked, from as few texts as have them."""
        count = MOST_ASKED.get(name, num_asked)
        chosen: list[tuple[str, Corpus, Case]] = []
        num_of: dict[str, int] = defaultdict(int)
        for number, corpus in enumerate(self._tasks.corpora(name, num_tokens, num_cases)):
            lacking = [case for case in corpus.cases if num_of[case.group] < count]
            if not lacking:
                break
            document = archive.add(corpus.text, f"{name}-{num_tokens}-{number}.txt")
            for case in even_sample(lacking, count):
                if num_of[case.group] < count:
                    num_of[case.group] += 1
                    chosen.append((document, corpus, case))
        return chosen

    def _ask(
        self, child: Child, name: str, num_tokens: int, way: str, questions: list[tuple[str, Corpus, Case]]
    ) -> Cell:
        marks: dict[str, Marks] = defaultdict(Marks)
        seconds, num_spans, num_wrong = [], 0, 0
        for document, corpus, case in questions[:: GROUNDED_STEP.get(name, 1) if way == "grounded" else 1]:
            body = {"question": case.question, "recall": way, "max_tokens": MAX_TOKENS}
            reply = child.client.post(f"/v1/documents/{document}/ask", json=body)
            seconds.append(reply.elapsed.total_seconds())
            told = reply.raise_for_status().json()
            spans = [Span(source["start"], source["end"]) for source in told["sources"]]
            marks[case.group].note(case, told["answer"], spans, told["found"])
            if self._misses is not None and not all_right(case, told["answer"]):
                self._note_miss(f"{name} {num_tokens} {way}", case, told)
            for piece in [*told["sources"], *told["citations"]]:
                num_spans += 1
                num_wrong += not _is_true(child, document, corpus.text, piece)
        return {
            "bench": "recall",
            "kind": "answers",
            "task": name,
            "tokens": num_tokens,
            "way": way,
            "seed": self._tasks.seed,
            "groups": {group: marked.as_json() for group, marked in sorted(marks.items())},
            "num_spans": num_spans,
            "num_spans_wrong": num_wrong,
            "answer_seconds": round(statistics.median(seconds), 3),
        }

    def _note_miss(self, cell: str, case: Case, told: dict[str, Any]) -> None:
        sources = [source["text"][:300] for source in told["sources"]]
        line = {"cell": cell, "group": case.group, "question": case.question, "wanted": wanted_texts(case)}
        assert self._misses is not None
        with self._misses.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "answer": told["answer"], "sources": sources}) + "\n")


def _is_true(child: Child, document: str, text: str, piece: dict[str, Any]) -> bool:
    """Whether a source or citation is what stands at its place: in the text that was sent, and as the server has it."""
    quote = piece["quote"] if "quote" in piece else piece["text"]
    span = {"start": piece["start"], "end": piece["end"]}
    stored = child.client.get(f"/v1/documents/{document}/text", params=span).raise_for_status().json()["text"]
    return bool(stored == quote == text[piece["start"] : piece["end"]])


def print_answers(cell: Cell) -> None:
    """For people."""
    print(f"\n{cell['task']} at {cell['tokens']:,}, {cell['way']}: {cell['num_spans_wrong']} of {cell['num_spans']} "
          f"spans wrong, {cell['answer_seconds']} s an answer")  # fmt: skip
    for group, marks in cell["groups"].items():
        print(f"  {group:24} found {marks['found']:3} right {marks['right']:3} right of found {marks['right_found']:3}"
              f" exact {marks['exact']:3} told nothing {marks['told_nothing']:3} of {marks['asked']:3}"
              f"  F1 {marks['f1']:.3f}", flush=True)  # fmt: skip
