"""Which summary of a block of keys finds the blocks that a query needs: recall of the true ones, bytes, seconds.

    python -m bench.archive_summaries --data DATA --out SUMMARIES.jsonl
    python -m bench.archive_summaries --short                             seconds; no data, no claim

A text is read under ``window``; the tokens after it attend to every earlier one, exactly. True are the blocks before
the window with the most attention mass, summed over the query heads that share a key head; each summary names as many
by what it kept of the block. Two kinds of queries: the last tokens of the text, and questions about it. *Recall* is how
many of the true blocks are named, *mass* how much of the attention mass before the window they hold, beside the most
that as many blocks can hold. Texts are books with sentences planted in them, and paragraphs that people asked about.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.archive_reading import LongReading, attend_fully, by_group
from bench.block_summaries import COMBINED, SUMMARIES
from bench.recall.cases import Corpus
from bench.recall.tasks import Tasks, real_tasks, short_tasks
from bench.throughput import describe_machine
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer
from server.answers.prompt import document_question
from server.services import embedded_checkpoint

TASKS = ("single", "questions")
TEXT_QUERIES = 32
TIMED_SECONDS = 0.2
SHOWN = ("recall", "first", "mass", "most_mass", "before_window")
SCANNED_BLOCKS = (64, 256, 1024, 4096, 16384)

RANDOM, RECENT, TRUE = "random", "most recent", "true"


class Tally:
    """Sums by kind of query, layer, key head and way of choosing."""

    def __init__(self, select: int, policy: AttentionPolicy, seed: int) -> None:
        self._select = select
        self._policy = policy
        self._dice = torch.Generator().manual_seed(seed)
        self._kept: dict[tuple[int, int, str], Tensor] = {}
        self._sums: dict[tuple[str, int, int, str], Tensor] = defaultdict(lambda: torch.zeros(6, dtype=torch.float64))

    def start(self) -> None:
        """Another text."""
        self._kept.clear()

    def note(self, kind: str, layer: int, queries: Tensor, keys: Tensor, weights: Tensor) -> None:
        """Queries [T, H, E] (scaled) of the last tokens of keys [L, G, E], and their exact weights [G, T, H/G, L]."""
        num_tokens, length = queries.shape[0], keys.shape[0]
        low = self._policy.sinks // BLOCK_TOKENS
        # One border for all of them, so that a block is before the window of each.
        high = self._policy.window_start(length - num_tokens) // BLOCK_TOKENS
        if high - low <= self._select:
            return
        num_full = (length - num_tokens) // BLOCK_TOKENS
        rows = by_group(queries, keys.shape[1])
        for group, (each, mass) in enumerate(zip(rows, weights, strict=True)):
            blocks = keys[low * BLOCK_TOKENS : high * BLOCK_TOKENS, group].unflatten(0, (-1, BLOCK_TOKENS)).float()
            held = mass[..., low * BLOCK_TOKENS : high * BLOCK_TOKENS].unflatten(-1, (-1, BLOCK_TOKENS)).sum(-1)
            held = held.sum(1)
            scores: dict[str, Tensor] = {
                TRUE: held,
                RANDOM: torch.rand(held.shape, generator=self._dice),
                RECENT: torch.arange(high - low, dtype=torch.float32).expand_as(held),
                "largest logit": torch.einsum("the,bpe->thbp", each, blocks).amax(-1).amax(1),
            }
            for summary in SUMMARIES.values():
                place = layer, group, summary.name
                if place not in self._kept:
                    self._kept[place] = summary.of(keys[: num_full * BLOCK_TOKENS, group].unflatten(0, (num_full, -1)))
                said = summary.score(each, self._kept[place][low:high])
                scores |= {f"{summary.name}/{how}": combine(said) for how, combine in COMBINED.items()}
            self._count(kind, layer, group, held, scores, each.shape[1])

    def _count(
        self, kind: str, layer: int, group: int, held: Tensor, scores: dict[str, Tensor], num_heads: int
    ) -> None:
        true = held.topk(self._select, -1).indices
        is_true = torch.zeros_like(held, dtype=torch.bool).scatter_(-1, true, True)
        before, most = held.sum(-1), held.gather(-1, true).sum(-1)
        for way, score in scores.items():
            named = score.topk(self._select, -1).indices
            found = is_true.gather(-1, named).float().mean(-1)
            caught = held.gather(-1, named).sum(-1)
            first = (named == true[:, :1]).any(-1).float()
            measured = (found, caught / before, most / before, before / num_heads, first, torch.ones_like(found))
            self._sums[kind, layer, group, way] += torch.stack(measured, -1).double().sum(0)

    def rows(self) -> list[dict[str, Any]]:
        """Means, one row for each kind, layer, key head and way."""
        names = ("recall", "mass", "most_mass", "before_window", "first")
        rows = []
        for (kind, layer, group, way), sums in self._sums.items():
            means = {name: round(float(total / sums[-1]), 4) for name, total in zip(names, sums, strict=False)}
            place = {"kind": kind, "layer": layer, "kv_head": group, "way": way, "queries": int(sums[-1])}
            rows.append({**place, **means})
        return rows


class Watch:
    """Full attention that tells a tally what it saw."""

    def __init__(self, tally: Tally, kind: str) -> None:
        self._tally = tally
        self._kind = kind

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mixed, weights = attend_fully(queries, keys, values)
        self._tally.note(self._kind, layer, queries, keys, weights)
        return mixed


def prompt_of(tokenizer: Tokenizer, text: str, question: str) -> tuple[int, ...]:
    """In the form that the model was trained on."""
    return tokenizer.encode_chat([{"role": "user", "content": document_question(question, [text])}])


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def measure(
    reading: LongReading,
    tokenizer: Tokenizer,
    corpus: Corpus,
    num_questions: int,
    policy: AttentionPolicy,
    tally: Tally,
) -> int:
    """One text; its number of tokens."""
    stride = max(1, len(corpus.cases) // num_questions)
    questions = [case.question for case in corpus.cases[::stride]][:num_questions]
    prompts = [prompt_of(tokenizer, corpus.text, question) for question in [*questions, "?"]]
    shared = min(num_common(prompts[-1], prompt) for prompt in prompts[:-1])
    reading.start()
    tally.start()
    reading.read(prompts[0][: shared - TEXT_QUERIES], policy)
    last = prompts[0][shared - TEXT_QUERIES : shared]
    reading.ask(last, Watch(tally, "text"))
    reading.read(last, policy)
    for prompt in prompts[:-1]:
        reading.ask(prompt[shared:], Watch(tally, "question"))
    return shared


def scan_seconds(width: int, num_heads: int, select: int) -> list[dict[str, Any]]:
    """CPU seconds of one query token, layer and key head by number of blocks, in torch and float32: scan and choice."""
    dice = torch.Generator().manual_seed(0)
    queries = torch.randn((1, num_heads, width), generator=dice)
    rows: list[dict[str, Any]] = []
    for num_blocks in SCANNED_BLOCKS:
        keys = torch.randn((num_blocks, BLOCK_TOKENS, width), generator=dice)
        for summary in SUMMARIES.values():
            kept, rounds, started = summary.build(keys), 0, time.process_time()
            while (spent := time.process_time() - started) < TIMED_SECONDS:
                summary.score(queries, kept).amax(-2).topk(select, -1)
                rounds += 1
            rows.append({"summary": summary.name, "blocks": num_blocks, "cpu_seconds": spent / rounds})
    return rows


def show(length: int, rows: Sequence[dict[str, Any]]) -> None:
    """For people: means over layers and key heads, in percent."""
    print(f"\n{length:,} tokens: recall, mass of the text's own tokens | of questions")
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = []
        for kind in ("text", "question"):
            same = [row for row in rows if (row["kind"], row["way"]) == (kind, way)]
            if same:
                cells.append(
                    " ".join(f"{mean_of(same, name):6.1%}" for name in ("recall", "first", "mass", "most_mass"))
                )
        print(f"  {way:28} {' | '.join(cells)}", flush=True)


def mean_of(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Of all queries."""
    return float(sum(row[name] * row["queries"] for row in rows) / sum(row["queries"] for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with haystack/*.txt and qa_eval.jsonl.xz")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16_384, 65_536])
    parser.add_argument("--texts", type=int, default=2, help="of each task and length")
    parser.add_argument("--questions", type=int, default=8, help="of each text")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--select", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON line for each length is added to it")
    parser.add_argument("--short", action="store_true", help="made-up prose, small numbers")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.lengths, arguments.texts, arguments.questions = [2048], 1, 2
        arguments.window, arguments.select = 512, 4
    elif arguments.data is None:
        parser.error("--data or --short is needed")
    torch.set_num_threads(arguments.threads)
    tokenizer = Tokenizer(arguments.checkpoint)
    tasks: Tasks = (
        short_tasks(arguments.seed) if arguments.short else real_tasks(arguments.data, tokenizer.count, arguments.seed)
    )
    policy = AttentionPolicy(PolicyName.WINDOW, 64, arguments.window)
    # A made-up word is several tokens.
    room = 4 if arguments.short else 1.25
    told: dict[str, Any] = {
        "bench": "archive_summaries",
        "model": arguments.checkpoint.name,
        "policy": str(policy),
        "select": arguments.select,
        "seed": arguments.seed,
        "machine": describe_machine(arguments.threads),
    }
    for length in arguments.lengths:
        started = time.process_time()
        reading = LongReading(arguments.checkpoint, int(length * room) + 1024, arguments.threads)
        tally = Tally(arguments.select, policy, arguments.seed)
        counted = []
        for task in TASKS[:1] if arguments.short else TASKS:
            corpora = tasks.corpora(task, length, arguments.texts * 120)
            for _, corpus in zip(range(arguments.texts), corpora, strict=False):
                counted.append(measure(reading, tokenizer, corpus, arguments.questions, policy, tally))
        rows = tally.rows()
        show(length, rows)
        cell = {"length": length, "num_tokens": counted, "cpu_seconds": round(time.process_time() - started, 1)}
        if arguments.out is not None:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**told, **cell, "rows": rows}) + "\n")
    config = reading.config
    sizes = {name: summary.num_bytes(config.head_width) for name, summary in SUMMARIES.items()}
    seconds = (
        []
        if arguments.short
        else scan_seconds(config.head_width, config.num_heads // config.num_kv_heads, arguments.select)
    )
    print("\nbytes of a block and key head (the block's keys and values: "
          f"{4 * BLOCK_TOKENS * config.head_width:,}), CPU microseconds of a scan by blocks")  # fmt: skip
    for name, size in sizes.items():
        times = [1e6 * row["cpu_seconds"] for row in seconds if row["summary"] == name]
        print(f"  {name:20} {size:6} {' '.join(f'{each:9.1f}' for each in times)}")
    print(json.dumps({**told, "block_bytes": sizes, "scan": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
