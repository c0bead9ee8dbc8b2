"""Reads the training text. Every file is JSON lines under xz; nothing here is needed to install or run the server."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def data_directory(argument: str | None) -> Path:
    """The directory given on the command line, else FANO_TRAINING_DATA; exits with the remedy if unusable."""
    path = Path(argument or os.environ.get("FANO_TRAINING_DATA", ""))
    if not (path / "qa_train.jsonl.xz").is_file():
        raise SystemExit(f"no qa_train.jsonl.xz in {str(path)!r}: give --data or set FANO_TRAINING_DATA")
    return path


def records(path: Path) -> Iterator[dict[str, Any]]:
    """One dictionary per line of an xz-compressed JSON-lines file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def is_held_out(title: str) -> bool:
    """Whether the pretraining document of this title is kept for evaluation: one in 200, whatever file it stands in."""
    return int.from_bytes(hashlib.blake2b(title.encode(), digest_size=8).digest()) % 200 == 0


def text_sample(data: Path, characters: int, seed: int = 0) -> Iterator[str]:
    """Paragraphs for the tokenizer: pretraining documents and training questions, about `characters` in all."""
    rng = random.Random(seed)
    files = sorted((data / "pretrain").glob("*.jsonl.xz"))
    share = characters / (len(files) + 1)
    for file in files:
        taken = 0.0
        for record in records(file):
            if rng.random() < 0.3:
                for start in range(0, min(len(record["text"]), 20_000), 2_000):
                    piece = record["text"][start : start + 2_000]
                    taken += len(piece)
                    yield piece
            if taken > share:
                break
    taken = 0.0
    for record in records(data / "qa_train.jsonl.xz"):
        if rng.random() < 0.2:
            taken += len(record["context"]) + len(record["question"])
            yield record["context"]
            yield "Question: " + record["question"]
        if taken > share:
            break
