"""Half an hour of mixed work with clients that leave: does everything come back, and does the memory stay?

    python -m bench.soak --minutes 30 --samples soak.jsonl

Starts a server of its own with four slots on a free port and an empty data directory. Several clients at once stream
chats, ask for three choices, repeat seeded requests (the text must be the same every time), send long prompts, ask
about a document, send documents and delete them, want vectors of texts of all lengths, save conversations, read slowly,
and leave at random moments: before the first byte, while the prompt is read, in the middle of the answer. Every ten
seconds a line of JSON is written: resident set, pools, requests. At the end the server must be idle with every slot and
block free; the resident set of the last fifth is compared with that of the second, and so is what no pool accounts for.
"""

import argparse
import asyncio
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
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from bench.throughput import describe_machine

NUM_CLIENTS = 10
SAMPLE_SECONDS = 10.0
SETTINGS = {"FANO_MAX_SEQUENCES": "4", "FANO_MAX_QUEUE": "64", "FANO_SAVED_BYTES": str(1 << 28)}
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()


class Soak:
    """The clients, and what they saw."""

    def __init__(self, url: str, model: str, document: str, seed: int) -> None:
        self.url = url
        self.model = model
        self.document = document
        self.dice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.texts: dict[int, str] = {}
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", timeout=600, max_retries=0)
        self.http = httpx.AsyncClient(base_url=url, timeout=600)

    def prompt(self, num_words: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": " ".join(self.dice.choices(WORDS, k=num_words))}]

    async def chat(self) -> None:
        stream = await self.client.chat.completions.create(
            model=self.model, messages=self.prompt(self.dice.randint(3, 300)), max_tokens=self.dice.randint(1, 120),
            temperature=self.dice.choice([0.0, 0.7, 1.3]), stream=True,
            presence_penalty=self.dice.choice([0.0, 0.5]), logit_bias={"2": -100},
        )  # fmt: skip
        async for _ in stream:
            pass

    async def choices(self) -> None:
        reply = await self.client.chat.completions.create(
            model=self.model, messages=self.prompt(120), max_tokens=40, n=3, seed=self.dice.randint(0, 999)
        )
        assert sorted(choice.index for choice in reply.choices) == [0, 1, 2]

    async def repeat(self) -> None:
        seed = self.dice.randint(0, 5)
        words = " ".join(random.Random(seed).choices(WORDS, k=150 * (seed + 1)))
        reply = await self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": words}], max_tokens=60, seed=seed,
            temperature=0.0 if seed % 2 else 1.0, logit_bias={"2": -100},
        )  # fmt: skip
        text = reply.choices[0].message.content or ""
        if self.texts.setdefault(seed, text) != text:
            self.wrong.append(f"seed {seed} gave another text than before")

    async def long_prompt(self) -> None:
        await self.client.chat.completions.create(
            model=self.model, messages=self.prompt(self.dice.randint(2000, 9000)), max_tokens=8
        )

    async def ask(self) -> None:
        body = {"documents": [self.document], "question": "Who looks after the archive in the north?",
                "recall": self.dice.choice(["verbatim", "grounded"])}  # fmt: skip
        reply = await self.http.post("/v1/ask", json=body)
        reply.raise_for_status()
        if not reply.json()["found"]:
            self.wrong.append("the planted sentence was not found")

    async def send_and_delete(self) -> None:
        days = range(self.dice.choice([20, 100, 400]))
        lines = [f"On day {day} the {self.dice.choice(WORDS)} came to berth {self.dice.random()}." for day in days]
        reply = await self.http.post("/v1/documents", json={"name": "days.txt", "text": " ".join(lines)})
        reply.raise_for_status()
        path = f"/v1/documents/{reply.json()['id']}"
        while not (await self.http.get(path)).json()["answerable"]:
            await asyncio.sleep(0.2)
        (await self.http.delete(path)).raise_for_status()

    async def embed(self) -> None:
        number = self.dice.choice([1, 8, 64])
        texts = [" ".join(self.dice.choices(WORDS, k=self.dice.randint(2, 200))) for _ in range(number)]
        await self.client.embeddings.create(model="all-MiniLM-L6-v2", input=texts)

    async def converse(self) -> None:
        name = f"talk-{self.dice.getrandbits(64):x}"
        await self.client.chat.completions.create(
            model=self.model, messages=self.prompt(self.dice.randint(20, 400)), max_tokens=20,
            extra_body={"fano": {"session": name}},
        )  # fmt: skip
        (await self.http.post(f"/v1/sessions/{name}/save")).raise_for_status()
        (await self.http.delete(f"/v1/sessions/{name}")).raise_for_status()

    async def read_slowly(self) -> None:
        body = {"model": self.model, "messages": self.prompt(50), "max_tokens": 300, "stream": True,
                "logit_bias": {"2": -100}}  # fmt: skip
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for _ in reply.aiter_bytes(2048):
                await asyncio.sleep(0.05)

    async def leave(self) -> None:
        words = self.dice.choice([20, 300, 6000])
        body = {"model": self.model, "messages": self.prompt(words), "max_tokens": 400, "stream": True,
                "n": self.dice.choice([1, 1, 2]), "logit_bias": {"2": -100}}  # fmt: skip
        try:
            async with asyncio.timeout(self.dice.choice([0.01, 0.1, 0.5, 2.0])):
                async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
                    async for _ in reply.aiter_bytes():
                        pass
        except TimeoutError:
            self.counts["left"] += 1

    async def client_loop(self, until: float) -> None:
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.chat, 5), (self.choices, 2), (self.repeat, 3), (self.long_prompt, 1), (self.ask, 2),
            (self.read_slowly, 1), (self.leave, 5), (self.send_and_delete, 1), (self.embed, 2), (self.converse, 1),
        ]  # fmt: skip
        while time.monotonic() < until:
            (kind,) = self.dice.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            try:
                await kind()
                self.counts[kind.__name__] += 1
            except openai.RateLimitError:
                self.counts["queue full"] += 1
                await asyncio.sleep(1)
            except (openai.APIError, httpx.HTTPError) as error:
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                await asyncio.sleep(1)

    async def sample(self, process_id: int) -> dict[str, float]:
        families = text_string_to_metric_families((await self.http.get("/metrics")).text)
        values = {"rss_mib": resident_mib(process_id)}
        for family in families:
            for sample in family.samples:
                if sample.name in ("fano_state_slots", "fano_kv_blocks", "fano_requests", "fano_preemptions_total"):
                    label = "_".join(sample.labels.values())
                    values[f"{sample.name.removeprefix('fano_')}{'_' if label else ''}{label}"] = sample.value
                if sample.labels.get("pool") in ("sessions", "unaccounted"):
                    values[f"host_{sample.labels['pool']}_mib"] = round(sample.value / 2**20, 1)
        return values


def resident_mib(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


async def run(url: str, process_id: int, minutes: float, samples_path: Path, seed: int) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        sentences = [f"On day {n} the {random.Random(n).choice(WORDS)} was closed." for n in range(400)]
        sentences[200] = "The custodian of the northern archive is Wilhelmina Thackeray-Oduya."
        posted = await http.post("/v1/documents", json={"name": "days", "text": " ".join(sentences)})
        document = posted.json()["id"]
        while (await http.get(f"/v1/documents/{document}")).json()["status"] != "ready":
            await asyncio.sleep(0.2)
    soak = Soak(url, model, document, seed)
    started = time.monotonic()
    clients = [asyncio.create_task(soak.client_loop(started + 60 * minutes)) for _ in range(NUM_CLIENTS)]
    samples: list[dict[str, float]] = []
    with samples_path.open("w") as file:
        while not all(client.done() for client in clients):
            samples.append({"seconds": round(time.monotonic() - started, 1)} | await soak.sample(process_id))
            print(json.dumps(samples[-1]), file=file, flush=True)
            await asyncio.wait(clients, timeout=SAMPLE_SECONDS)
        for client in clients:
            client.result()
        await asyncio.sleep(2)
        last = await soak.sample(process_id)
        print(json.dumps({"seconds": round(time.monotonic() - started, 1)} | last), file=file)
    return summary(soak, samples, last)


def summary(soak: Soak, samples: list[dict[str, float]], last: dict[str, float]) -> dict[str, object]:
    """What came of it; ``flat`` compares the last fifth of the time with the second."""
    fifth = max(1, len(samples) // 5)
    early = statistics.median(each["rss_mib"] for each in samples[fifth : 2 * fifth] or samples)
    late = statistics.median(each["rss_mib"] for each in samples[-fifth:])
    half = samples[len(samples) // 2 :]
    hours = [each["seconds"] / 3600 for each in half]
    slope = statistics.linear_regression(hours, [each["rss_mib"] for each in half]).slope if len(half) > 2 else 0.0
    held = {key: last[key] for key in last if key.endswith("_used") or key.startswith("requests_")}
    return {
        "requests": dict(soak.counts),
        "wrong": soak.wrong[:20],
        "num_wrong": len(soak.wrong),
        "still_held": {key: value for key, value in held.items() if value},
        "pools_at_the_end": {key: last[key] for key in last if key.startswith(("state_slots", "kv_blocks"))},
        "preemptions": last.get("preemptions_total", 0),
        "rss_mib_second_fifth": early,
        "rss_mib_last_fifth": late,
        "rss_slope_mib_per_hour_second_half": round(slope, 1),
        "rss_mib_at_rest": last["rss_mib"],
        "unaccounted_mib_at_the_start": samples[0]["host_unaccounted_mib"],
        "unaccounted_mib_second_fifth": statistics.median(
            each["host_unaccounted_mib"] for each in samples[fifth : 2 * fifth] or samples
        ),
        "unaccounted_mib_last_fifth": statistics.median(each["host_unaccounted_mib"] for each in samples[-fifth:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--samples", type=Path, default=Path("soak.jsonl"))
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
            found = asyncio.run(run(url, process.pid, options.minutes, options.samples, options.seed))
        finally:
            process.terminate()
            process.wait(60)
    machine = describe_machine(2)
    print(json.dumps(found, indent=2))
    print(json.dumps({"bench": "soak", "minutes": options.minutes, "machine": machine, **found}))
    if found["num_wrong"] or found["still_held"]:
        sys.exit(1)


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("the server ended before it was ready")
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit("the server was not ready in time")


if __name__ == "__main__":
    main()
