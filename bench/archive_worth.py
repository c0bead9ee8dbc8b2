"""What the attention archive is worth: needles before the window, asked under each policy and with text passages.

    python -m bench.archive_worth --data DATA --out WORTH.jsonl --vectors CACHE
    python -m bench.archive_worth --short                             made-up prose; no data, no claim

A text is read and then asked, in these ways:

    window               sinks and the last tokens
    archive              the product's engine under policy archive: selection starts with the question
    all blocks           the same with every block: what the archive could give at most
    full                 text and question under full attention
    passages             the product's answer: a sentence that retrieval finds, read from a fresh state
    window + passages    that sentence between text and question
    archive + passages   both
    by SUMMARY/HEADS     as archive, with another summary of bench.archive_summaries, in plain torch

Every needle lies before the window. *Found* is whether its block was chosen for the last token of the question (by any
layer and key head; for the product's engine it is told by the twin in plain torch), or its sentence was read as a
passage; *right* whether the value stands in the greedy answer.
"""

import argparse
import json
import statistics
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.archive_reading import ArchiveAttention, EngineReading, LongReading
from bench.archive_summaries import num_common
from bench.archive_tasks import Needles
from bench.block_summaries import EVERY_KEY, SUMMARIES
from bench.recall.answers import all_right
from bench.recall.archive import FIRST, TENANT, Archive
from bench.recall.cases import Case, Corpus, num_found
from bench.recall.haystack import Haystack
from bench.recall.intervals import wilson
from bench.recall.machine import open_embedder
from bench.recall.tasks import made_up_prose
from bench.throughput import describe_machine
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer
from retrieval.embedder import Embedder, HashEmbedder
from retrieval.passage import Span
from server.answers.citations import Source
from server.answers.groundwork import nearest_reading
from server.answers.prompt import document_question
from server.services import embedded_checkpoint

TASKS = ("lone", "one", "many 16", "named")
WAYS = ("window", "archive", "all blocks", "full", "passages", "window + passages", "archive + passages")
MAX_TOKENS = 16
CHOICES = {**SUMMARIES, EVERY_KEY.name: EVERY_KEY}
# How the product chooses (model.kernels.selection), and what it is compared with.
PRODUCT = "16 runs/max"
BESIDE = ("mean + variance/mean", "every key/share")


@dataclass
class Cell:
    """One task, length and way."""

    asked: int = 0
    found: int = 0
    right: int = 0
    right_found: int = 0
    cpu_seconds: float = 0.0
    tokens: int = 0
    answers: list[str] = field(default_factory=list)

    def note(self, case: Case, answer: str, is_found: bool, seconds: float, num_tokens: int) -> None:
        is_right = all_right(case, answer)
        self.asked += 1
        self.found += is_found
        self.right += is_right
        self.right_found += is_right and is_found
        self.cpu_seconds += seconds
        self.tokens += num_tokens
        self.answers.append(answer)

    def as_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "found": self.found,
            "right": self.right,
            "right_found": self.right_found,
            "right_interval": [round(end, 4) for end in wilson(self.right, self.asked)],
            "microseconds_a_token": round(1e6 * self.cpu_seconds / max(1, self.tokens), 1),
            "answers": self.answers[:8],
        }


class Examiner:
    """Asks one model for what stands in texts."""

    def __init__(
        self, reading: LongReading, tokenizer: Tokenizer, engine: EngineReading, archive: Archive,
        attentions: Mapping[str, ArchiveAttention],
        policy: AttentionPolicy, longest_full: int, ways: Sequence[str],
    ) -> None:  # fmt: skip
        self._reading = reading
        self._tokenizer = tokenizer
        self._engine = engine
        self._archive = archive
        self._attentions = attentions
        self._policy = policy
        self._longest_full = longest_full
        self._ways = frozenset(ways)
        self._full = replace(policy, name=PolicyName.FULL)
        self.cells: dict[str, Cell] = defaultdict(Cell)
        self.read_seconds: dict[str, list[float]] = defaultdict(list)

    def examine(self, corpus: Corpus, name: str, num_asked: int) -> None:
        """All questions of a text, in every way."""
        cases = corpus.cases[:: max(1, len(corpus.cases) // num_asked)][:num_asked]
        needs_passages = any("passages" in way for way in self._ways)
        document = self._archive.add(corpus.text, name) if needs_passages else ""
        nothing: tuple[list[Span], str] = [], ""
        found = [self._retrieve(case.question, document) if needs_passages else nothing for case in cases]
        plain = [self._prompt(case.question, [corpus.text]) for case in cases]
        helped = [
            self._prompt(case.question, [corpus.text, *([sentence] if sentence else [])])
            for case, (_, sentence) in zip(cases, found, strict=True)
        ]
        shared = min(num_common(plain[0], prompt) for prompt in [*plain[1:], *helped, self._prompt("?", [corpus.text])])
        places = _Places(self._tokenizer, corpus.text, shared)
        kept = [
            number for number, case in enumerate(cases)
            if places.blocks(case).stop * BLOCK_TOKENS <= self._policy.window_start(shared)
        ]  # fmt: skip
        self._read("window", plain[0][:shared], self._policy)
        if self._ways & {"archive", "archive + passages"}:
            started = time.process_time()
            self._engine.start(plain[0][:shared])
            self.read_seconds["archive"].append((time.process_time() - started) / shared)
        for attention in self._attentions.values():
            attention.start()
        for number in kept:
            case, (spans, sentence) = cases[number], found[number]
            question, longer = plain[number][shared:], helped[number][shared:]
            blocks, is_read = places.blocks(case), num_found(case, spans) == len(case.parts)
            self._ask("window", case, question, self._policy, False)
            for name, attention in self._attentions.items():
                self._ask(f"by {name}", case, question, attention, blocks)
            self._ask("archive", case, question, self._engine, self._attentions[PRODUCT].found(blocks))
            self._ask("all blocks", case, question, self._full, True)
            self._ask("window + passages", case, longer, self._policy, is_read)
            self._ask("archive + passages", case, longer, self._engine, is_read)
        if "full" in self._ways and shared <= self._longest_full:
            self._read("full", plain[0][:shared], self._full)
            for number in kept:
                self._ask("full", cases[number], plain[number][shared:], self._full, True)
        self._reading.start()
        for number in kept:
            case, (spans, sentence) = cases[number], found[number]
            is_read = num_found(case, spans) == len(case.parts)
            prompt = self._prompt(case.question, [sentence]) if sentence else ()
            self._ask("passages", case, prompt, self._full, is_read)

    def _read(self, name: str, ids: Sequence[int], policy: AttentionPolicy) -> None:
        self._reading.start()
        started = time.process_time()
        self._reading.read(ids, policy)
        self.read_seconds[name].append((time.process_time() - started) / len(ids))

    def _ask(
        self,
        name: str,
        case: Case,
        ids: Sequence[int],
        way: ArchiveAttention | AttentionPolicy | EngineReading,
        found: bool | range,
    ) -> None:
        if name not in self._ways and not isinstance(way, ArchiveAttention):
            return
        started = time.process_time()
        if not ids:
            drawn = []
        elif isinstance(way, EngineReading):
            drawn = way.answer(ids, MAX_TOKENS)
        else:
            drawn = self._reading.answer(ids, way, MAX_TOKENS, self._tokenizer.eos_ids)
        seconds = time.process_time() - started
        is_found = way.found(found) if isinstance(found, range) and isinstance(way, ArchiveAttention) else bool(found)
        self.cells[name].note(case, self._tokenizer.decode(drawn), is_found, seconds, len(ids) + len(drawn))

    def _retrieve(self, question: str, document: str) -> tuple[list[Span], str]:
        """What the model reads of the passages that the product finds: where it stands, and its text."""
        result = self._archive.library.search(TENANT, question, [document], FIRST)
        if not result.found or not result.passages:
            return [], ""
        reading = nearest_reading([Source(number, each) for number, each in enumerate(result.passages, 1)]).passage
        return [reading.span], reading.text

    def _prompt(self, question: str, passages: Sequence[str]) -> tuple[int, ...]:
        return self._tokenizer.encode_chat([{"role": "user", "content": document_question(question, passages)}])


class _Places:
    """In which blocks of a prompt a part of its text stands."""

    def __init__(self, tokenizer: Tokenizer, text: str, num_shared: int) -> None:
        self._starts = [start for start, _ in tokenizer.encode(text).offsets]
        # The text is followed by a break, whose tokens are few.
        self._before = max(0, num_shared - len(self._starts) - 2)

    def blocks(self, case: Case) -> range:
        span = case.parts[0].places[0]
        first, last = (self._before + bisect_right(self._starts, place) - 1 for place in (span.start, span.end))
        return range(first // BLOCK_TOKENS, last // BLOCK_TOKENS + 1)


def show(task: str, length: int, examiner: Examiner) -> None:
    print(f"\n{task} at {length:,}")
    for way in dict.fromkeys([*WAYS, *examiner.cells]):
        if (cell := examiner.cells.get(way)) is not None and cell.asked:
            told = cell.as_json()
            print(f"  {way:34} found {cell.found:3} right {cell.right:3} of {cell.asked:3} "
                  f"({told['right_interval'][0]:.0%} to {told['right_interval'][1]:.0%})"
                  f"  {told['microseconds_a_token']:9.1f} us  {cell.answers[0]!r}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with haystack/*.txt")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16_384, 65_536])
    parser.add_argument("--tasks", nargs="+", default=[*TASKS])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--texts", type=int, default=4, help="of each task and length; of many needles a quarter")
    parser.add_argument("--questions", type=int, default=16, help="of each text")
    parser.add_argument("--longest-full", type=int, default=18_000, help="full attention is not tried beyond this")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--select", type=int, default=16)
    parser.add_argument("--beside", nargs="*", default=[*BESIDE], metavar="SUMMARY/HEADS", help="other ways to choose")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vectors", type=Path, help="file that keeps sentence vectors between runs")
    parser.add_argument("--out", type=Path, help="a JSON line for each task and length is added to it")
    parser.add_argument("--short", action="store_true", help="made-up prose, small numbers")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.lengths, arguments.texts, arguments.questions = [1536], 1, 2
        arguments.window, arguments.select, arguments.beside = 512, 4, []
    elif arguments.data is None:
        parser.error("--data or --short is needed")
    torch.set_num_threads(arguments.threads)
    tokenizer = Tokenizer(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as place:
        embedder: Embedder = (
            HashEmbedder()
            if arguments.short
            else open_embedder(arguments.vectors or Path(place) / "vectors.sqlite", arguments.threads)
        )
        haystack = (
            Haystack([made_up_prose(200_000, arguments.seed)], tokenizer.count)
            if arguments.short
            else Haystack.of(arguments.data / "haystack", tokenizer.count)
        )
        policy = AttentionPolicy(PolicyName.WINDOW, 64, arguments.window)
        needles = Needles(haystack, tokenizer, arguments.window, arguments.seed)
        attentions = {
            name: ArchiveAttention(CHOICES[name.rpartition("/")[0]], name.rpartition("/")[2], policy, arguments.select)
            for name in [PRODUCT, *arguments.beside]
        }
        cells = []
        for length in arguments.lengths:
            most = length + length // 16 + 2048
            reading = LongReading(arguments.checkpoint, most, arguments.threads)
            selecting = replace(policy, name=PolicyName.ARCHIVE, select=arguments.select)
            engine = EngineReading(arguments.checkpoint, most, selecting, arguments.threads)
            for task in arguments.tasks:
                started = time.process_time()
                num_texts = arguments.texts if task in ("lone", "one") else -(-arguments.texts // 4)
                with Archive(Path(tempfile.mkdtemp(dir=place)), embedder, tokenizer.count) as archive:
                    examiner = Examiner(
                        reading, tokenizer, engine, archive, attentions, policy, arguments.longest_full, arguments.ways
                    )
                    for number, corpus in enumerate(needles.corpora(task, length, num_texts)):
                        examiner.examine(corpus, f"{task}-{number}.txt", arguments.questions)
                show(task, length, examiner)
                cell = {
                    "bench": "archive_worth",
                    "task": task,
                    "length": length,
                    "texts": num_texts,
                    "model": arguments.checkpoint.name,
                    "policy": str(policy),
                    "select": arguments.select,
                    "seed": arguments.seed,
                    "machine": describe_machine(arguments.threads),
                    "read_microseconds_a_token": {
                        name: round(1e6 * statistics.median(each), 1) for name, each in examiner.read_seconds.items()
                    },
                    "ways": {way: cell.as_json() for way, cell in examiner.cells.items()},
                    "cpu_seconds": round(time.process_time() - started, 1),
                }
                cells.append(cell)
                if arguments.out is not None:
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(cell) + "\n")
        print(json.dumps({"bench": "archive_worth", "cells": cells}))


if __name__ == "__main__":
    main()
