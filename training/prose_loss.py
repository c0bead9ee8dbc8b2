"""What a reader pays for prose: bits a byte on held-out documents, and the loss against the place in one long text."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from training.corpus import is_held_out, records
from training.model import Reader
from training.rows import Rows

WIDTH = 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """The attention policy the checkpoint is served with."""

    sinks: int
    window: int


@torch.no_grad()
def losses(model: Reader, ids: list[int], policy: Policy, width: int = WIDTH) -> Iterator[Tensor]:
    """Nats of each token but the first, in pieces of at most `width`; memory does not depend on how many there are."""
    device = model.model.embed_tokens.weight.device
    carried = None
    width = min(width, policy.window)
    for first in range(0, len(ids) - 1, width):
        piece = torch.tensor(ids[first : first + width + 1], device=device)
        given, wanted = piece[: min(width, len(piece) - 1)][None], piece[1:]
        layout = Rows(given, torch.zeros_like(given), carried, sinks=policy.sinks, window=policy.window)
        hidden, _ = model(layout)
        carried = layout.left
        yield F.cross_entropy(model.logits(hidden[0]), wanted, reduction="none").cpu()


def held_out(data: Path, characters: int, seed: int = 0) -> list[str]:
    """Begins of held-out documents of every file, `characters` in all about, at most a tenth of that of one."""
    rng = random.Random(seed)
    files = sorted((data / "pretrain").glob("*.jsonl.xz"))
    chosen = []
    for file in files:
        found = [f"{r['title']}\n{r['text']}" for r in records(file) if is_held_out(r["title"])]
        rng.shuffle(found)
        budget = characters / len(files)
        for text in found:
            if budget <= 0:
                break
            chosen.append(text[: max(200, characters // 10)])
            budget -= len(chosen[-1])
    return chosen


def bits_per_byte(model: Reader, tokenizer: Tokenizer, texts: list[str], policy: Policy) -> dict[str, object]:
    """All bits over all bytes, with a 95 % bootstrap interval over documents."""
    rows = []
    for text in texts:
        ids = [1, *tokenizer.encode(text, add_special_tokens=False).ids]
        nats = sum(float(piece.sum()) for piece in losses(model, ids, policy))
        rows.append((nats / math.log(2), len(text.encode()), len(ids) - 1))
    table = np.array(rows)
    rng = np.random.default_rng(0)
    drawn = table[rng.integers(0, len(table), (2000, len(table)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    bits, num_bytes, num_tokens = table.sum(0)
    return {
        "bits_per_byte": [round(float(x), 4) for x in (bits / num_bytes, low, high)],
        "nats_per_token": round(float(bits * math.log(2) / num_tokens), 4),
        "num_documents": len(texts), "num_tokens": int(num_tokens), "num_bytes": int(num_bytes),
    }  # fmt: skip


def by_position(model: Reader, tokenizer: Tokenizer, data: Path, num_tokens: int, policy: Policy) -> dict[str, object]:
    """Nats a token over the octaves of positions of the haystack's books read as one text.

    Each octave's interval is a bootstrap over pieces of WIDTH tokens, or over tokens where it has but one.
    """
    ids, files = [1], sorted((data / "haystack").glob("*.txt"))
    for file in files:
        if len(ids) <= num_tokens:
            ids += tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False).ids
    pieces = list(losses(model, ids[: num_tokens + 1], policy))
    each = torch.cat(pieces).numpy()
    rng, rows = np.random.default_rng(0), []
    low = 0
    while low < len(each):
        high = max(256, 2 * low)
        part = each[low:high]
        blocks = np.array([block.mean() for block in np.array_split(part, max(1, len(part) // WIDTH))])
        sample = blocks if len(blocks) > 1 else part
        means = sample[rng.integers(0, len(sample), (1000, len(sample)))].mean(1)
        interval = [round(float(x), 4) for x in (part.mean(), *np.percentile(means, [2.5, 97.5]))]
        rows.append({"from": low, "to": low + len(part), "nats_per_token": interval})
        low = high
    return {"num_tokens": len(each), "rows": rows}


def plot_positions(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 3.4))
    places = [float(row["to"]) for row in rows]  # type: ignore[arg-type]
    values = np.array([row["nats_per_token"] for row in rows], dtype=float)
    axis.fill_between(places, values[:, 1], values[:, 2], alpha=0.25)
    axis.plot(places, values[:, 0], marker="o")
    axis.set_xscale("log", base=2)
    axis.set_ylim(0, values[:, 2].max() * 1.1)
    axis.set_xlabel("position, tokens (end of the octave)")
    axis.set_ylabel("loss, nats a token")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
