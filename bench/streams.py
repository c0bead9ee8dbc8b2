"""Many streams at once, and a stream beside a long prompt: what batching gains and what it costs who is already there.

    python -m bench.streams                 the whole comparison on the 28 M parameter model (some minutes)
    python -m bench.streams --short         a tiny model: asserts that every stream gets its tokens, claims no time

Engine level: requests are submitted and steps are timed, with sampling and text, without HTTP. Random weights of
``bench.sides``; the tokenizer is that of the embedded checkpoint, whose vocabulary has the same size. Prints tables,
then one JSON line.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.sides import SMALL, TINY, make_checkpoint
from bench.throughput import describe_machine, random_ids
from model.config import Dtype, EngineConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import GenerationRequest, Keep, SamplingParams
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

TOKENIZER = Path(__file__).parents[1] / "weights" / "fano-reader"
# Everything is read anew.
NOTHING = Keep(nothing=True)
STREAMS = (1, 2, 4, 8)
NUM_STEPS = 48
STREAM_TOKENS = 20_000
# The end of text must not end a stream before it was measured.
ENDLESS = SamplingParams(max_tokens=STREAM_TOKENS, temperature=0.0, logit_bias=((1, -100.0), (2, -100.0)))


@dataclass(frozen=True)
class Pace:
    """Times between two tokens of a stream, in milliseconds."""

    median: float
    mean: float
    p95: float
    p99: float
    most: float

    @staticmethod
    def of(seconds: Sequence[float]) -> "Pace":
        cuts = statistics.quantiles(seconds, n=100)
        parts = (statistics.median(seconds), statistics.fmean(seconds), cuts[94], cuts[98], max(seconds))
        return Pace(*(round(1e3 * part, 2) for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contexts", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--prompt-tokens", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.short:
        options.rounds, options.threads, options.contexts, options.prompt_tokens = 1, [1], [100], 1000

    together: list[dict[str, object]] = []
    beside: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name)
        make_checkpoint(checkpoint, TINY | {"vocab_size": 16384} if options.short else SMALL, options.seed)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / file, checkpoint)
        for threads in options.threads:
            for dtype in (Dtype.BFLOAT16, Dtype.FLOAT32):
                together += compare_streams(checkpoint, dtype, threads, options.contexts, options.rounds)
            beside.append(read_beside(checkpoint, Dtype.BFLOAT16, threads, options.prompt_tokens))
    machine = describe_machine(max(options.threads))
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'dtype':9} {'threads':>7} {'context':>7} {'streams':>7} {'tokens/s':>9} {'ratio':>6}")
    for row in together:
        print(f"{row['dtype']:9} {row['threads']:7} {row['context']:7} {row['streams']:7}", end=" ")
        print(f"{row['tokens_per_second']:9} {row['ratio']:6}")
    for row in beside:
        print(
            f"\na stream beside a prompt of {row['prompt_tokens']} tokens, {row['threads']} threads, ms between tokens"
        )
        for key in ("alone", "beside"):
            print(f"  {key:7} {row[key]}")
        print(
            f"  ratio of medians {row['median_ratio']}, of means {row['mean_ratio']}; the prompt was read at", end=" "
        )
        print(f"{row['prompt_tokens_per_second_beside']} tokens/s, at {row['prompt_tokens_per_second_alone']} alone")
    print(json.dumps({"bench": "streams", "machine": machine, "together": together, "beside": beside}))


def compare_streams(
    checkpoint: Path, dtype: Dtype, threads: int, contexts: Sequence[int], rounds: int
) -> list[dict[str, object]]:
    """Tokens per second of 1 to 8 streams, the numbers of streams taking turns."""
    config = EngineConfig(
        num_slots=max(STREAMS),
        max_context_tokens=max(contexts) + STREAM_TOKENS,
        num_blocks=max(STREAMS) * (max(contexts) + STREAM_TOKENS) // BLOCK_TOKENS,
        dtype=dtype,
        num_threads=threads,
    )
    engine, _ = load_engine(checkpoint, config)
    rows = []
    for context in contexts:
        rates: dict[int, list[float]] = {count: [] for count in STREAMS}
        for _ in range(rounds):
            for count in STREAMS:
                rates[count].append(count / statistics.median(steps_of(engine, count, context)))
        single = statistics.median(rates[1])
        for count in STREAMS:
            rate = statistics.median(rates[count])
            rows.append(
                {
                    "dtype": dtype.value,
                    "threads": threads,
                    "context": context,
                    "streams": count,
                    "tokens_per_second": round(rate),
                    "ratio": round(rate / single, 2),
                }
            )
    return rows


def steps_of(engine: Engine, num_streams: int, context: int) -> list[float]:
    """Seconds of steps in which each of ``num_streams`` gets a token."""
    for number in range(num_streams):
        engine.submit(GenerationRequest(str(number), tuple(random_ids(context, 512)), ENDLESS, keep=NOTHING))
    while len(engine.step()) < num_streams:
        pass
    seconds = []
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        events = engine.step()
        seconds.append(time.perf_counter() - started)
        assert sorted(int(event.request_id) for event in events) == list(range(num_streams)), "a stream was left out"
    for number in range(num_streams):
        engine.abort(str(number))
    return seconds


def read_beside(checkpoint: Path, dtype: Dtype, threads: int, prompt_tokens: int) -> dict[str, object]:
    """The pace of a stream before and while a long prompt is read beside it."""
    config = EngineConfig(
        num_slots=2,
        max_context_tokens=prompt_tokens + STREAM_TOKENS,
        dtype=dtype,
        policy=AttentionPolicy(PolicyName.WINDOW),
        num_threads=threads,
    )
    engine, _ = load_engine(checkpoint, config)
    long_prompt = tuple(random_ids(prompt_tokens, 512))
    last = SamplingParams(max_tokens=1, temperature=0.0)
    started = time.perf_counter()
    engine.submit(GenerationRequest("alone", long_prompt, last, keep=NOTHING))
    while engine.has_work():
        engine.step()
    alone_seconds = time.perf_counter() - started

    engine.submit(GenerationRequest("stream", tuple(random_ids(100, 512)), ENDLESS, keep=NOTHING))
    before = gaps(engine, lambda count: count == 600)
    started = time.perf_counter()
    engine.submit(GenerationRequest("long", long_prompt, last, keep=NOTHING))
    during = gaps(engine, lambda _: engine.stats().num_running + engine.stats().num_waiting == 1)
    beside_seconds = time.perf_counter() - started
    engine.abort("stream")
    pace_before, pace_during = Pace.of(before), Pace.of(during)
    return {
        "dtype": dtype.value,
        "threads": threads,
        "prompt_tokens": prompt_tokens,
        "alone": vars(pace_before),
        "beside": vars(pace_during),
        "median_ratio": round(pace_during.median / pace_before.median, 2),
        "mean_ratio": round(pace_during.mean / pace_before.mean, 2),
        "prompt_tokens_per_second_alone": round(prompt_tokens / alone_seconds),
        "prompt_tokens_per_second_beside": round(prompt_tokens / beside_seconds),
    }


def gaps(engine: Engine, is_over: Callable[[int], bool]) -> list[float]:
    """Seconds between the stream's tokens, as the engine says them, until ``is_over`` of their number."""
    found: list[float] = []
    while not (found and is_over(len(found))):
        for event in engine.step():
            if event.request_id == "stream" and event.gap_seconds is not None:
                found.append(event.gap_seconds)
    return found


if __name__ == "__main__":
    main()
