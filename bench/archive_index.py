"""Indexes over the summaries of the attention archive, against the exact scan: cost, recall, bytes, answers.

    python -m bench.archive_index --data DATA --out INDEX.jsonl
    python -m bench.archive_index --short                             made-up prose; no data, no claim

A text is read under policy ``archive``, and its questions are asked by the native kernels of the product, once with
every summary scanned and once for each index, one after another in one process. *Recall* is how many of the blocks that
the exact scan chooses are chosen by the index for the same queries (the twin in plain torch, on the last query of a
question and those of what is drawn after it), *first* how often the best one is. *Right* is how many of the needles'
values stand in the greedy answer, *same* how many answers are the tokens that the exact scan leads to. Seconds are CPU
seconds; of a question and of a drawn token their median over repetitions of the same one.
"""

import argparse
import json
import statistics
import time
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.archive_summaries import num_common
from bench.archive_tasks import Needles
from bench.recall.answers import all_right
from bench.recall.cases import Case
from bench.recall.haystack import Haystack
from bench.recall.tasks import made_up_prose
from bench.throughput import describe_machine
from model.batch import Batch, SequenceChunk
from model.cache.archive_index import make_index
from model.cache.block_pool import BlockPool, BlockTable
from model.cache.held import Held
from model.cache.kv_archive import KvArchive
from model.cache.state_pool import StatePool
from model.config import ModelConfig
from model.engine.loader import choose_dtype
from model.hybrid import HybridLM
from model.index_plan import IndexPlan
from model.kernels import Kernels, choose
from model.kernels.block_index import BlockIndex
from model.kernels.selection import ArchivedLayer, means_of
from model.kernels.selection import choose as choose_blocks
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer
from model.weights import load_weights
from server.answers.prompt import document_question
from server.services import embedded_checkpoint

CHUNK_TOKENS = 512
MAX_TOKENS = 16
TIMED_TOKENS = 40
EXACT, WINDOW = "exact", "window"


@dataclass
class Watched:
    """Attention that also tells which blocks an index would have chosen for the same queries."""

    kernels: Kernels
    indexes: Sequence[BlockIndex] = ()
    plans: Sequence[IndexPlan] = ()
    found: dict[IndexPlan, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, query_start: Tensor, starts: Sequence[int],
        tables: Sequence[Sequence[int]], policies: Sequence[AttentionPolicy], archive: ArchivedLayer,
    ) -> Tensor:  # fmt: skip
        first, count = starts[0], len(queries)
        for plan in self.plans:
            told = replace(archive, indexes=[self.indexes], plan=plan)
            asked = queries[-1:], 0, first + count - 1, policies[0], len(tables[0])
            exact, chosen = (choose_blocks(asked[0], each, *asked[1:])[:, 0] for each in (archive, told))
            best = choose_blocks(asked[0], archive, *asked[1:3], replace(policies[0], select=1), asked[4])[:, 0]
            for group in range(len(exact)):
                recall = float((exact[group] & chosen[group]).sum() / exact[group].sum())
                self.found[plan].append((recall, float((best[group] & chosen[group]).any())))
        return self.kernels.attend(queries, keys, values, query_start, starts, tables, policies, archive)


class IndexedReading:
    """One text of at most ``max_tokens``, in an archive that is asked with indexes and without."""

    def __init__(self, checkpoint: Path, max_tokens: int, policy: AttentionPolicy, num_threads: int) -> None:
        kernels, self.kernels_reason = choose("cpu", num_threads)
        config = ModelConfig.from_pretrained(checkpoint)
        dtype = choose_dtype("cpu")[0]
        self.policy, self._width = policy, config.head_width
        each = sum(config.archive_bytes_per_block(dtype))
        self.archive = KvArchive(config, dtype, (max_tokens // BLOCK_TOKENS + 1) * each)
        self._states = StatePool(config, 2)
        resident = policy.max_resident_tokens(max_tokens, CHUNK_TOKENS) // BLOCK_TOKENS
        self._blocks = BlockPool(config, 2 * resident + 2, dtype, archive=self.archive)
        self.watched = Watched(kernels)
        self._reader, self._watcher = (
            self._load(checkpoint, config, each)
            for each in (kernels, replace(kernels, attend=self.watched.attend, step=None))
        )
        self._text: Held | None = None
        self.num_tokens = 0

    def _load(self, checkpoint: Path, config: ModelConfig, kernels: Kernels) -> HybridLM:
        model = HybridLM(config, kernels, choose_dtype("cpu")[0])
        load_weights(model, checkpoint)
        if kernels.product is not None:
            model.pack()
        return model

    def read(self, ids: Sequence[int]) -> None:
        """Another text; none of its tokens selects."""
        if self._text is not None:
            self._text.free(self._states)
        slot = self._states.allocate()
        self._states.zero(slot)
        self._text = Held(slot, BlockTable(self._blocks))
        self.num_tokens = len(ids)
        for start in range(0, len(ids), CHUNK_TOKENS):
            self._run(self._reader, self._text, ids[start : start + CHUNK_TOKENS], start, self.policy, ())

    def index(self, plan: IndexPlan) -> list[BlockIndex]:
        """As many indexes as the first token after the text chooses by."""
        assert self._text is not None
        numbers = [number for number in self._text.table.archive.numbers if number >= 0]
        count = plan.num_indexed(self.policy, self.num_tokens, 0)
        return [
            make_index(
                plan,
                means_of(self.archive.summaries[:, :, numbers[n * plan.num_blocks :][: plan.num_blocks]], self._width),
            )
            for n in range(count)
        ]

    def answer(
        self, ids: Sequence[int], max_tokens: int, eos_ids: frozenset[int], plan: IndexPlan | None,
        indexes: Sequence[BlockIndex], policy: AttentionPolicy | None = None, is_watched: bool = False,
    ) -> tuple[list[int], float, float]:  # fmt: skip
        """The greedy continuation, the seconds of the question, and of each drawn token."""
        assert self._text is not None
        policy = self.policy if policy is None else policy
        fork = self._text.fork(self._states)
        model = self._watcher if is_watched else self._reader
        self.archive.plan = plan
        drawn: list[int] = []
        try:
            started = time.process_time()
            logits = self._run(model, fork, ids, self.num_tokens, policy, indexes)
            asked = time.process_time()
            while len(drawn) < max_tokens and (token := int(logits[-1].argmax())) not in eos_ids:
                drawn.append(token)
                place = self.num_tokens + len(ids) + len(drawn) - 1
                logits = self._run(model, fork, [token], place, policy, indexes, is_decode=True)
            ended = time.process_time()
        finally:
            self.archive.plan = None
            fork.free(self._states)
        return drawn, asked - started, (ended - asked) / max(1, len(drawn))

    def _run(
        self, model: HybridLM, held: Held, ids: Sequence[int], first: int, policy: AttentionPolicy,
        indexes: Sequence[BlockIndex], is_decode: bool = False,
    ) -> Tensor:  # fmt: skip
        end = first + len(ids)
        held.table.release_hidden(policy, first)
        held.table.prepare(first, end)
        chunk = SequenceChunk(
            ids, first, held.slot, held.table.blocks, policy, num_logits=1, is_decode=is_decode,
            archived=held.table.archive.numbers, select_from=self.num_tokens, leaving=held.table.leave(policy, end),
            indexes=indexes,
        )  # fmt: skip
        return model(Batch.pack([chunk]), self._states, self._blocks)


@dataclass
class Cell:
    """One way of asking at one length."""

    asked: int = 0
    right: int = 0
    same: int = 0
    question: list[float] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    recall: list[tuple[float, float]] = field(default_factory=list)
    build_seconds: list[float] = field(default_factory=list)
    nbytes: int = 0

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"asked": self.asked, "right": self.right, "same": self.same}
        told["question_ms"] = round(1e3 * statistics.median(self.question), 2) if self.question else None
        told["drawn_us"] = round(1e6 * statistics.median(self.drawn), 1) if self.drawn else None
        if self.recall:
            recall, first = zip(*self.recall, strict=True)
            told |= {"recall": round(statistics.mean(recall), 4), "first": round(statistics.mean(first), 4)}
        if self.build_seconds:
            told |= {"build_seconds": round(statistics.median(self.build_seconds), 2), "bytes": self.nbytes}
        return told


def examine(
    reading: IndexedReading, tokenizer: Tokenizer, needles: Needles, task: str, length: int, num_texts: int,
    plans: Sequence[IndexPlan], parts: Sequence[int], repetitions: int, cells: dict[str, Cell],
) -> None:  # fmt: skip
    """All questions of some texts, exactly and by every index."""
    window = replace(reading.policy, name=PolicyName.WINDOW)
    for corpus in needles.corpora(task, length, num_texts):
        prompts = [prompt(tokenizer, case, corpus.text) for case in corpus.cases]
        shared = min(num_common(prompts[0], each) for each in [*prompts[1:], prompt(tokenizer, None, corpus.text)])
        reading.read(prompts[0][:shared])
        ways: list[tuple[str, IndexPlan | None, Sequence[BlockIndex]]] = [(EXACT, None, ())]
        for plan in plans:
            if not plan.num_indexed(reading.policy, shared, 0):
                continue
            started = time.process_time()
            indexes = reading.index(plan)
            seconds = time.process_time() - started
            for part in parts:
                name = f"{plan.num_blocks} blocks, 1 list of {part}"
                ways.append((name, replace(plan, num_probed=max(1, plan.num_lists // part)), indexes))
                cells[name].build_seconds.append(seconds)
                cells[name].nbytes = sum(each.nbytes for each in indexes)
        for case, ids in zip(corpus.cases, prompts, strict=True):
            question, eos = array("i", ids[shared:]), tokenizer.eos_ids
            expected: list[int] = []
            for name, probed, indexes in ways:
                drawn, _, _ = reading.answer(question, MAX_TOKENS, eos, probed, indexes)
                expected = drawn if name == EXACT else expected
                cell = cells[name]
                cell.asked += 1
                cell.right += all_right(case, tokenizer.decode(drawn))
                cell.same += drawn == expected
        # The same question again and again, so that each way is timed on the same work; without an end.
        question = array("i", prompts[0][shared:])
        for _ in range(repetitions):
            for name, probed, indexes in ways:
                _, asked, each = reading.answer(question, TIMED_TOKENS, frozenset(), probed, indexes)
                cells[name].question.append(asked)
                cells[name].drawn.append(each)
            _, asked, each = reading.answer(question, TIMED_TOKENS, frozenset(), None, (), window)
            cells[WINDOW].question.append(asked)
            cells[WINDOW].drawn.append(each)
        watch(reading, question, ways, cells)


def watch(
    reading: IndexedReading, question: Sequence[int],
    ways: Sequence[tuple[str, IndexPlan | None, Sequence[BlockIndex]]], cells: dict[str, Cell],
) -> None:  # fmt: skip
    """Recall for the queries of what is drawn after one question."""
    for name, plan, indexes in ways:
        if plan is None:
            continue
        reading.watched.indexes, reading.watched.plans = indexes, [plan]
        reading.answer(question, 4, frozenset(), None, (), is_watched=True)
        cells[name].recall += reading.watched.found.pop(plan)


def prompt(tokenizer: Tokenizer, case: Case | None, text: str) -> tuple[int, ...]:
    asked = document_question("?" if case is None else case.question, [text])
    return tokenizer.encode_chat([{"role": "user", "content": asked}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with haystack/*.txt")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    parser.add_argument("--lengths", type=int, nargs="+", default=[65_536, 262_144, 1_048_576])
    parser.add_argument("--tasks", nargs="+", default=["lone", "many 16"])
    parser.add_argument("--texts", type=int, default=2, help="of each task and length; of many needles one")
    parser.add_argument("--blocks", type=int, nargs="+", default=[512, 1024, 4096], help="blocks of an index")
    parser.add_argument("--parts", type=int, nargs="+", default=[16, 8, 4], help="one list in so many is read")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--select", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON line for each length is added to it")
    parser.add_argument("--short", action="store_true", help="made-up prose, small numbers")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.lengths, arguments.tasks, arguments.texts, arguments.repetitions = [6144], ["lone"], 1, 1
        arguments.window, arguments.select, arguments.blocks, arguments.parts = 512, 4, [16], [4]
    elif arguments.data is None:
        parser.error("--data or --short is needed")
    torch.set_num_threads(arguments.threads)
    tokenizer = Tokenizer(arguments.checkpoint)
    haystack = (
        Haystack([made_up_prose(200_000, arguments.seed)], tokenizer.count)
        if arguments.short
        else Haystack.of(arguments.data / "haystack", tokenizer.count)
    )
    needles = Needles(haystack, tokenizer, arguments.window, arguments.seed)
    policy = AttentionPolicy(PolicyName.ARCHIVE, 64, arguments.window, arguments.select)
    plans = [IndexPlan.of(num_blocks, CHUNK_TOKENS) for num_blocks in arguments.blocks]
    lines = []
    for length in arguments.lengths:
        reading = IndexedReading(arguments.checkpoint, length + length // 16 + 2048, policy, arguments.threads)
        cells: dict[str, Cell] = defaultdict(Cell)
        for task in arguments.tasks:
            num_texts = arguments.texts if task in ("lone", "one") else 1
            examine(
                reading, tokenizer, needles, task, length, num_texts, plans, arguments.parts, arguments.repetitions,
                cells,
            )  # fmt: skip
        print(f"\n{length:,} tokens: {reading.kernels_reason}")
        for name, cell in cells.items():
            print(f"  {name:30} {cell.as_json()}", flush=True)
        line = {
            "bench": "archive_index",
            "length": length,
            "tasks": arguments.tasks,
            "policy": str(policy),
            "model": arguments.checkpoint.name,
            "seed": arguments.seed,
            "machine": describe_machine(arguments.threads),
            "summary_bytes": reading.archive.num_live * reading.archive.bytes_per_summary,
            "ways": {name: cell.as_json() for name, cell in cells.items()},
        }
        lines.append(line)
        if arguments.out is not None:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print(json.dumps({"bench": "archive_index", "lengths": lines}))


if __name__ == "__main__":
    main()
