"""What a whole process holds, each in a process of its own: in that of the tests lies what all of them have left."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_process import Server, served

MIB = 1 << 20
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
# Measured from the start to the end of the first and of the second round: 143 and 162 MiB, what is compiled, read in
# and kept ready once. With arenas as they come 241 and 265; with products of the embedder of any size 208 and 303.
GROWTH_MIB = 215

RESIDENT = """
import mmap
from server.bills.bill import resident_set_bytes
held = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
before = resident_set_bytes()
for place in range(0, len(held), mmap.PAGESIZE):
    held[place] = 1
during = resident_set_bytes()
held.close()
print(during - before, during - resident_set_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident set is read from /proc")
def test_the_resident_set_is_what_is_touched_and_not_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", RESIDENT], check=True, capture_output=True, text=True)
    assert [int(size) // MIB for size in run.stdout.split()] == pytest.approx([256, 256], abs=8)


class Load:
    """Mixed work for one server, the same with each seed."""

    def __init__(self, server: Server) -> None:
        self.http = httpx.Client(base_url=server.url, timeout=600)
        (model,) = self.http.get("/v1/models").json()["data"][:1]
        self.model = model["id"]

    def unaccounted_bytes(self) -> int:
        bill = self.http.get("/v1/memory").raise_for_status().json()
        pools = bill["device"]["held_bytes"] + bill["host"]["bytes"]
        assert pools + bill["unaccounted_bytes"] == bill["resident_set_bytes"]
        return int(bill["unaccounted_bytes"])

    def round(self, seed: int) -> None:
        """Eight clients at once do all kinds of things."""
        kinds: list[Callable[[random.Random], None]] = [self.embed] * 24 + [self.chat] * 12 + [self.read_and_ask] * 6
        kinds += [self.session] * 2 + [self.long_prompt] * 2
        random.Random(seed).shuffle(kinds)
        with ThreadPoolExecutor(8) as clients:
            dice = [random.Random(1000 * seed + number) for number in range(len(kinds))]
            for done in [clients.submit(kind, each) for kind, each in zip(kinds, dice, strict=True)]:
                done.result()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = self.http.post(path, json=body)
        assert reply.is_success, reply.text
        told: dict[str, Any] = reply.json()
        return told

    def talk(self, words: str, max_tokens: int, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": words}]
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "logit_bias": {"2": -100}}
        return self.post("/v1/chat/completions", body | more)

    def embed(self, dice: random.Random) -> None:
        texts = [words(dice, dice.randint(2, 200)) for _ in range(dice.choice([1, 8, 32]))]
        self.post("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": texts})

    def chat(self, dice: random.Random) -> None:
        self.talk(words(dice, dice.randint(3, 300)), dice.randint(1, 60), n=dice.choice([1, 2]))

    def long_prompt(self, dice: random.Random) -> None:
        self.talk(words(dice, dice.randint(2000, 5000)), 4)

    def session(self, dice: random.Random) -> None:
        name = f"s{dice.random()}".replace(".", "-")
        self.talk(words(dice, dice.randint(20, 400)), 8, fano={"session": name})
        self.post(f"/v1/sessions/{name}/save", {})
        self.http.delete(f"/v1/sessions/{name}").raise_for_status()

    def read_and_ask(self, dice: random.Random) -> None:
        code, rows = f"q{dice.random()}".replace(".", ""), dice.choice([20, 100, 400])
        text = "\n\n".join(f"Berth TW-{code}-{row} lies near the {words(dice, 1)}." for row in range(rows))
        document = self.post("/v1/documents", {"name": f"{code}.txt", "text": text})["id"]
        while self.http.get(f"/v1/documents/{document}").json()["status"] != "ready":
            time.sleep(0.1)
        question = f"What does berth TW-{code}-{dice.randrange(rows)} lie near?"
        body = {"documents": [document], "question": question, "recall": dice.choice(["verbatim", "grounded"])}
        assert self.post("/v1/ask", body)["found"]
        self.http.delete(f"/v1/documents/{document}").raise_for_status()


def words(dice: random.Random, number: int) -> str:
    return " ".join(dice.choices(WORDS, k=number))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident set is read from /proc")
def test_what_no_pool_accounts_for_is_bounded(tmp_path: Path) -> None:
    with served(tmp_path / "data", {"FANO_MAX_SEQUENCES": "4", "FANO_DTYPE": "bfloat16"}) as server:
        load = Load(server)
        with closing(load.http):
            told = [load.unaccounted_bytes()]
            for seed in range(2):
                load.round(seed)
                told.append(load.unaccounted_bytes())
    start, first, second = (each // MIB for each in told)
    assert 0 < second - start < GROWTH_MIB, (start, first, second)
    assert second - first < GROWTH_MIB / 4, (start, first, second)
