"""A warm question costs the same at any length: first token and resident bytes at 1M tokens and at 16K.

    python -m bench.warm --text BOOKS/*.txt

A server reads two documents that end alike, one some sixty times as long as the other, each to its end. Then the same
question, which a sentence in both answers, is asked of both in turn: once from a fresh state and once from the state
that reading the document left. Client-side seconds to the first token, medians over the rounds, and their ratio; bytes
as ``usage.fano`` bills them. Prints a table and one JSON line.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import Child, Listener
from bench.throughput import describe_machine

NEEDLE = "The registration number of the blue harbour crane is QX-4471-ZK."
QUESTION = "What is the registration number of the blue harbour crane?"
VALUE = "QX-4471-ZK"
CHARACTERS_PER_TOKEN = 4.0
STATES = ("fresh", "document")


@dataclass(frozen=True)
class Asked:
    """One answered question."""

    first_token_seconds: float
    resident_bytes: int
    num_cached_tokens: int
    is_right: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="plain text, some four million characters")
    parser.add_argument("--tokens", type=int, nargs=2, default=[16_000, 1_000_000], metavar=("SHORT", "LONG"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in options.text)

    with tempfile.TemporaryDirectory() as scratch:
        child = Child(Path(scratch) / "server.log")
        command = [str(Path(sys.executable).with_name("fano")), "serve", "--data-dir", f"{scratch}/data"]
        environ = {"FANO_THREADS": str(options.threads), "FANO_MAX_CONTEXT_TOKENS": str(2 * max(options.tokens))}
        child.start(command, "/readyz", environ)
        try:
            documents = {size: post(child, text, size) for size in options.tokens}
            asked = ask_in_turn(child, documents, options.rounds)
        finally:
            child.kill()
    report(documents, asked, options.threads)


def post(child: Child, text: str, num_tokens: int) -> dict[str, Any]:
    """A document of about so many tokens with the needle in its middle, read to its end."""
    part = text[-int(num_tokens * CHARACTERS_PER_TOKEN) :]
    middle = part.find("\n\n", len(part) // 2)
    part = f"{part[:middle]}\n\n{NEEDLE}{part[middle:]}"
    started = time.perf_counter()
    made = child.client.post("/v1/documents", json={"text": part, "name": f"{num_tokens}.txt"})
    made.raise_for_status()
    document: dict[str, Any] = made.json()
    while document["status"] not in ("ready", "failed"):
        time.sleep(0.5)
        document = child.client.get(f"/v1/documents/{document['id']}").json()
    assert document["status"] == "ready", document["error"]
    return document | {"seconds": time.perf_counter() - started}


def ask_in_turn(child: Child, documents: dict[int, dict[str, Any]], rounds: int) -> dict[tuple[int, str], list[Asked]]:
    asked: dict[tuple[int, str], list[Asked]] = defaultdict(list)
    for turn in range(rounds + 1):
        for size, document in documents.items():
            for state in STATES:
                answer = ask(child, document["id"], state, turn)
                if turn:  # the first warms everything
                    asked[size, state].append(answer)
    return asked


def ask(child: Child, document_id: str, state: str, turn: int) -> Asked:
    # Other words before it, so that the prompt of a fresh state is not simply there from the round before.
    question = f"Round {turn}. {QUESTION}"
    body = {"question": question, "recall": "verbatim", "stream": True, "max_tokens": 24, "start": state}
    listener, done = Listener(child), None
    for event in child.stream(f"/v1/documents/{document_id}/ask", body):
        if not isinstance(event, dict):
            continue  # the sources, a list
        if "answer" in event:
            done = event
        elif set(event) == {"text"}:
            listener.hear(event["text"])
    assert done is not None and listener.first is not None
    usage = done["usage"]
    resident = usage["fano"]["resident_bytes"]
    return Asked(
        listener.first.seconds,
        resident["kv"] + resident["ssm_state"] + resident["conv_state"],
        usage["prompt_tokens_details"]["cached_tokens"],
        VALUE in done["answer"],
    )


def report(documents: dict[int, dict[str, Any]], asked: dict[tuple[int, str], list[Asked]], threads: int) -> None:
    machine = describe_machine(threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'tokens':>9} {'read in s':>10} {'state':9} {'first token ms':>15} {'resident bytes':>15} {'right':>6}")
    rows = []
    for (size, state), answers in asked.items():
        document = documents[size]
        row = {
            "tokens": document["num_tokens"],
            "ready_seconds": document["seconds"],
            "state": state,
            "first_token_seconds": statistics.median(each.first_token_seconds for each in answers),
            "resident_bytes": max(each.resident_bytes for each in answers),
            "cached_tokens": answers[-1].num_cached_tokens,
            "share_right": statistics.mean(each.is_right for each in answers),
        }
        rows.append(row)
        print(f"{row['tokens']:9,} {row['ready_seconds']:10.1f} {state:9} {row['first_token_seconds'] * 1e3:15.1f} "
              f"{row['resident_bytes']:15,} {row['share_right']:6.0%}")  # fmt: skip
    ratios = {}
    for state in STATES:
        short, long = sorted((row for row in rows if row["state"] == state), key=lambda row: row["tokens"])
        ratios[state] = {key: long[key] / short[key] for key in ("first_token_seconds", "resident_bytes")}
        print(f"{state}: first token {ratios[state]['first_token_seconds']:.2f}, resident bytes "
              f"{ratios[state]['resident_bytes']:.2f} times those of the short one")  # fmt: skip
    print(json.dumps({"bench": "warm", "machine": machine, "rows": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
