"""Documents come, are asked and go, all at once: is every answer whole, and does the memory stay?

    python -m bench.ingest_load --minutes 10 --samples load.jsonl

Starts a server of its own on a free port and an empty data directory. Four clients send documents; each keeps a few and
deletes the oldest, while it may be asked, indexed or read. Sixteen clients ask about what there is: by key, verbatim,
where the one right row is known, and in words. Every source and citation is compared with the text that was sent. The
only refusals that may come: 429 with Retry-After, 404 for a document that is being or was deleted, 409 for one that
cannot be asked yet. At the end everything is deleted; then no word of any document may be in the data directory.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.soak import resident_mib, wait_until_ready
from bench.throughput import describe_machine

NUM_SENDERS = 4
NUM_ASKERS = 16
MOST_KEPT = 4  # by each sender
SAMPLE_SECONDS = 5.0
# A short queue, so that it is full now and then.
SETTINGS = {"FANO_MAX_SEQUENCES": "4", "FANO_MAX_QUEUE": "6"}
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()


@dataclass
class Sent:
    """A document as it was sent. ``is_going`` from just before its deletion is asked for."""

    id: str
    code: str
    text: str
    rows: int
    is_going: bool = False


def code_of(seed: int, number: int) -> str:
    return f"q{hashlib.sha256(f'{seed}.{number}'.encode()).hexdigest()[:10]}"


def text_of(code: str, rows: int) -> str:
    dice = random.Random(code)
    return "".join(
        f"{code.title()} saw the {dice.choice(WORDS)} near the {dice.choice(WORDS)} on day {row}. "
        f"Berth TW-{code}-{row} is held by keeper {code}{row:04d}.\n\n"
        for row in range(rows)
    )


class Load:
    """The clients, and what they saw."""

    def __init__(self, url: str, seed: int) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))
        self.seed = seed
        self.dice = random.Random(seed)
        self.documents: dict[str, Sent] = {}
        self.codes: list[str] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        # From the acknowledgement until a document that somebody waits for can be asked.
        self.answerable_seconds: list[float] = []

    async def sender(self, until: float) -> None:
        kept: list[Sent] = []
        while time.monotonic() < until:
            code, rows = code_of(self.seed, len(self.codes)), self.dice.choice([20, 100, 400, 1500])
            self.codes.append(code)
            text = text_of(code, rows)
            reply = await self.http.post("/v1/documents", json={"name": f"{code}.txt", "text": text})
            if reply.status_code != 202:
                self.wrong.append(f"POST: {reply.status_code} {reply.text[:200]}")
                continue
            self.counts["sent"] += 1
            sent = Sent(reply.json()["id"], code, text, rows)
            self.documents[sent.id] = sent
            kept.append(sent)
            if self.dice.random() < 0.8:
                await self.wait_until_answerable(sent)
            await asyncio.sleep(self.dice.uniform(0.0, 2.0))
            if len(kept) > MOST_KEPT:
                await self.delete(kept.pop(0))

    async def wait_until_answerable(self, sent: Sent) -> None:
        started = time.monotonic()
        while not (view := (await self.http.get(f"/v1/documents/{sent.id}")).json())["answerable"]:
            if view["status"] == "failed":
                self.wrong.append(f"failed: {view['error']}")
                return
            await asyncio.sleep(0.3)
        self.counts["seen answerable"] += 1
        self.answerable_seconds.append(time.monotonic() - started)

    async def delete(self, sent: Sent) -> None:
        sent.is_going = True
        reply = await self.http.delete(f"/v1/documents/{sent.id}")
        if reply.status_code != 200:
            self.wrong.append(f"DELETE: {reply.status_code} {reply.text[:200]}")
        del self.documents[sent.id]
        self.counts["deleted"] += 1
        if (status := (await self.http.get(f"/v1/documents/{sent.id}")).status_code) != 404:
            self.wrong.append(f"GET after DELETE: {status}")

    async def asker(self, until: float) -> None:
        while time.monotonic() < until:
            if not self.documents:
                await asyncio.sleep(0.1)
                continue
            some = list(self.documents.values())
            asked = self.dice.sample(some, min(len(some), self.dice.choice([1, 1, 1, 3])))
            row = self.dice.randrange(asked[0].rows)
            by_key = self.dice.random() < 0.6
            key = self.dice.choice([f"TW-{asked[0].code}-{row}", f"tw{asked[0].code}{row}"])
            question = f"Who holds berth {key}?" if by_key else f"What was near the {self.dice.choice(WORDS)}?"
            recall = "verbatim" if by_key or self.dice.random() < 0.5 else "grounded"
            body = {"documents": [each.id for each in asked], "question": question, "recall": recall, "max_tokens": 64}
            reply = await self.http.post("/v1/ask", json=body)
            if reply.status_code == 200:
                self.counts["asked by key" if by_key else "asked in words"] += 1
                self.check(reply.json(), asked, row if by_key else None)
            else:
                await self.refused(reply, asked)

    async def refused(self, reply: httpx.Response, asked: list[Sent]) -> None:
        code = reply.json()["error"]["code"]
        self.counts[f"{reply.status_code} {code}"] += 1
        allowed = (
            (code == "queue_full" and int(reply.headers.get("Retry-After", 0)) > 0)
            or (code == "document_not_found" and any(each.is_going for each in asked))
            or code == "document_not_ready"
        )
        if not allowed:
            self.wrong.append(f"ask: {reply.status_code} {reply.text[:300]}")
        await asyncio.sleep(0.2)

    def check(self, answer: dict[str, Any], asked: list[Sent], row: int | None) -> None:
        texts = {each.id: each.text for each in asked}
        for source in answer["sources"]:
            if (
                texts.get(source["document"], "")[source["start"] : source["end"]] != source["text"]
                or not source["text"]
            ):
                self.wrong.append(f"torn source: {source}")
        for citation in answer["citations"]:
            quote = texts.get(citation["document"], "")[citation["start"] : citation["end"]]
            place = answer["answer"][citation["answer_start"] : citation["answer_end"]]
            if quote != citation["quote"] or place != quote or not quote:
                self.wrong.append(f"torn citation: {citation} in {answer['answer']!r}")
            self.counts["citations"] += 1
        if row is not None:
            expected = f"TW-{asked[0].code}-{row} "
            if not answer["sources"] or expected not in answer["sources"][0]["text"]:
                self.wrong.append(f"{expected} is not in the first source: {answer['sources'][:1]}")
            elif not answer["found"] or any(each["document"] != asked[0].id for each in answer["citations"]):
                self.wrong.append(f"{expected} was not quoted from its document: {answer['answer']!r}")
            else:
                self.counts["key rows found"] += 1
                # The embedded model says which part of the row; the row itself is right.
                self.counts["keepers quoted"] += f"{asked[0].code}{row:04d}" in answer["answer"]


async def run(url: str, process_id: int, minutes: float, samples_path: Path, seed: int) -> tuple[Load, list[Any]]:
    load, started = Load(url, seed), time.monotonic()
    until = started + 60 * minutes
    clients = [asyncio.create_task(load.sender(until)) for _ in range(NUM_SENDERS)]
    clients += [asyncio.create_task(load.asker(until)) for _ in range(NUM_ASKERS)]
    samples: list[dict[str, float]] = []
    with samples_path.open("w") as file:
        while not all(client.done() for client in clients):
            seconds = round(time.monotonic() - started, 1)
            samples.append({"seconds": seconds, "rss_mib": resident_mib(process_id), **load.counts})
            print(json.dumps({**samples[-1], "num_wrong": len(load.wrong)}), file=file, flush=True)
            await asyncio.wait(clients, timeout=SAMPLE_SECONDS)
    for client in clients:
        client.result()
    for sent in list(load.documents.values()):
        await load.delete(sent)
    return load, samples


def remains(data_dir: Path, codes: list[str]) -> list[str]:
    """Codes of deleted documents that are still in a file, in any case of letters."""
    content = b""
    for path in data_dir.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):
            content += path.read_bytes().lower() if path.name != "log" else b""
    return [code for code in codes if code.encode() in content]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=Path, default=Path("ingest_load.jsonl"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data_dir, Path(data_dir, "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--port", str(port), "--data-dir", data_dir],
            stdout=log, stderr=log, env=os.environ | SETTINGS,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process)
            load, samples = asyncio.run(run(url, process.pid, options.minutes, options.samples, options.seed))
            left = remains(Path(data_dir), load.codes)
        finally:
            process.terminate()
            process.wait(60)
            Path(data_dir, "log").replace(options.samples.with_suffix(".log"))
    if left:
        load.wrong.append(f"{len(left)} of {len(load.codes)} deleted documents left traces: {left[:3]}")
    fifth = max(1, len(samples) // 5)
    found = {
        "counts": dict(load.counts),
        "num_wrong": len(load.wrong),
        "wrong": load.wrong[:20],
        "answerable_seconds_median": statistics.median(load.answerable_seconds or [0.0]),
        "answerable_seconds_max": max(load.answerable_seconds, default=0.0),
        "rss_mib_second_fifth": statistics.median(each["rss_mib"] for each in samples[fifth : 2 * fifth] or samples),
        "rss_mib_last_fifth": statistics.median(each["rss_mib"] for each in samples[-fifth:]),
    }
    print(json.dumps(found, indent=2))
    machine = describe_machine(len(os.sched_getaffinity(0)))
    print(json.dumps({"bench": "ingest_load", "minutes": options.minutes, "machine": machine, **found}))
    if load.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
