"""What a sequence costs by its length: resident bytes, and prefill seconds per token, under each policy.

    python -m bench.length --checkpoint weights/fano-reader --lengths 4096 16384 65536 262144

The same engine reads prompts of each length in turn and writes a few tokens. Resident bytes are those of the tensors
that the sequence holds at its end, as ``usage.fano.resident_bytes`` reports them. Prints a table, then one JSON line.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

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
    prefill_cpu_seconds_per_token: float
    decode_cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fano-reader"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 262144])
    parser.add_argument("--longest-full", type=int, default=16384, help="policy full is not tried beyond this")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--information", action="store_true", help="also add up the surprisal of what is read")
    parser.add_argument("--dtype", choices=[*Dtype], default=Dtype.BFLOAT16)
    options = parser.parse_args()

    costs: list[Cost] = []
    for policy in (AttentionPolicy(PolicyName.WINDOW), AttentionPolicy(PolicyName.FULL)):
        lengths = [n for n in options.lengths if policy.name is PolicyName.WINDOW or n <= options.longest_full]
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
    print(f"{'policy':8} {'tokens':>8} {'kv bytes':>12} {'state bytes':>12} {'prefill µs/token':>18} {'decode ms':>10}")
    rows = []
    for policy_name, length in dict.fromkeys((cost.policy, cost.num_tokens) for cost in costs):
        same = [cost for cost in costs if (cost.policy, cost.num_tokens) == (policy_name, length)]
        row = asdict(same[0])
        for key in ("prefill_cpu_seconds_per_token", "decode_cpu_seconds"):
            row[key] = statistics.median(getattr(cost, key) for cost in same)
        rows.append(row)
        microseconds, milliseconds = row["prefill_cpu_seconds_per_token"] * 1e6, row["decode_cpu_seconds"] * 1e3
        print(f"{policy_name:8} {length:8} {row['kv_bytes']:12,} {row['state_bytes']:12,}", end=" ")
        print(f"{microseconds:18.1f} {milliseconds:10.2f}")
    print(
        json.dumps(
            {
                "bench": "length",
                "machine": machine,
                "dtype": options.dtype,
                "information": options.information,
                "rows": rows,
            }
        )
    )


def read(engine: Engine, policy: AttentionPolicy, num_tokens: int, request_id: str, information: bool) -> Cost:
    """Read random ids and write ``NUM_DECODED`` tokens; CPU seconds of the steps."""
    ids = tuple(random_ids(num_tokens, 512))
    sampling = SamplingParams(max_tokens=NUM_DECODED, seed=0)
    usage: RequestUsage | None = None
    prefill_seconds, decode_seconds = 0.0, []
    # Random ids may draw an end of text at once; then the few tokens are fewer.
    # A tenant of its own, so that nothing is reused; what is kept in passing is part of the cost.
    request = GenerationRequest(request_id, ids, sampling, tenant=request_id, measure_information=information)
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
        prefill_cpu_seconds_per_token=prefill_seconds / num_tokens,
        decode_cpu_seconds=statistics.median(decode_seconds) if decode_seconds else 0.0,
    )


if __name__ == "__main__":
    main()
