"""What a scrape of /metrics costs: its time at rest and beside streams, with many documents, and what streams lose.

    python -m bench.scrape                28 M parameters in bf16, one thread for the model, 8 streams, 10,000 documents
    python -m bench.scrape --short        a tiny model and a scrape or two: asserts that all is told, claims no time

The same streams run with and without a scraper beside them, in turns, whoever begins changing each time. The documents
are rows of the store, all that a scrape could look at of them. A scrape is timed from sending the request on a
connection that stays open, as Prometheus does, to the last byte of the reply. Prints a table, then one JSON line.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.checkpoints import make_chat_checkpoint, random_text, words_of_one_token
from bench.fano_server import FanoServer
from bench.overhead import PROMPT_WORDS, SPARE_TOKENS, run_server
from bench.peers import Spent, Watch
from bench.sides import SMALL, TINY
from bench.throughput import describe_machine
from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.recognisers import RECOGNISERS_REVISION

TARGET_MS = 10.0


@dataclass
class Scraper:
    """Asks for /metrics every so many seconds, from entering the context to leaving it."""

    port: int
    every_seconds: float
    milliseconds: list[float] = field(default_factory=list)

    def __enter__(self) -> "Scraper":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self._ended.is_set():
            self.milliseconds.append(self.scrape(connection))
            self._ended.wait(self.every_seconds)
        connection.close()

    def scrape(self, connection: http.client.HTTPConnection) -> float:
        started = time.perf_counter()
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        body = reply.read()
        spent = 1e3 * (time.perf_counter() - started)
        assert reply.status == 200 and b"fano_kv_blocks" in body, body[:200]
        return spent


@dataclass(frozen=True)
class Pass:
    """Some streams, with or without a scraper beside them."""

    is_scraped: bool
    num_tokens: int
    spent: Spent
    milliseconds: list[float]
    load: float


def main() -> None:
    options = parse_options()
    words = words_of_one_token()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        geometry = TINY | {"vocab_size": SMALL["vocab_size"]} if options.short else SMALL
        make_chat_checkpoint(directory / "checkpoint", geometry, options.seed)
        context = PROMPT_WORDS + SPARE_TOKENS + options.tokens
        server = FanoServer(directory / "checkpoint", directory, "bfloat16", options.threads, context, "full")
        fill(server.saved, options.documents)
        try:
            server.start()
            at_rest, cpu_ms = rest(server, options)
            passes = take_turns(server, options, words)
        finally:
            server.kill()
    told = summary(at_rest, cpu_ms, passes)
    machine = describe_machine(options.threads) | {"cores": len(os.sched_getaffinity(0))}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"\n{options.documents:,} documents, {cpu_ms:.1f} ms of CPU time each\n")
    print(f"| scrape, ms (target {TARGET_MS:g}) | number | median | 95 of 100 | worst |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for title, key in (("at rest", "at_rest"), (f"beside {options.streams} streams", "beside_streams")):
        row = told[key]
        print(f"| {title} | {row['number']} | {row['median']:.1f} | {row['p95']:.1f} | {row['worst']:.1f} |")
    without, scraped = told["tokens_per_second"]
    print(f"\n{without:,.0f} tokens/s without, {scraped:,.0f} with a scrape every {options.every:g} s: "
          f"{told['ratio']:.3f} ({min(told['ratios']):.3f} to {max(told['ratios']):.3f})")  # fmt: skip
    told |= {"bench": "scrape", "machine": machine, "documents": options.documents, "every": options.every}
    print(json.dumps(told | {"passes": [asdict(each) for each in passes]}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two scrapes")
    parser.add_argument("--scrapes", type=int, default=100, help="at rest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.short:
        options.streams, options.tokens, options.repetitions = 2, 16, 1
        options.documents, options.scrapes, options.every = 50, 3, 0.05
    return options


def fill(data_dir: Path, num_documents: int) -> None:
    """A library with the rows of so many documents; nothing of them is left to be done."""
    library = Library.open(data_dir, HashEmbedder(dimension=16))
    with library._store.database.write() as (connection, _):
        for number in range(num_documents):
            connection.execute("INSERT INTO blobs VALUES (?, 1000)", (f"{number:064x}",))
            connection.execute(
                "INSERT INTO documents (id, tenant, name, media_type, sha256, created_at, stage, answerable, num_rows, "
                "num_facts, num_characters, recognisers) "
                "VALUES (?1, 'default', 'n', 'text/plain', ?2, 1, 'ready', 1, 9, 4, 1000, ?3)",
                (f"doc_{number}", f"{number:064x}", RECOGNISERS_REVISION),
            )
    assert library.stats().num_documents["ready"] == num_documents
    library.close()


def rest(server: FanoServer, options: argparse.Namespace) -> tuple[list[float], float]:
    """Times of scrapes while nothing else is done, and CPU milliseconds of each."""
    scraper = Scraper(port_of(server), options.every)
    connection = http.client.HTTPConnection("127.0.0.1", scraper.port)
    scraper.scrape(connection)
    watch = Watch(server.child)
    milliseconds = [scraper.scrape(connection) for _ in range(options.scrapes)]
    cpu_ms = 1e3 * watch.spent().cpu_seconds / options.scrapes
    connection.close()
    return milliseconds, cpu_ms


def take_turns(server: FanoServer, options: argparse.Namespace, words: list[str]) -> list[Pass]:
    """The first repetition is not kept: it is the first of both."""
    passes = []
    dice = random.Random(options.seed)
    for repetition in range(-1, options.repetitions):
        for is_scraped in (False, True) if repetition % 2 else (True, False):
            prompts = [random_text(words, PROMPT_WORDS, dice) for _ in range(options.streams)]
            scraper = Scraper(port_of(server), options.every)
            if is_scraped:
                with scraper:
                    spent = run_server(server, prompts, options.tokens)
            else:
                spent = run_server(server, prompts, options.tokens)
            if repetition >= 0:
                num_tokens = options.streams * options.tokens
                passes.append(Pass(is_scraped, num_tokens, spent, scraper.milliseconds, os.getloadavg()[0]))
        print(f"{repetition + 1}/{options.repetitions}", file=sys.stderr, flush=True)
    return passes


def summary(at_rest: list[float], cpu_ms: float, passes: list[Pass]) -> dict[str, object]:
    """Medians; the ratio is that of two passes of one repetition, which stand side by side."""
    pairs = [sorted(passes[place : place + 2], key=lambda each: each.is_scraped) for place in range(0, len(passes), 2)]
    ratios = [without.spent.seconds / scraped.spent.seconds for without, scraped in pairs]
    rates = [
        statistics.median(each.num_tokens / each.spent.seconds for each in passes if each.is_scraped is is_scraped)
        for is_scraped in (False, True)
    ]
    beside = [each for every in passes for each in every.milliseconds]
    return {
        "at_rest": spread(at_rest),
        "beside_streams": spread(beside),
        "cpu_ms": cpu_ms,
        "tokens_per_second": rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "is_hit": spread(beside)["median"] < TARGET_MS,
    }


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"number": len(ordered), "median": statistics.median(ordered), "p95": at, "worst": ordered[-1]}


def port_of(server: FanoServer) -> int:
    port = server.child.client.base_url.port
    assert port is not None
    return port


if __name__ == "__main__":
    main()
