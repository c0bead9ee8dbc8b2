"""What the server costs over the bare engine: tokens per second through HTTP, CPU time when idle, time to start.

    python -m bench.overhead                28 M parameters in bf16, one thread for the model, 1 and 8 streams
    python -m bench.overhead --short        a tiny model: asserts that every token arrives, claims no time

Engine and server have the same random weights, threads and requests: short prompts, each read once, and as many greedy
tokens for every stream. They take turns within a repetition; the engine is stepped in this process, the server is
``fano serve`` with its defaults, and its client a process of its own. Timed is from the first request to the end of the
last stream. Prints a table of medians, then one JSON line.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bench.checkpoints import TOKENIZER, make_chat_checkpoint, random_text, words_of_one_token
from bench.fano_server import FanoServer
from bench.llama import render
from bench.peers import Spent, Watch
from bench.sides import SMALL, TINY
from bench.throughput import describe_machine
from model.config import Dtype, EngineConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import GenerationRequest, SamplingParams

PROMPT_WORDS = 24
# The template's tokens and some to spare.
SPARE_TOKENS = 64
TARGET = 0.95
CLIENT_SECONDS = 600.0


@dataclass(frozen=True)
class Pass:
    """One repetition of some streams: what the engine took, and what the server's client and the server took."""

    streams: int
    num_tokens: int
    engine: Spent
    server: Spent
    load: float


def main() -> None:
    options = parse_options()
    words = words_of_one_token()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        geometry = TINY | {"vocab_size": SMALL["vocab_size"]} if options.short else SMALL
        make_chat_checkpoint(directory / "checkpoint", geometry, options.seed)
        context = PROMPT_WORDS + SPARE_TOKENS + options.tokens
        config = EngineConfig(
            num_slots=max(options.streams),
            max_context_tokens=context,
            dtype=Dtype(options.dtype),
            num_threads=options.threads,
        )
        engine, _ = load_engine(directory / "checkpoint", config)
        server = FanoServer(directory / "checkpoint", directory, options.dtype, options.threads, context, "full")
        starts, ready_spent = [], []
        try:
            for _ in range(options.starts):
                server.kill()
                starts.append(server.start())
                ready_spent.append(server.child.cpu_seconds())
            passes = take_turns(engine, server, options, words)
            idle = idle_share(server, options.idle_seconds)
        finally:
            server.kill()
    rows = table_of(passes)
    machine = describe_machine(options.threads) | {"cores": len(os.sched_getaffinity(0))}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"\n| streams | engine, tokens/s | through HTTP | HTTP / engine (target {TARGET}) | least to most | "
          "engine, CPU ms a token | server, CPU ms a token |")  # fmt: skip
    print("| ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    for row in rows:
        least, most = row["ratios"]
        cells = [row["streams"], f"{row['engine_tps']:,.0f}", f"{row['server_tps']:,.0f}", f"{row['ratio']:.3f}"]
        cells += [f"{least:.3f} to {most:.3f}", f"{row['engine_cpu_ms']:.3f}", f"{row['server_cpu_ms']:.3f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"\nidle for {options.idle_seconds:.0f} s after that: {100 * idle:.2f} % of a core")
    print(f"ready after {statistics.median(starts):.2f} s ({min(starts):.2f} to {max(starts):.2f}), ", end="")
    print(f"{statistics.median(ready_spent):.2f} s of CPU time")
    told = {"bench": "overhead", "machine": machine, "dtype": options.dtype, "seed": options.seed, "rows": rows}
    told |= {"idle_share": idle, "start_seconds": starts, "start_cpu_seconds": ready_spent}
    print(json.dumps(told | {"passes": [asdict(each) for each in passes]}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--dtype", choices=[*Dtype], default=Dtype.BFLOAT16.value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.short:
        options.streams, options.tokens, options.repetitions, options.starts = [1, 3], 16, 1, 1
        options.idle_seconds = 0.5
    return options


def take_turns(engine: Engine, server: FanoServer, options: argparse.Namespace, words: list[str]) -> list[Pass]:
    """The first repetition is not kept: it is the first of both."""
    passes = []
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    dice = random.Random(options.seed)
    for repetition in range(-1, options.repetitions):
        for streams in options.streams:
            prompts = [random_text(words, PROMPT_WORDS, dice) for _ in range(streams)]
            # The one that begins has the cooler core.
            if repetition % 2:
                through_engine = run_engine(engine, tokenizer, prompts, options.tokens)
                through_server = run_server(server, prompts, options.tokens)
            else:
                through_server = run_server(server, prompts, options.tokens)
                through_engine = run_engine(engine, tokenizer, prompts, options.tokens)
            if repetition >= 0:
                num_tokens = streams * options.tokens
                passes.append(Pass(streams, num_tokens, through_engine, through_server, os.getloadavg()[0]))
            print(f"{streams} streams, {repetition + 1}/{options.repetitions}", file=sys.stderr, flush=True)
    return passes


def run_engine(engine: Engine, tokenizer: Tokenizer, prompts: Sequence[str], num_tokens: int) -> Spent:
    """Seconds until all streams have ended. Raises ``AssertionError`` if a token is missing."""
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0)
    rendered = [render([{"role": "user", "content": prompt}]) for prompt in prompts]
    wall, cpu = time.perf_counter(), time.process_time()
    for number, text in enumerate(rendered):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        engine.submit(GenerationRequest(f"{number}/{wall}", tuple(ids), sampling))
    arrived = 0
    while engine.has_work():
        arrived += sum(len(event.token_ids) for event in engine.step())
    spent = Spent(time.perf_counter() - wall, time.process_time() - cpu)
    assert arrived == len(prompts) * num_tokens, f"{arrived} tokens of {len(prompts) * num_tokens}"
    return spent


def run_server(server: FanoServer, prompts: Sequence[str], num_tokens: int) -> Spent:
    """Seconds that the client waited, CPU time of the server. Raises ``AssertionError`` if a token is missing."""
    shared = {"model": server.model, "max_tokens": num_tokens, "temperature": 0.0, "stream": True}
    shared |= {"stream_options": {"include_usage": True}}
    bodies = [shared | {"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    asked = json.dumps({"port": server.child.client.base_url.port, "bodies": bodies}) + "\n"
    watch = Watch(server.child)
    command = [sys.executable, "-m", "bench.stream_client"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False)
    assert done.returncode == 0, f"the client failed: {done.stderr[-1000:]}"
    told = json.loads(done.stdout)
    assert told["num_tokens"] == [num_tokens] * len(prompts), f"tokens of the streams: {told['num_tokens']}"
    return Spent(told["seconds"], watch.spent().cpu_seconds)


def idle_share(server: FanoServer, seconds: float) -> float:
    """CPU time over time, while nobody asks anything."""
    watch = Watch(server.child)
    time.sleep(seconds)
    spent = watch.spent()
    return spent.cpu_seconds / spent.seconds


def table_of(passes: Sequence[Pass]) -> list[dict[str, object]]:
    """Medians for each number of streams; ratios are those within a repetition."""
    rows: list[dict[str, object]] = []
    for streams in dict.fromkeys(each.streams for each in passes):
        same = [each for each in passes if each.streams == streams]
        ratios = [each.engine.seconds / each.server.seconds for each in same]
        rows.append(
            {
                "streams": streams,
                "engine_tps": statistics.median(each.num_tokens / each.engine.seconds for each in same),
                "server_tps": statistics.median(each.num_tokens / each.server.seconds for each in same),
                "ratio": statistics.median(ratios),
                "ratios": [min(ratios), max(ratios)],
                "is_hit": statistics.median(ratios) >= TARGET,
                "engine_cpu_ms": statistics.median(1e3 * each.engine.cpu_seconds / each.num_tokens for each in same),
                "server_cpu_ms": statistics.median(1e3 * each.server.cpu_seconds / each.num_tokens for each in same),
                "load": statistics.median(each.load for each in same),
            }
        )
    return rows


if __name__ == "__main__":
    main()
