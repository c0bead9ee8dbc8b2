"""Trains the reader on the CPU for a given time; stops and resumes at any checkpoint.

python -m training.train --data DATA --run runs/reader --minutes 80
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed
from torch.nn import functional as F

from training.corpus import data_directory
from training.examples import Encoder, TreeSampler, cached_contexts
from training.forest import Forest
from training.model import EMBEDDING_RMS, Reader, Shape
from training.muon import Muon
from training.warm_start import word_piece_embeddings


def optimizers(model: Reader, matrix_rate: float, rate: float) -> list[torch.optim.Optimizer]:
    matrices, embeddings, others = [], [], []
    for name, parameter in model.named_parameters():
        if "embed" in name:
            embeddings.append(parameter)
        elif parameter.ndim == 2 and name.endswith("proj.weight") and min(parameter.shape) > 16:
            matrices.append(parameter)
        else:
            others.append(parameter)
    adam = torch.optim.AdamW(
        [
            {"params": embeddings, "lr": rate, "weight_decay": 0.0},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    result = [Muon(matrices, matrix_rate, 0.95, 0.05), adam]
    for optimizer in result:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return result


def rate_factor(step: int, progress: float) -> float:
    """Warm-up over 50 steps, constant to 45 % of the time, then linear to 4 %."""
    return min(1.0, (step + 1) / 50, max(0.04, 1 - 0.96 * (progress - 0.45) / 0.55))


def losses(model: Reader, forest: Forest, negatives: int = 0) -> tuple[Tensor, dict[str, float]]:
    """The weighted loss, and its parts for the log.

    With `negatives` the softmax runs over the tokens of this step and so many random others, which costs a fifth.
    """
    table, targets = model.model.embed_tokens.weight, forest.targets
    correction: Tensor | float = 0.0
    if negatives:
        kept, first = torch.unique(
            torch.cat([forest.ids, torch.randint(len(table), (negatives,))]), return_inverse=True
        )
        present = torch.zeros(len(kept), dtype=torch.bool)
        present[first[: len(forest)]] = True
        others = max(1, len(kept) - int(present.sum()))
        # Each of the others stands for all the tokens that were left out.
        correction = torch.where(present, 0.0, math.log((len(table) - len(kept) + others) / others))
        table, targets = table[kept], torch.searchsorted(kept, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, extra = model(forest)
        logits = F.linear(hidden[forest.rows], table)
    each = F.cross_entropy(logits.float() + correction, targets, reduction="none")
    answer, other = each[forest.is_answer], each[~forest.is_answer]
    loss = answer.mean()
    parts = {"answer": loss.item()}
    if len(other):
        loss = loss + 0.15 * other.mean()
        parts["text"] = other.mean().item()
    for name, weight in (("pointer", 0.6), ("evidence", 0.3)):
        if name in extra:
            loss = loss + weight * extra[name]
            parts[name] = extra[name].item()
    return loss, parts


def join(arguments: argparse.Namespace) -> None:
    """Meets the other workers, if there are any. One thread each waits less for a busy machine than many in step."""
    if arguments.workers > 1:
        distributed.init_process_group(
            "gloo", f"file://{arguments.meeting.resolve()}", rank=arguments.rank, world_size=arguments.workers
        )


def average(model: Reader, counts: tuple[float, ...]) -> tuple[float, ...]:
    """In place: gradients become their mean over the workers. Returns the sums of the counts."""
    if not distributed.is_initialized():
        return counts
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor(counts)])
    distributed.all_reduce(flat)
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient)).div_(distributed.get_world_size())
        at += gradient.numel()
    return tuple(flat[at:].tolist())


def save(path: Path, model: Reader, opts: list[torch.optim.Optimizer], state: dict[str, float]) -> None:
    scratch = path.with_suffix(".partial")
    everything = {"model": model.state_dict(), "shape": model.shape.to_dict(), "state": state}
    torch.save(everything | {"optimizers": [o.state_dict() for o in opts]}, scratch)
    scratch.replace(path)


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    encoder = Encoder(tokenizer)
    contexts = cached_contexts(data_directory(arguments.data), encoder, run.parent / "contexts.pickle")
    checkpoint = run / "last.pt"
    source = checkpoint if checkpoint.exists() else arguments.start
    saved = None if source is None else torch.load(source)
    shape = Shape(
        vocab=tokenizer.get_vocab_size(), hidden=arguments.hidden, layers=arguments.layers, period=arguments.period,
        offset=arguments.offset, heads=arguments.heads, kv_heads=arguments.kv_heads,
        feed_forward=arguments.feed_forward,
    ) if saved is None else Shape(**saved["shape"])  # fmt: skip
    torch.manual_seed(arguments.seed)
    model = Reader(shape)
    opts = optimizers(model, arguments.matrix_rate, arguments.rate)
    state = {"step": 0, "tokens": 0, "answers": 0, "seconds": 0.0}
    if saved is None:
        model.model.embed_tokens.weight.data.copy_(word_piece_embeddings(tokenizer, shape.hidden, EMBEDDING_RMS))
    else:
        model.load_state_dict(saved["model"])
    if saved is not None and source == checkpoint:
        for optimizer, kept in zip(opts, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        state = saved["state"]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {shape}, from step {state['step']}")
    sampler = TreeSampler(contexts, encoder, arguments.seed + int(state["step"]) + 7919 * arguments.rank)
    join(arguments)
    began, saved_at, log = time.monotonic() - state["seconds"], time.monotonic(), []
    while (progress := state["seconds"] / (60 * arguments.minutes)) < 1:
        forest = Forest(
            sampler.step(arguments.step_tokens, progress), sampler.rng_for_rows(), root_rate=0.03, question_rate=0.15
        )
        loss, parts = losses(model, forest, 0 if progress > 0.8 else 2048)
        for optimizer in opts:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        tokens, answers, seconds = average(
            model, (len(forest), forest.num_answers, 0.0 if arguments.rank else time.monotonic() - began)
        )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        factor = rate_factor(int(state["step"]), progress)
        for optimizer in opts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
        state["step"] += 1
        state["tokens"] += tokens
        state["answers"] += answers
        state["seconds"] = seconds
        log.append(parts | {"norm": float(norm)})
        if state["step"] % arguments.log_every == 0 and arguments.rank == 0:
            mean = {k: round(sum(p.get(k, 0.0) for p in log) / len(log), 3) for k in log[-1]}
            record = {k: round(v, 1) for k, v in state.items()} | mean | {"lr": round(factor, 3)}
            print(json.dumps(record), flush=True)
            log = []
        if time.monotonic() - saved_at > 60 * arguments.save_minutes and arguments.rank == 0:
            save(checkpoint, model, opts, state)
            saved_at = time.monotonic()
    if arguments.rank == 0:
        save(checkpoint, model, opts, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--run", type=Path, default=Path("runs/reader"))
    parser.add_argument("--start", type=Path, help="a checkpoint to begin from when the run has none")
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/fano-reader/tokenizer.json"))
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step-tokens", type=int, default=3072)
    parser.add_argument("--matrix-rate", type=float, default=3e-3)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--meeting", type=Path, default=Path("runs/meeting"), help="a file that is not there yet")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-minutes", type=float, default=4)
    # oneDNN keeps a program for every shape it has seen; steps differ in length, and memory would not end.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    for name, value in (("hidden", 256), ("layers", 6), ("period", 2), ("offset", 1), ("heads", 4), ("kv-heads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--feed-forward", type=int, default=512)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
