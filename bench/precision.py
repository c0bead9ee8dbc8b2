"""How far each dtype's next-token distributions are from float32's: mean KL divergence over real text.

    python -m bench.precision FILE...              texts in UTF-8; the embedded checkpoint, or another with --checkpoint
    python -m bench.precision --short              this repository's own pages; asserts what is claimed of int8

Beside Fano's dtypes stands the format q8_0 of llama.cpp, computed here: weights and activations in groups of 32 whose
largest magnitude becomes 127, scales in float16, all else float32; matrices whose rows are no whole groups stay as they
are. Every text is read from its start, a chunk at a time, under the checkpoint's own policy, each side given the same
tokens. Prints a table, then one JSON line.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.throughput import describe_machine
from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool, BlockTable
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.hybrid import HybridLM
from model.kernels import Kernels, choose
from model.policy import BLOCK_TOKENS
from model.tokenizer import Tokenizer
from model.weights import load_weights

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "weights" / "fano-reader"
SHORT_TEXTS = ("README.md", "ARCHITECTURE.md")
CHUNK_TOKENS = 512
Q8_0 = "q8_0"
Q8_0_GROUP = 32


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    tokenizer = Tokenizer(options.checkpoint)
    texts = [list(tokenizer.encode(path.read_text(encoding="utf-8")).ids)[: options.tokens] for path in options.texts]
    native, reason = choose("cpu", 1)
    if native.product is None:
        raise SystemExit(f"int8 needs the native kernels: {reason}")
    expected = list(all_logits(loaded(options.checkpoint, Dtype.FLOAT32, native), texts))
    sides = {dtype.value: loaded(options.checkpoint, dtype, native) for dtype in (Dtype.BFLOAT16, Dtype.INT8)}
    sides[Q8_0] = as_q8_0(options.checkpoint, native)
    rows = {name: compare(expected, all_logits(model, texts)) for name, model in sides.items()}
    print(f"{options.checkpoint.name}: {sum(map(len, texts))} tokens of {len(texts)} texts, beside float32")
    print(f"  {'':10} {'mean KL':>10} {'median':>10} {'99 %':>10} {'same first choice':>18}")
    for name, row in rows.items():
        print(f"  {name:10} {row['mean']:10.2e} {row['median']:10.2e} {row['p99']:10.2e} {row['same']:18.2%}")
    print(json.dumps({"machine": describe_machine(1), "checkpoint": options.checkpoint.name, "divergence": rows}))
    if options.short:
        assert rows["int8"]["mean"] <= rows[Q8_0]["mean"], f"int8 is further from float32 than q8_0: {rows}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED)
    parser.add_argument("--tokens", type=int, default=None, help="of each text; default 1000 in short, else 4096")
    options = parser.parse_args()
    if options.short == bool(options.texts):
        parser.error("name texts, or --short")
    options.tokens = options.tokens or (1000 if options.short else 4096)
    options.texts = options.texts or [ROOT / name for name in SHORT_TEXTS]
    return options


def loaded(checkpoint: Path, dtype: Dtype, kernels: Kernels) -> HybridLM:
    model = HybridLM(ModelConfig.from_pretrained(checkpoint), kernels, dtype)
    load_weights(model, checkpoint)
    return model


def as_q8_0(checkpoint: Path, kernels: Kernels) -> HybridLM:
    """The checkpoint with q8_0 products, layer by layer."""
    product = kernels.product
    assert product is not None

    def rounded_product(x: Tensor, matrix: Tensor, num_rows: int) -> Tensor:
        return product(round_q8_0(x), matrix, num_rows)

    model = loaded(checkpoint, Dtype.FLOAT32, replace(kernels, product=rounded_product, step=None))
    for matrix in model.matrices():
        matrix.fill(round_q8_0(matrix.plain.clone()))
    model.pack()
    return model


def round_q8_0(rows: Tensor) -> Tensor:
    """[n, size] float32 rounded to what q8_0 holds; as it is where ``size`` is no whole number of groups."""
    if rows.shape[1] % Q8_0_GROUP:
        return rows
    groups = rows.reshape(rows.shape[0], -1, Q8_0_GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(scale > 0, groups / scale, 0).round()
    return (whole * scale.half().float()).flatten(1)


@torch.inference_mode()
def all_logits(model: HybridLM, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Logits [tokens, V] after every token, text by text."""
    config = model.config
    for ids in texts:
        states, blocks = StatePool(config, 1), BlockPool(config, -(-len(ids) // BLOCK_TOKENS), model.dtype)
        slot, table, parts = states.allocate(), BlockTable(blocks), []
        for start in range(0, len(ids), CHUNK_TOKENS):
            chunk = ids[start : start + CHUNK_TOKENS]
            table.prepare(start, start + len(chunk))
            part = SequenceChunk(chunk, start, slot, table.blocks, config.policy, len(chunk), is_decode=False)
            parts.append(model(Batch.pack([part]), states, blocks))
        yield torch.cat(parts)


def compare(expected: Sequence[Tensor], found: Iterator[Tensor]) -> dict[str, float]:
    """KL divergence of ``found`` from ``expected`` in nats, over all tokens of all texts."""
    divergences, same = [], []
    for wanted, given in zip(expected, found, strict=True):
        for start in range(0, len(wanted), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            p, q = (logits[rows].double().log_softmax(-1) for logits in (wanted, given))
            divergences.append((p.exp() * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
    every = torch.cat(divergences).sort().values
    return {
        "mean": float(every.mean()),
        "median": float(every[len(every) // 2]),
        "p99": float(every[math.ceil(0.99 * len(every)) - 1]),
        "same": float(torch.cat(same).double().mean()),
    }


if __name__ == "__main__":
    main()
