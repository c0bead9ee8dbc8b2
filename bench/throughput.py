"""Prefill, decode and memory beside transformers' JambaForCausalLM: same machine, same run, same random weights.

    python -m bench.throughput                    the whole comparison (some 15 minutes on one core)
    python -m bench.throughput --short            a tiny model: asserts that the logits agree, asserts no time

The engines take turns in one process, so that a busy neighbour hits both; peak memory is measured in a process
of its own for each. The main figure is tokens per CPU second with one thread, which leaves out waiting for a core,
though not for memory that others use; wall-clock time stands beside it. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from bench.sides import DTYPES, SMALL, TINY, Side, make_checkpoint, open_side

ENGINES = ("transformers", "fano")
SEED = 0
# Differences of logits in units of their standard deviation. float32: law 1. bfloat16 has 8 bits of mantissa, and
# both engines round at other places; transformers' own bfloat16 is printed beside ours.
FLOAT32_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 0.15


@dataclass
class Speed:
    """One turn of one engine: seconds of prefill, and the median seconds of a decode step."""

    side: str
    num_tokens: int
    prefill_cpu_seconds: float
    prefill_wall_seconds: float
    decode_cpu_seconds: float
    decode_wall_seconds: float


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(json.dumps(measure_peak(options)))
        return
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory)
        num_parameters = make_checkpoint(checkpoint, TINY if options.short else SMALL, SEED)
        sides = [open_side(engine, dtype, checkpoint, options.threads) for dtype in DTYPES for engine in ENGINES]
        differences = compare_logits(sides, 70 if options.short else 600, 8 if options.short else 32)
        machine = describe_machine(options.threads)
        print(f"{num_parameters / 1e6:.1f} M parameters, seed {SEED}, {options.rounds} interleaved rounds, medians")
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        speeds = take_turns(sides, options)
        medians = table_of(speeds)
        print_speeds(differences, medians)
        peaks = [] if options.short else measure_peaks(checkpoint, options)
        print_peaks(peaks)
    result = {"machine": machine, "seed": SEED, "num_parameters": num_parameters, "differences": differences}
    print(json.dumps(result | {"medians": medians, "peaks": peaks, "turns": [asdict(speed) for speed in speeds]}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="correctness of a tiny model, no claim about time")
    parser.add_argument("--lengths", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--decode-tokens", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak-lengths", type=int, nargs="*", default=[2048, 32768])
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.lengths = options.lengths or ([70] if options.short else [512, 2048, 8192])
    options.rounds = options.rounds or (1 if options.short else 3)
    options.decode_tokens = options.decode_tokens or (4 if options.short else 48)
    return options


def random_ids(num_tokens: int, vocab_size: int) -> list[int]:
    return torch.randint(4, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(SEED)).tolist()


def compare_logits(sides: list[Side], num_prompt: int, num_steps: int) -> dict[str, float]:
    """Largest difference from transformers in float32, over a prefill and single steps of the same tokens."""
    ids = random_ids(num_prompt + num_steps, 512)
    expected: Tensor | None = None
    differences = {}
    for side in sides:
        side.start(len(ids))
        rows = [side.read(ids[:num_prompt]), *(side.read([token]) for token in ids[num_prompt:])]
        logits = torch.stack(rows)
        if expected is None:
            expected = logits
        differences[side.name] = float((logits - expected).abs().max() / expected.std())
        tolerance = FLOAT32_TOLERANCE if side.name.endswith("float32") else BFLOAT16_TOLERANCE
        assert differences[side.name] <= tolerance, f"{side.name}: logits differ by {differences[side.name]:.2e} std"
    return differences


def take_turns(sides: list[Side], options: argparse.Namespace) -> list[Speed]:
    speeds = []
    for side in sides:
        side.start(64)
        side.read(random_ids(16, 512))
    for turn in range(options.rounds):
        for num_tokens in options.lengths:
            for side in sides:
                speeds.append(time_side(side, num_tokens, options.decode_tokens))
                print(f"round {turn + 1}/{options.rounds}: {side.name} at {num_tokens} tokens", file=sys.stderr)
    return speeds


def time_side(side: Side, num_tokens: int, num_steps: int) -> Speed:
    ids = random_ids(num_tokens, 512)
    side.start(num_tokens + num_steps)
    before = time.process_time(), time.perf_counter()
    logits = side.read(ids)
    prefill = time.process_time() - before[0], time.perf_counter() - before[1]
    steps = []
    for _ in range(num_steps):
        before = time.process_time(), time.perf_counter()
        logits = side.read([int(logits.argmax())])
        steps.append((time.process_time() - before[0], time.perf_counter() - before[1]))
    decode = [statistics.median(column) for column in zip(*steps, strict=True)]
    return Speed(side.name, num_tokens, *prefill, *decode)


def measure_peaks(checkpoint: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    peaks = []
    for num_tokens in options.peak_lengths:
        for dtype in DTYPES:
            for engine in ENGINES:
                print(f"peak memory of {engine} {dtype} at {num_tokens} tokens", file=sys.stderr)
                command = [sys.executable, "-m", "bench.throughput", "--threads", str(options.threads)]
                command += ["--peak-of", f"{engine} {dtype}", "--lengths", str(num_tokens), "--checkpoint", checkpoint]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(json.loads(done.stdout.splitlines()[-1]))
    return peaks


def measure_peak(options: argparse.Namespace) -> dict[str, object]:
    """Highest resident set of this process (Linux): after loading, and after one prefill and some steps."""
    engine, dtype = options.peak_of.split()
    side = open_side(engine, dtype, options.checkpoint, options.threads)
    num_tokens = options.lengths[0]
    side.start(num_tokens + 4)
    loaded = peak_kibibytes()
    started = time.process_time()
    side.read(random_ids(num_tokens, 512))
    seconds = time.process_time() - started
    for token in random_ids(4, 512):
        side.read([token])
    peak = peak_kibibytes()
    return {
        "side": side.name,
        "num_tokens": num_tokens,
        "loaded_mib": loaded // 1024,
        "peak_mib": peak // 1024,
        "prefill_cpu_seconds": round(seconds, 2),
    }


def peak_kibibytes() -> int:
    # Not getrusage: its ru_maxrss starts from the parent's in a process that was forked.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def print_speeds(differences: dict[str, float], medians: list[dict[str, float]]) -> None:
    print("\nlogits, largest difference from transformers float32 (in standard deviations)")
    for name, difference in differences.items():
        print(f"  {name:22} {difference:.1e}")
    print("\ntokens per CPU second (per second of wall-clock in brackets), ratio to transformers of the same dtype")
    print(f"  {'':22} {'tokens':>7} {'prefill':>18} {'ratio':>6} {'decode':>18} {'ratio':>6}")
    for row in medians:
        peer = next(r for r in medians if r["side"] == peer_of(row["side"]) and r["num_tokens"] == row["num_tokens"])
        ratios = [row[f"{phase}_cpu_tps"] / peer[f"{phase}_cpu_tps"] for phase in ("prefill", "decode")]
        cells = [f"{row[f'{p}_cpu_tps']:9.1f} ({row[f'{p}_wall_tps']:.1f})" for p in ("prefill", "decode")]
        print(
            f"  {row['side']:22} {row['num_tokens']:7} {cells[0]:>18} {ratios[0]:6.1f} {cells[1]:>18} {ratios[1]:6.1f}"
        )


def print_peaks(peaks: list[dict[str, object]]) -> None:
    if peaks:
        print("\npeak resident set, MiB (after loading in brackets)")
    for row in peaks:
        print(f"  {row['side']:22} {row['num_tokens']:7} {row['peak_mib']:9} ({row['loaded_mib']})")
    print()


def peer_of(side: object) -> str:
    return f"transformers {str(side).split()[1]}"


def table_of(speeds: list[Speed]) -> list[dict[str, float]]:
    rows = []
    for side, num_tokens in dict.fromkeys((speed.side, speed.num_tokens) for speed in speeds):
        turns = [speed for speed in speeds if (speed.side, speed.num_tokens) == (side, num_tokens)]
        row: dict[str, object] = {"side": side, "num_tokens": num_tokens}
        for clock in ("cpu", "wall"):
            prefill = statistics.median(getattr(turn, f"prefill_{clock}_seconds") for turn in turns)
            decode = statistics.median(getattr(turn, f"decode_{clock}_seconds") for turn in turns)
            row |= {f"prefill_{clock}_tps": round(num_tokens / prefill, 1), f"decode_{clock}_tps": round(1 / decode, 1)}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["num_tokens"], str(row["side"]).split()[1]))


def describe_machine(num_threads: int) -> dict[str, object]:
    from model.kernels import choose

    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": f"{len(models)} x {models[0]}" if models else platform.processor(),
        "threads": num_threads,
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "kernels": choose("cpu", num_threads)[0].name,
    }


if __name__ == "__main__":
    main()
