"""A CUDA device: parity first, then decode beside the bandwidth floor and prefill beside the matrix rate.

    python -m bench.gpu                 some minutes on one device; without one it says so and exits with 2
    python -m bench.gpu --short         its own bookkeeping with a tiny model on the CPU; no time of it is a result.
                                        With TRITON_INTERPRET=1 through Triton's kernels, interpreted

Before anything is timed, the kernels were tried beside their twins, and logits must be those of transformers' Jamba on
the same device. Limits are measured there in the same run: the bytes that a decode step must move over the rate of a
large copy, the products of a prompt's chunk over the rate of a large one in bfloat16; under policy archive, whose steps
are not replayed, the summaries that the host reads over its own rate come on top. Every number is predicted before it
is taken, from the targets. A sequence of a length is made by filling pools with random numbers: what a step costs
depends on how much is there and not on what. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu_archive import NARROW, fetched_of
from bench.gpu_limits import (
    ARCHIVE,
    GEOMETRIES,
    Case,
    Rates,
    Row,
    archive_cases,
    cases,
    limit_seconds,
    num_archived,
    predicted,
    values_of,
)
from bench.sides import TINY, make_checkpoint
from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.decode_graphs import DecodeGraphs
from model.hybrid import HybridLM
from model.kernels import Kernels, choose
from model.kernels.triton.loading import load_triton
from model.kernels.triton.tables import num_visible_blocks
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.weights import load_weights

SEED = 0
# Logits of both sides in units of their standard deviation, as in bench.throughput.
TOLERANCES = {Dtype.FLOAT32: 1e-3, Dtype.BFLOAT16: 0.15}
# A pool may take so much of what the device has free.
SHARE_OF_FREE = 0.8


def main() -> None:
    options = parse_options()
    if not options.short and not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device and torch sees none; --short checks its bookkeeping on the CPU")
        sys.exit(2)
    device = "cpu" if options.short else "cuda"
    config = ModelConfig.from_dict(values_of(options.geometry))
    kernels, reason = kernels_for(device, config, options.num_threads)
    print(f"kernels {kernels.name} ({reason})")
    differences = compare(device)
    for name, difference in differences.items():
        print(f"logits of {name}: {difference:.1e} standard deviations from transformers")
    rates = measure_rates(device, 64 if options.short else 8192, options.num_threads)
    print(
        f"copies {rates.copied_bytes_per_second / 1e9:.1f} GB/s, "
        f"multiplies {rates.multiplied_flops_per_second / 1e12:.2f} TFLOP/s in bfloat16, "
        f"the host reads {rates.host_bytes_per_second / 1e9:.1f} GB/s"
    )
    rows = measure(config, kernels, device, rates, options)
    if options.beside_transformers:
        rows += measure_transformers(options, config, device, rates)
    machine = describe(device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rounded = [asdict(row) for row in rows]
    result = {"bench": "gpu", "geometry": options.geometry, "kernels": kernels.name, "machine": machine}
    print(json.dumps(result | {"differences": differences, "rates": asdict(rates), "rows": rounded}))


def kernels_for(device: str, config: ModelConfig, num_threads: int = 1) -> tuple[Kernels, str]:
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        kernels, reason = load_triton(device, 1, config)
        assert kernels is not None, reason
        return kernels, reason
    return choose(device, num_threads, config)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a tiny model on the CPU, no claim about time")
    parser.add_argument("--geometry", choices=[*GEOMETRIES], default=None)
    parser.add_argument("--lengths", type=int, nargs="+", default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=None)
    parser.add_argument("--chunk-tokens", type=int, default=None)
    parser.add_argument("--num-threads", type=int, default=1, help="of the host, which chooses among what it holds")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--no-transformers", dest="beside_transformers", action="store_false")
    options = parser.parse_args()
    short = options.short
    options.geometry = options.geometry or ("tiny" if short else "3B")
    options.lengths = options.lengths or ([130, 300] if short else [4096, 65536, 262144, 1 << 20])
    options.batches = options.batches or ([1, 3] if short else [1, 8, 64])
    options.chunk_tokens = options.chunk_tokens or (70 if short else 8192)
    options.rounds = options.rounds or (1 if short else 20)
    return options


class World:
    """Pools in which sequences stand that have read as much as a case says."""

    def __init__(self, model: HybridLM, case: Case, device: str) -> None:
        self.model, self.case, self.device = model, case, device
        first, end = case.first_position, case.length
        window_block = case.policy.window_start(first) // BLOCK_TOKENS
        sink_blocks = case.policy.sinks // BLOCK_TOKENS if case.policy.name is not PolicyName.FULL else 0
        self.places = [
            place for place in range(-(-end // BLOCK_TOKENS)) if place < sink_blocks or place >= window_block
        ]
        self.states = StatePool(model.config, case.batch, device)
        self.fetched, self.held = fetched_of(model, case, device)
        archive = None if self.fetched is None else self.fetched.archive
        num_blocks = case.batch * len(self.places)
        self.blocks = BlockPool(model.config, num_blocks, model.dtype, device, archive, self.fetched)
        for pool in (self.states.ssm, self.states.conv, self.blocks.keys, self.blocks.values):
            pool.normal_(std=0.1)
        chunks = []
        for _ in range(case.batch):
            table = array("q", [-1]) * -(-end // BLOCK_TOKENS)
            for place, block in zip(self.places, self.blocks.allocate(len(self.places)), strict=True):
                table[place] = block
            ids = [SEED] * case.num_tokens
            slot = self.states.allocate()
            chunk = SequenceChunk(ids, first, slot, table, case.policy, is_decode=case.phase == "decode")
            # Those before the window, of which all sequences have the same: what is read is as much.
            archived = array("q", [-1] * sink_blocks + [*range(num_archived(case))])
            chunks.append(chunk if self.fetched is None else replace(chunk, archived=archived))
        self.batch = Batch.pack(chunks, device)

    @staticmethod
    def num_bytes(config: ModelConfig, dtype: Dtype, case: Case) -> int:
        """Bytes of the pools, before they are taken."""
        blocks = num_visible_blocks(case.first_position, case.policy) + case.num_tokens // BLOCK_TOKENS + 1
        per_sequence = config.state_bytes + blocks * BLOCK_TOKENS * config.kv_bytes_per_token(dtype)
        return case.batch * per_sequence

    def step(self) -> Tensor:
        return self.model(self.batch, self.states, self.blocks)


def measure(config: ModelConfig, kernels: Kernels, device: str, rates: Rates, options: argparse.Namespace) -> list[Row]:
    model = random_model(config, kernels, Dtype.BFLOAT16, device)
    rows = []
    print(f"\n{'side':20} {'phase':8} {'policy':30} {'batch':>5} {'length':>8} {'predicted':>13}   measured")
    selecting = archive_cases(options.lengths, options.batches, ARCHIVE if not options.short else NARROW)
    for case in cases(options.lengths, options.batches, options.chunk_tokens) + selecting:
        limit = limit_seconds(config, model.dtype, case, rates)
        row = row_of("fano", case, limit)
        rows.append(row)
        print_prediction(row)
        wanted = World.num_bytes(config, model.dtype, case)
        if wanted > SHARE_OF_FREE * free_bytes(device):
            row.reason = f"its pools would take {wanted / 1e9:.1f} GB"
            print(row.cell, flush=True)
            continue
        world = World(model, case, device)
        row.seconds = median_seconds(world.step, device, options.rounds if case.phase == "decode" else 3)
        print(row.cell, flush=True)
        if world.fetched is not None:
            # Queries change from step to step, as states do.
            print(f"  strips fetched {world.fetched.num_fetched}, found {world.fetched.num_found}", file=sys.stderr)
        elif case.phase == "decode":
            rows += replayed(row, world, options.rounds)
        del world
    return rows


def replayed(launched: Row, world: World, rounds: int) -> list[Row]:
    """The same step as a recording of it, over pools of its own size, if replayed steps agree with launched ones."""
    model, num_rows, device = world.model, world.case.batch, world.device
    spare = StatePool(model.config, num_rows + 1, device), BlockPool(model.config, 1, model.dtype, device)
    verified, reason = DecodeGraphs.verified(model, *spare, device, num_rows)
    if verified is None:
        print(f"  decode graphs are off: {reason}", file=sys.stderr)
        return []
    graphs = DecodeGraphs(model, world.states, world.blocks, verified.recorder, num_rows)
    row = replace(launched, side="fano, replayed", seconds=None)
    print_prediction(row)
    row.seconds = median_seconds(lambda: graphs.read(world.batch).logits, device, rounds)
    print(row.cell, flush=True)
    return [row]


def measure_transformers(options: argparse.Namespace, config: ModelConfig, device: str, rates: Rates) -> list[Row]:
    """transformers' Jamba of the same geometry at the shortest length, as it comes."""
    from transformers import JambaConfig, JambaForCausalLM, logging

    logging.set_verbosity_error()
    values = values_of(options.geometry) | {"num_experts": 1, "num_experts_per_tok": 1, "use_mamba_kernels": False}
    with torch.device(device):
        model = JambaForCausalLM(JambaConfig(**values)).to(torch.bfloat16).eval()
    rows = []
    length = min(options.lengths)
    for batch in options.batches:
        for phase, num_tokens in (("prefill", length), ("decode", 1)):
            case = Case(phase, AttentionPolicy(), batch, length, num_tokens)
            row = row_of("transformers", case, limit_seconds(config, Dtype.BFLOAT16, case, rates))
            rows.append(row)
            print_prediction(row)
            try:
                row.seconds = median_seconds(transformers_step(model, case, device), device, 3)
            except torch.OutOfMemoryError as error:
                row.reason = str(error).split(".")[0]
            print(row.cell, flush=True)
    return rows


def transformers_step(model: torch.nn.Module, case: Case, device: str) -> Callable[[], object]:
    ids = torch.full((case.batch, case.length), SEED, device=device)

    @torch.inference_mode()
    def prefill() -> object:
        return model(ids, use_cache=True, logits_to_keep=1)

    if case.phase == "prefill":
        return prefill
    with torch.inference_mode():
        cache = model(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def decode() -> object:
        return model(ids[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1)

    return decode


def compare(device: str) -> dict[str, float]:
    """Logits of a tiny checkpoint, prompt and single tokens, beside transformers' on the same device."""
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ids = torch.randint(4, 512, (78,), generator=torch.Generator().manual_seed(SEED)).tolist()
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), TINY, SEED)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        with torch.inference_mode():
            expected = theirs(torch.tensor([ids], device=device)).logits[0, 69:].float()
        config = ModelConfig.from_pretrained(Path(folder))
        kernels, _ = kernels_for(device, config)
        for dtype, tolerance in TOLERANCES.items():
            model = HybridLM(config, kernels, dtype, device)
            load_weights(model, Path(folder))
            states, blocks = StatePool(config, 1, device), BlockPool(config, 2, dtype, device)
            place = states.allocate(), array("q", blocks.allocate(2)), AttentionPolicy()
            steps = [SequenceChunk(ids[:70], 0, *place)]
            steps += [SequenceChunk([token], 70 + index, *place, 1, True) for index, token in enumerate(ids[70:])]
            found = torch.cat([model(Batch.pack([step], device), states, blocks) for step in steps])
            difference = float((found - expected).abs().max() / expected.std())
            assert difference <= tolerance, f"{dtype}: logits differ by {difference:.2e} standard deviations"
            differences[dtype.value] = difference
    return differences


def measure_rates(device: str, size: int, num_threads: int) -> Rates:
    source = torch.empty(size * size * 8, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device, 10)
    one, other = torch.randn(2, size, size, dtype=torch.bfloat16, device=device)
    product = median_seconds(lambda: one @ other, device, 10)
    memory = torch.ones(size * size, dtype=torch.int64)
    torch.set_num_threads(num_threads)
    read = median_seconds(memory.sum, "cpu", 5)
    return Rates(2 * source.nbytes / copy, 2 * size**3 / product, memory.nbytes / read)


def median_seconds(run: Callable[[], object], device: str, rounds: int) -> float:
    run()  # compiled, warm
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def random_model(config: ModelConfig, kernels: Kernels, dtype: Dtype, device: str) -> HybridLM:
    """Weights without a checkpoint; the bias of the time step as trained models have it."""
    model = HybridLM(config, kernels, dtype, device)
    torch.manual_seed(SEED)
    for name, weight in model.named_parameters():
        weight.normal_(std=0.02)
        if name.endswith(".a"):
            weight.copy_(-weight.abs() - 1)
        elif name.endswith("dt_bias"):
            weight.fill_(-5.0)
        elif "norm" in name:
            weight.fill_(1.0)
    return model


def row_of(side: str, case: Case, limit: float) -> Row:
    return Row(side, case.phase, str(case.policy), case.batch, case.length, limit, predicted(case, limit))


def print_prediction(row: Row) -> None:
    place = f"{row.side:20} {row.phase:8} {row.policy:30} {row.batch:5} {row.length:8}"
    print(f"{place} {row.predicted_seconds * 1e3:10.3f} ms", end="   ", flush=True)


def free_bytes(device: str) -> float:
    if device == "cpu":
        return float("inf")
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info()[0])


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def describe(device: str) -> dict[str, object]:
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(0)
    return {"device": name, "torch": version("torch"), "transformers": version("transformers"), "seed": SEED}


if __name__ == "__main__":
    main()
