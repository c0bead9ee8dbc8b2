"""Trains over packed rows for a given time: prose first, readings more and more; the same on a CPU and on a GPU.

    python -m training.pretrain --packed packed --run runs/reader --minutes 28

Every `--save-minutes` the weights go to `last.pt` in the run's directory, weights alone: started again with the same
`--run`, or with `--start OTHER/last.pt`, training goes on from weights with a fresh optimizer and a warm-up.
log.jsonl, TensorBoard events and plot.png lie beside it.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.journal import Journal
from training.model import EMBEDDING_RMS, Reader, Shape
from training.rows import Carried, Rows
from training.shards import Document, Pack
from training.streams import Deck, Step, Streams
from training.train import optimizers, rate_factor
from training.warm_start import word_piece_embeddings

LOGIT_ROWS = 16_384  # rows of logits at once; the backward pass makes them again
POINTER, EVIDENCE = 0.3, 0.1  # weights of the added attention losses
PANELS = {
    "loss, nats a token": ("loss", "held_out_loss"), "attention losses": ("pointer", "evidence"),
    "tokens a second": ("tokens_per_second",), "learning rate": ("rate",),
}  # fmt: skip


def autocast(device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=torch.bfloat16)


def next_token_losses(model: Reader, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy [n] in nats of targets [n] after hidden [n, width]; logits are never all there at once."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        with autocast(rows.device):
            logits = model.logits(rows)
        return F.cross_entropy(logits.float(), wanted, reduction="none")

    pairs = zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
    return torch.cat([checkpoint(part, rows, wanted, use_reentrant=False) for rows, wanted in pairs])


def step_loss(model: Reader, step: Step, carried: Carried | None) -> tuple[Tensor, dict[str, Tensor], Carried]:
    """The loss of a step, its parts (tensors, so that nothing waits for the device), and what the next step carries."""
    layout = Rows(step.ids, step.documents, carried, step.looks)
    with autocast(step.ids.device):
        hidden, extra = model(layout)
    each = next_token_losses(model, hidden.flatten(0, 1), step.targets.flatten())
    weights = step.weights.flatten()
    # An answer's few tokens weigh 1 each beside passages of hundreds at 0.1; prose weighs 1 throughout.
    text = (each * weights).sum() / weights.sum().clamp(min=1)
    loss = text
    for name, weight in (("pointer", POINTER), ("evidence", EVIDENCE)):
        if name in extra:
            loss = loss + weight * extra[name]
    return loss, {"loss": text.detach(), **{name: value.detach() for name, value in extra.items()}}, layout.left


@torch.no_grad()
def held_out_loss(model: Reader, documents: list[Document], tokens: int, width: int, device: torch.device) -> float:
    """Nats a token on the begins of held-out documents, each read with its state carried; about `tokens` in all."""
    total, count = 0.0, 0
    for document in documents:
        if count >= tokens:
            break
        ids = torch.from_numpy(document.ids[: 4 * width + 1].astype(np.int64)).to(device)[None]
        carried = None
        for first in range(0, ids.shape[1] - 1, width):
            piece = ids[:, first : min(first + width, ids.shape[1] - 1)]
            layout = Rows(piece, torch.zeros_like(piece), carried)
            with autocast(device):
                hidden, _ = model(layout)
            wanted = ids[0, first + 1 : first + 1 + piece.shape[1]]
            total += float(next_token_losses(model, hidden[0], wanted).sum())
            count += len(wanted)
            carried = layout.left
    return total / max(1, count)


def operations_per_token(shape: Shape, model: Reader, keys: int) -> float:
    """Multiply-adds counted as two, forward and backward (three times forward), without what is computed again."""
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    head = shape.vocab * shape.hidden
    attention = 2 * keys * shape.hidden * sum(shape.is_attention(i) for i in range(shape.layers))
    return 6.0 * (matrices + head + attention)


def measured_rate(device: torch.device) -> float:
    """Operations a second of a large bf16 product on this device: the median of a few."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:])


def compiled(model: Reader) -> None:
    """Fuses what lies between the products and the scan; each layer has a graph of its own."""
    torch._dynamo.config.cache_size_limit = 8 + 4 * model.shape.layers
    for layer in model.model.layers:
        for name, block in layer.named_children():
            if name != "self_attn":
                block.compile()


def save(path: Path, model: Reader, state: dict[str, float]) -> None:
    """The weights alone, in fp32 and on the CPU, so that any machine can read them; whole or not at all."""
    scratch = path.with_suffix(".partial")
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    torch.save({"model": weights, "shape": model.shape.to_dict(), "state": state}, scratch)
    scratch.replace(path)


def begin(arguments: argparse.Namespace, shape: Shape, device: torch.device) -> tuple[Reader, dict[str, float]]:
    """The model of the run's last checkpoint, of `--start`, or a new one; and the counts it has come to."""
    torch.manual_seed(arguments.seed)
    last = arguments.run / "last.pt"
    source = last if last.exists() else arguments.start
    if source is not None:
        saved = torch.load(source, map_location=device)
        model = Reader(Shape(**saved["shape"])).to(device)
        model.load_state_dict(saved["model"])
        return model, saved["state"] if source == last else {"step": 0, "tokens": 0, "seconds": 0.0}
    model = Reader(shape)
    if not arguments.cold:
        tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
        model.model.embed_tokens.weight.data.copy_(word_piece_embeddings(tokenizer, shape.hidden, EMBEDDING_RMS))
    return model.to(device), {"step": 0, "tokens": 0, "seconds": 0.0}


def used(state: dict[str, float], arguments: argparse.Namespace) -> float:
    """The part of the run that is over."""
    if arguments.steps:
        return state["step"] / arguments.steps
    return state["seconds"] / (60 * arguments.minutes)


def pretrain(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains until `--minutes` of training time, or `--steps`, are used over all starts; returns the last record."""
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    pack = Pack.open(arguments.packed)
    vocab = pack.manifest["vocab"]
    assert isinstance(vocab, int)
    shape = Shape(
        vocab=vocab, hidden=arguments.hidden, layers=arguments.layers, period=arguments.period,
        offset=arguments.offset, heads=arguments.heads, kv_heads=arguments.kv_heads,
        feed_forward=arguments.feed_forward,
    )  # fmt: skip
    model, state = begin(arguments, shape, device)
    if arguments.compile:
        compiled(model)
    rng = np.random.default_rng([arguments.seed, int(state["step"])])
    decks = {kind: Deck(pack.documents(kind), arguments.longest, rng) for kind in ("prose", "reading")}
    held = pack.documents("held")
    streams = Streams(decks, arguments.rows, arguments.row_tokens, rng, device)
    steps_of = optimizers(model, arguments.matrix_rate, arguments.rate)
    journal = Journal(arguments.run)
    best_rate = measured_rate(device)
    needed = operations_per_token(model.shape, model, arguments.row_tokens)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {model.shape}, {device}")
    print(f"bf16 products: {best_rate / 1e12:.2f} T operations/s; a token needs {needed / 1e6:.1f} M", flush=True)
    carried: Carried | None = None
    parts: list[dict[str, Tensor]] = []
    since_start, began = 0, time.monotonic() - state["seconds"]
    saved_at = logged_at = time.monotonic()
    logged_tokens, record = state["tokens"], dict(state)
    while (progress := used(state, arguments)) < 1:
        reading = arguments.reading[0] + (arguments.reading[1] - arguments.reading[0]) * progress
        step = streams.step({"prose": 1 - reading, "reading": reading})
        loss, part, carried = step_loss(model, step, carried)
        for optimizer in steps_of:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.clip)
        factor = rate_factor(since_start, progress)
        for optimizer in steps_of:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
        parts.append(part)
        since_start += 1
        state["step"] += 1
        state["tokens"] += step.ids.numel()
        state["seconds"] = time.monotonic() - began
        over = used(state, arguments) >= 1
        if since_start % arguments.log_every == 0 or over:
            names = {name for part in parts for name in part}
            means = {name: float(torch.stack([p[name] for p in parts if name in p]).mean()) for name in sorted(names)}
            now = time.monotonic()
            speed = (state["tokens"] - logged_tokens) / (now - logged_at)
            record = state | means | {"rate": factor, "reading": reading, "tokens_per_second": speed}
            record["share_of_bf16_rate"] = speed * needed / best_rate
            if not math.isfinite(record["loss"]):
                raise SystemExit(f"the loss is {record['loss']} at step {state['step']}: start again with lower rates")
            if over or now - saved_at > 60 * arguments.save_minutes:
                record["held_out_loss"] = held_out_loss(
                    model, held, arguments.held_out_tokens, arguments.row_tokens, device
                )
                save(arguments.run / "last.pt", model, state)
                saved_at = now
            journal.write(record)
            logged_at, logged_tokens, parts = time.monotonic(), state["tokens"], []
    journal.plot(PANELS)
    journal.close()
    return record


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--packed", type=Path, default=Path("runs/packed"))
    result.add_argument("--run", type=Path, default=Path("runs/reader"))
    result.add_argument("--start", type=Path, help="a checkpoint to begin from when the run has none")
    result.add_argument("--tokenizer", type=Path, default=Path("weights/fano-reader/tokenizer.json"))
    result.add_argument("--minutes", type=float, default=28)
    result.add_argument("--steps", type=int, default=0, help="so many steps instead of --minutes")
    result.add_argument("--device", choices=("cpu", "cuda"))
    result.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves PyTorch's choice")
    result.add_argument("--compile", action="store_true")
    result.add_argument("--cold", action="store_true", help="random first embeddings, not MiniLM's")
    result.add_argument("--rows", type=int, default=32)
    result.add_argument("--row-tokens", type=int, default=2048, help="at most the attention window")
    result.add_argument("--longest", type=int, default=65_536, help="tokens of a document; random parts of longer ones")
    result.add_argument(
        "--reading", type=float, nargs=2, default=(0.15, 0.75), help="share of readings, first and last"
    )
    result.add_argument("--matrix-rate", type=float, default=3e-3)
    result.add_argument("--rate", type=float, default=2e-3)
    result.add_argument("--clip", type=float, default=1.0)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--log-every", type=int, default=20)
    result.add_argument("--save-minutes", type=float, default=4)
    result.add_argument("--held-out-tokens", type=int, default=32_768)
    for name, value in (("hidden", 384), ("layers", 8), ("period", 4), ("offset", 2), ("heads", 6), ("kv-heads", 2)):
        result.add_argument(f"--{name}", type=int, default=value)
    result.add_argument("--feed-forward", type=int, default=1024)
    return result


def main() -> None:
    # oneDNN keeps a program for every shape it has seen; lengths differ from step to step, and memory would not end.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    pretrain(parser().parse_args())


if __name__ == "__main__":
    main()
