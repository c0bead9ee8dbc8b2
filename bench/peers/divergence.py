"""How far an engine's next-token distributions are from another's: KL divergence over the tokens of real text."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from bench.peers.engines import Floats

ROWS = 256


def token_ids(checkpoint: Path, texts: Sequence[Path], num_tokens: int) -> list[list[int]]:
    """The first ``num_tokens`` of each text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    read = [path.read_text(encoding="utf-8") for path in texts]
    return [tokenizer.encode(text, add_special_tokens=False).ids[:num_tokens] for text in read]


def divergence(wanted: Sequence[Floats], given: Sequence[Floats]) -> dict[str, float]:
    """Of logits [tokens, V] for each text: mean and 99th percentile in nats, and how often the first choice is one."""
    found, same = [], []
    for expected, actual in zip(wanted, given, strict=True):
        assert expected.shape == actual.shape, f"logits {actual.shape}, expected {expected.shape}"
        for start in range(0, len(expected), ROWS):
            p, q = (log_softmax(logits[start : start + ROWS]) for logits in (expected, actual))
            found.append((np.exp(p) * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
    every = np.sort(np.concatenate(found))
    assert np.isfinite(every).all(), "a distribution is not finite"
    return {
        "mean": float(every.mean()),
        "p99": float(every[math.ceil(0.99 * len(every)) - 1]),
        "same_choice": float(np.concatenate(same).mean()),
        "num_tokens": len(every),
    }


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide
