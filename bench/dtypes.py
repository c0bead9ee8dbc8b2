"""The dtypes of the CPU path beside each other: their products, prefill and decode on the same random weights.

    python -m bench.dtypes                         28 M parameters, products of its shapes
    python -m bench.dtypes --checkpoint DIR        weights of one's own

One thread. The dtypes take turns within each round, so that a busy neighbour hits all; figures are medians over the
rounds of CPU seconds, which leave out waiting for a core, though not for memory that others use. Matrices of a product
are as many as a model has, so that the weights do not come from the nearest cache. Prints tables, then one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.precision import loaded
from bench.sides import SMALL, make_checkpoint
from bench.throughput import describe_machine
from model.batch import Batch, SequenceChunk
from model.cache.block_pool import TORCH_DTYPES, BlockPool, BlockTable
from model.cache.state_pool import StatePool
from model.config import Dtype
from model.hybrid import HybridLM
from model.kernels import Kernels, choose
from model.layers.matrix import Matrix
from model.policy import BLOCK_TOKENS

CHUNK_TOKENS = 512
PRODUCT_ROWS = (1, 4, 8, 32, 512)
PRODUCT_SHAPES = ((3072, 384), (384, 1536))
# Float32 bytes of the matrices that take turns, and multiplications and additions of one measurement.
PRODUCT_BYTES = 24 << 20
PRODUCT_OPERATIONS = 2e8
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 8192])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--steps", type=int, default=24, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels, reason = choose("cpu", 1)
    if kernels.product is None:
        raise SystemExit(f"int8 needs the native kernels: {reason}")
    machine = describe_machine(1)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    products = measure_products(kernels, options.rounds)
    with tempfile.TemporaryDirectory() as made:
        if options.checkpoint is None:
            make_checkpoint(Path(made), SMALL, seed=0)
        models = {dtype: loaded(options.checkpoint or Path(made), dtype, kernels) for dtype in Dtype}
    speeds = [prefill(models, length, options.rounds) for length in options.lengths]
    speeds += [decode(models, num_streams, options.steps, options.rounds) for num_streams in options.streams]
    sizes = {dtype.value: model.nbytes for dtype, model in models.items()}
    print("\nweights, bytes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    print(json.dumps({"machine": machine, "weight_bytes": sizes, "products": products, "speeds": speeds}))


def in_turns(work: dict[Dtype, Work], num_rounds: int, num_repeats: int = 1) -> dict[Dtype, float]:
    """Median CPU seconds of each."""
    seconds: dict[Dtype, list[float]] = {dtype: [] for dtype in work}
    for _ in range(num_rounds):
        for dtype, run in work.items():
            started = time.process_time()
            for _ in range(num_repeats):
                run()
            seconds[dtype].append((time.process_time() - started) / num_repeats)
    return {dtype: statistics.median(each) for dtype, each in seconds.items()}


def measure_products(kernels: Kernels, num_rounds: int) -> list[dict[str, object]]:
    print("\nproducts, GFLOP/s (GB/s of weights)")
    told = []
    for shape in PRODUCT_SHAPES:
        count = PRODUCT_BYTES // (4 * shape[0] * shape[1])
        matrices = {dtype: [random_matrix(shape, dtype, kernels) for _ in range(count)] for dtype in Dtype}
        for num_rows in PRODUCT_ROWS:
            x = torch.randn(num_rows, shape[1])
            operations = 2 * num_rows * shape[0] * shape[1]
            work: dict[Dtype, Work] = {dtype: partial(multiply, each, x) for dtype, each in matrices.items()}
            repeats = max(1, int(PRODUCT_OPERATIONS / operations / count))
            seconds = {dtype: each / count for dtype, each in in_turns(work, num_rounds, repeats).items()}
            rates = {dtype.value: operations / each / 1e9 for dtype, each in seconds.items()}
            reads = {dtype.value: matrices[dtype][0].weight.nbytes / each / 1e9 for dtype, each in seconds.items()}
            cells = "  ".join(f"{name} {rate:6.1f} ({reads[name]:5.1f})" for name, rate in rates.items())
            print(f"  {shape[0]:5} x {shape[1]:4}, {num_rows:3} rows   {cells}", flush=True)
            told.append({"shape": shape, "rows": num_rows, "gflops": rates, "weight_gbps": reads})
    return told


def multiply(matrices: Sequence[Matrix], x: Tensor) -> None:
    for matrix in matrices:
        matrix(x)


def random_matrix(shape: tuple[int, int], dtype: Dtype, kernels: Kernels) -> Matrix:
    matrix = Matrix(*shape, TORCH_DTYPES[dtype], kernels)
    matrix.fill(0.02 * torch.randn(shape))
    matrix.pack()
    return matrix


class Streams:
    """Sequences of one model that are read and decoded together."""

    def __init__(self, model: HybridLM, num_streams: int, num_tokens: int) -> None:
        self.model = model
        self.states = StatePool(model.config, num_streams)
        per_stream = -(-num_tokens // BLOCK_TOKENS)
        self.blocks = BlockPool(model.config, num_streams * per_stream, model.dtype)
        self.slots = [self.states.allocate() for _ in range(num_streams)]
        self.tables = [BlockTable(self.blocks) for _ in range(num_streams)]
        self.num_tokens = 0

    def step(self, ids: Sequence[int], *, is_decode: bool) -> None:
        """The same next tokens for all."""
        first, self.num_tokens = self.num_tokens, self.num_tokens + len(ids)
        chunks = []
        for slot, table in zip(self.slots, self.tables, strict=True):
            table.prepare(first, self.num_tokens)
            policy = self.model.config.policy
            chunks.append(SequenceChunk(list(ids), first, slot, table.blocks, policy, 1, is_decode=is_decode))
        self.model(Batch.pack(chunks), self.states, self.blocks)

    def read(self, num_tokens: int) -> None:
        for start in range(0, num_tokens, CHUNK_TOKENS):
            self.step(range(4, 4 + min(CHUNK_TOKENS, num_tokens - start)), is_decode=False)


def prefill(models: dict[Dtype, HybridLM], num_tokens: int, num_rounds: int) -> dict[str, object]:
    def run(model: HybridLM) -> None:
        Streams(model, 1, num_tokens).read(num_tokens)

    work: dict[Dtype, Work] = {dtype: partial(run, model) for dtype, model in models.items()}
    return told_speed(f"prefill of {num_tokens}", num_tokens, in_turns(work, num_rounds))


def decode(models: dict[Dtype, HybridLM], num_streams: int, num_steps: int, num_rounds: int) -> dict[str, object]:
    opened = {dtype: Streams(model, num_streams, 65 + num_steps * num_rounds) for dtype, model in models.items()}
    for streams in opened.values():
        streams.read(64)

    def run(streams: Streams) -> None:
        for _ in range(num_steps):
            streams.step([5], is_decode=True)

    work: dict[Dtype, Work] = {dtype: partial(run, streams) for dtype, streams in opened.items()}
    return told_speed(f"decode of {num_streams} streams", num_steps * num_streams, in_turns(work, num_rounds))


def told_speed(name: str, num_tokens: int, seconds: dict[Dtype, float]) -> dict[str, object]:
    rates = {dtype.value: num_tokens / each for dtype, each in seconds.items()}
    cells = "  ".join(f"{dtype} {rate:8.1f} ({rate / rates['bfloat16']:.2f})" for dtype, rate in rates.items())
    print(f"{name:22} tokens per CPU second (ratio to bfloat16)   {cells}", flush=True)
    return {"what": name, "tokens_per_cpu_second": rates}


if __name__ == "__main__":
    main()
