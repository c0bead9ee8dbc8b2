"""What a sequence costs by its length: bytes on the device and on the host, and seconds per token, under each policy.

    python -m bench.length --checkpoint weights/fano-reader --lengths 4096 16384 65536 262144 --plot docs/archive.png

The same engine reads prompts of each length in turn and writes a few tokens. Bytes are those that the sequence holds at
its end, as ``usage.fano`` reports them. Under ``archive`` the prompt is a document: the tokens that are written select.
Prints a table, how much longer a written token takes for each token that stands before it, then one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.throughput import describe_machine, random_ids
from model.config import Dtype, EngineConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import GenerationRequest, RequestUsage, SamplingParams
from model.policy import AttentionPolicy, PolicyName

NUM_DECODED = 8


@dataclass(frozen=True)
class Cost:
    """One prompt read to its end."""

    policy: str
    num_tokens: int
    kv_bytes: int
    state_bytes: int
    archive_bytes: int
    summary_bytes: int
    prefill_cpu_seconds_per_token: float
    decode_cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fano-reader"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 262144])
    parser.add_argument("--policies", type=PolicyName, nargs="+", default=[*PolicyName], metavar="POLICY")
    parser.add_argument("--longest-full", type=int, default=16384, help="policy full is not tried beyond this")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--information", action="store_true", help="also add up the surprisal of what is read")
    parser.add_argument("--dtype", choices=[*Dtype], default=Dtype.BFLOAT16)
    parser.add_argument("--plot", type=Path, help="png of the bytes to draw")
    parser.add_argument("--short", action="store_true", help="two short lengths")
    options = parser.parse_args()
    if options.short:
        options.lengths = [512, 4096]

    costs: list[Cost] = []
    for policy in map(AttentionPolicy, options.policies):
        lengths = [n for n in options.lengths if policy.name is not PolicyName.FULL or n <= options.longest_full]
        if not lengths:
            continue
        config = EngineConfig(
            num_slots=1,
            max_context_tokens=max(lengths) + NUM_DECODED,
            dtype=Dtype(options.dtype),
            policy=policy,
            num_threads=options.threads,
        )
        engine, _ = load_engine(options.checkpoint, config)
        for turn in range(options.rounds):
            costs += [read(engine, policy, length, f"{turn}/{length}", options.information) for length in lengths]

    machine = describe_machine(options.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'policy':8} {'tokens':>9} {'kv bytes':>11} {'state':>8} {'archive bytes':>14} {'summaries':>11}", end=" ")
    print(f"{'prefill µs/token':>17} {'written token ms':>17}")
    rows = []
    for policy_name, length in dict.fromkeys((cost.policy, cost.num_tokens) for cost in costs):
        same = [cost for cost in costs if (cost.policy, cost.num_tokens) == (policy_name, length)]
        row = asdict(same[0])
        for key in ("prefill_cpu_seconds_per_token", "decode_cpu_seconds"):
            row[key] = statistics.median(getattr(cost, key) for cost in same)
        rows.append(row)
        microseconds, milliseconds = row["prefill_cpu_seconds_per_token"] * 1e6, row["decode_cpu_seconds"] * 1e3
        print(f"{policy_name:8} {length:9,} {row['kv_bytes']:11,} {row['state_bytes']:8,}", end=" ")
        print(f"{row['archive_bytes']:14,} {row['summary_bytes']:11,} {microseconds:17.1f} {milliseconds:17.2f}")
    slopes = {policy: slope(rows, policy) for policy in dict.fromkeys(row["policy"] for row in rows)}
    for policy_name, nanoseconds in slopes.items():
        if nanoseconds is not None:
            print(f"{policy_name}: {nanoseconds:.2f} ns more a written token for each token that stands before it")
    if options.plot is not None:
        draw(rows, options.plot)
    print(
        json.dumps(
            {
                "bench": "length",
                "machine": machine,
                "dtype": options.dtype,
                "information": options.information,
                "slopes_nanoseconds": slopes,
                "rows": rows,
            }
        )
    )


def slope(rows: Sequence[Mapping[str, Any]], policy: str) -> float | None:
    """Nanoseconds a written token takes longer for each token before it: the least squares line; None of one length."""
    points = [(row["num_tokens"], 1e9 * row["decode_cpu_seconds"]) for row in rows if row["policy"] == policy]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bytes of one sequence by its length: on the device, and what left it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4), layout="constrained")
    # Under archive and window the device holds the same: both lines are to be seen.
    styles = {"full": "o--", "window": "x:k", "archive": "o-"}
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["num_tokens"])
        lengths = [row["num_tokens"] for row in mine]
        lines = {f"{policy}: on the device": [row["kv_bytes"] + row["state_bytes"] for row in mine]}
        if any(row["archive_bytes"] for row in mine):
            lines |= {
                f"{policy}: keys and values on the host": [row["archive_bytes"] for row in mine],
                f"{policy}: summaries on the host": [row["summary_bytes"] for row in mine],
            }
        for label, held in lines.items():
            drawn = [each / 2**20 or None for each in held]
            panel.plot(lengths, drawn, styles[policy], label=label, zorder=3 if policy == "window" else 2)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel("tokens")
    panel.set_ylabel("MiB of one sequence")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def read(engine: Engine, policy: AttentionPolicy, num_tokens: int, request_id: str, information: bool) -> Cost:
    """Read random ids and write ``NUM_DECODED`` tokens; CPU seconds of the steps."""
    ids = tuple(random_ids(num_tokens, 512))
    sampling = SamplingParams(max_tokens=NUM_DECODED, seed=0)
    usage: RequestUsage | None = None
    prefill_seconds, decode_seconds = 0.0, []
    # Random ids may draw an end of text at once; then the few tokens are fewer.
    # A tenant of its own, so that nothing is reused; what is kept in passing is part of the cost.
    request = GenerationRequest(
        request_id, ids, sampling, tenant=request_id, measure_information=information, select_from=num_tokens
    )
    engine.submit(request)
    while usage is None:
        started = time.process_time()
        events = engine.step()
        seconds = time.process_time() - started
        record = engine.stats().last_step
        assert record is not None
        if record.phase == "prefill":
            prefill_seconds += seconds
        else:
            decode_seconds.append(seconds)
        usage = next((event.usage for event in events if event.usage is not None), None)
    return Cost(
        policy=policy.name.value,
        num_tokens=num_tokens,
        kv_bytes=usage.kv_bytes,
        state_bytes=usage.ssm_state_bytes + usage.conv_state_bytes,
        archive_bytes=usage.kv_archive_bytes,
        summary_bytes=usage.kv_summary_bytes,
        prefill_cpu_seconds_per_token=prefill_seconds / num_tokens,
        decode_cpu_seconds=statistics.median(decode_seconds) if decode_seconds else 0.0,
    )


if __name__ == "__main__":
    main()
