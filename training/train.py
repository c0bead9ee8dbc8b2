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
from training.distil import Distiller
from training.examples import LENGTHS, SHARES, Encoder, Mixture, TreeSampler, cached_contexts
from training.export import starting_point
from training.forest import Forest
from training.model import EMBEDDING_RMS, Reader, Shape
from training.muon import Muon
from training.warm_start import grown, word_piece_embeddings


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


def mixture(arguments: argparse.Namespace) -> Mixture:
    return Mixture(
        SHARES | dict(arguments.share), dict(zip(LENGTHS, arguments.lengths, strict=True)), arguments.unanswerable,
        arguments.cloze,
    )  # fmt: skip


def share(text: str) -> tuple[str, float]:
    """`squad1.1=0.9`"""
    source, _, value = text.partition("=")
    if source not in SHARES:
        raise argparse.ArgumentTypeError(f"{source!r} is none of {', '.join(SHARES)}")
    return source, float(value)


def from_nothing(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Reader:
    shape = Shape(
        vocab=tokenizer.get_vocab_size(), hidden=arguments.hidden, layers=arguments.layers, period=arguments.period,
        offset=arguments.offset, heads=arguments.heads, kv_heads=arguments.kv_heads,
        feed_forward=arguments.feed_forward,
    )  # fmt: skip
    model = Reader(shape)
    model.model.embed_tokens.weight.data.copy_(word_piece_embeddings(tokenizer, shape.hidden, EMBEDDING_RMS))
    return model


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    encoder = Encoder(tokenizer)
    contexts = cached_contexts(data_directory(arguments.data), encoder, run.parent / "contexts.pickle")
    checkpoint = run / "last.pt"
    saved = torch.load(checkpoint) if checkpoint.exists() else None
    torch.manual_seed(arguments.seed)
    if saved is not None:
        model = Reader(Shape(**saved["shape"]))
        model.load_state_dict(saved["model"])
    elif arguments.start is not None:
        model = grown(starting_point(arguments.start), arguments.grow).train()
    else:
        model = from_nothing(arguments, tokenizer)
    model.dropout = arguments.dropout
    distiller = Distiller(model, tokenizer) if arguments.distil else None
    opts = optimizers(model, arguments.matrix_rate, arguments.rate)
    state = {"step": 0, "tokens": 0, "answers": 0, "seconds": 0.0}
    if saved is not None:
        for optimizer, kept in zip(opts, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        state = saved["state"]
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {model.shape}, from step {state['step']}"
    )
    if distiller is not None:  # its map starts anew with every call
        opts.append(torch.optim.AdamW(distiller.parameters(), lr=1e-3, weight_decay=0.0))
        opts[-1].param_groups[0]["peak"] = 1e-3
    sampler = TreeSampler(
        contexts, encoder, arguments.seed + int(state["step"]) + 7919 * arguments.rank, mixture(arguments)
    )
    join(arguments)
    clock = time.process_time if arguments.processor else time.monotonic
    began, saved_at, log = clock() - state["seconds"], time.monotonic(), []
    while (progress := state["seconds"] / (60 * arguments.minutes)) < 1:
        trees = sampler.step(arguments.step_tokens, progress)
        forest = Forest(trees, sampler.rng_for_rows(), root_rate=0.03, question_rate=0.15)
        loss, parts = losses(model, forest, 0 if progress > 0.8 else 2048)
        if distiller is not None:
            foretold = distiller.loss(trees)
            loss = loss + arguments.distil * foretold
            parts["distil"] = foretold.item()
        for optimizer in opts:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        tokens, answers, seconds = average(
            model, (len(forest), forest.num_answers, 0.0 if arguments.rank else clock() - began)
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
            save(checkpoint, model, opts[:2], state)
            if arguments.keep:
                save(run / f"step-{state['step']:06.0f}.pt", model, [], state)
            saved_at = time.monotonic()
    if arguments.rank == 0:
        save(checkpoint, model, opts[:2], state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--run", type=Path, default=Path("runs/reader"))
    parser.add_argument(
        "--start", type=Path, help="what to begin from when the run has nothing: an exported directory or a .pt"
    )
    parser.add_argument("--grow", type=int, default=0, help="layers to put into the middle of what --start names")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--distil", type=float, default=0.0, help="weight of foretelling MiniLM's hidden states")
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/fano-reader/tokenizer.json"))
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--processor", action="store_true",
                        help="count the time of the processor, so that runs beside other work compare")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step-tokens", type=int, default=3072)
    parser.add_argument("--matrix-rate", type=float, default=3e-3)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=share, nargs="*", default=[], metavar="SOURCE=SHARE")
    parser.add_argument("--lengths", type=float, nargs=len(LENGTHS), default=list(LENGTHS.values()), metavar="SHARE",
                        help=f"of {', '.join(LENGTHS)}")  # fmt: skip
    parser.add_argument("--unanswerable", type=float, default=0.1)
    parser.add_argument("--cloze", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--meeting", type=Path, default=Path("runs/meeting"), help="a file that is not there yet")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--keep", action="store_true", help="keep the weights of each save, for training.soup")
    parser.add_argument("--save-minutes", type=float, default=4)
    # oneDNN keeps a program for every shape it has seen; steps differ in length, and memory would not end.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    for name, value in (("hidden", 256), ("layers", 6), ("period", 2), ("offset", 1), ("heads", 4), ("kv-heads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--feed-forward", type=int, default=512)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
