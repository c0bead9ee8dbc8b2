"""Packed token files: documents end to end in shards of some megabytes, and a manifest that lists them.

A shard is an .npz of `ids` (uint16, all documents one after the other), `begins` (int64, one more than documents),
and for readings `weights` (uint8 per token: how much its prediction counts, in percent) and `looks` (int32 [n, 5]:
token, low, high, kind, weight in percent; `training.rows.Look` in numbers, token counted in the shard, low and high in
the document).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.rows import KINDS

FULL = 100


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids [n]; weights [n] in percent, or None where every token counts in full; looks [m, 5] as in a shard,
    with `token` counted from the document's begin."""

    ids: np.ndarray
    weights: np.ndarray | None = None
    looks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


class ShardWriter:
    """Collects documents of one kind and writes a shard whenever `shard_tokens` are together."""

    def __init__(self, directory: Path, kind: str, shard_tokens: int) -> None:
        self.directory, self.kind, self.shard_tokens = directory, kind, shard_tokens
        self.entries: list[dict[str, object]] = []
        self.waiting: list[Document] = []
        self.num_waiting = 0

    def add(self, document: Document) -> None:
        self.waiting.append(document)
        self.num_waiting += len(document)
        if self.num_waiting >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting, if anything is."""
        if not self.waiting:
            return
        begins = np.cumsum([0, *map(len, self.waiting)])
        arrays = {"ids": np.concatenate([d.ids for d in self.waiting]).astype(np.uint16), "begins": begins}
        if self.waiting[0].weights is not None:
            arrays["weights"] = np.concatenate([d.weights for d in self.waiting]).astype(np.uint8)
            looks = [d.looks + np.array([begin, 0, 0, 0, 0]) for d, begin in zip(self.waiting, begins, strict=False)]
            arrays["looks"] = np.concatenate(looks).astype(np.int32)
        path = self.directory / f"{self.kind}-{len(self.entries):03}.npz"
        np.savez_compressed(path, **arrays)
        content = path.read_bytes()
        self.entries.append(
            {"file": path.name, "kind": self.kind, "tokens": int(begins[-1]), "documents": len(self.waiting),
             "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        )  # fmt: skip
        self.waiting, self.num_waiting = [], 0


def shard_documents(path: Path) -> list[Document]:
    """The documents of a shard, as views of its arrays."""
    with np.load(path) as stored:
        shard = {name: stored[name] for name in stored.files}
    ids, begins, weights, looks = shard["ids"], shard["begins"], shard.get("weights"), shard.get("looks")
    documents = []
    for first, last in itertools.pairwise(begins):
        own, counted = None, None
        if looks is not None and weights is not None:
            low, high = np.searchsorted(looks[:, 0], (first, last))
            own = looks[low:high] - np.array([first, 0, 0, 0, 0], dtype=np.int32)
            counted = weights[first:last]
        documents.append(Document(ids[first:last], counted, own))
    return documents


def look_row(token: int, low: int, high: int, kind: str, weight: float = 1.0) -> tuple[int, int, int, int, int]:
    """One row of `looks`."""
    return token, low, high, KINDS.index(kind), round(FULL * weight)


@dataclass(frozen=True, slots=True)
class Pack:
    """A directory of shards: `manifest` as `training.prepare` wrote it."""

    directory: Path
    manifest: dict[str, object]

    @classmethod
    def open(cls, directory: Path) -> Pack:
        """Raises SystemExit with the remedy when there is no manifest."""
        file = directory / "manifest.json"
        if not file.is_file():
            raise SystemExit(f"no manifest.json in {str(directory)!r}: make it with python -m training.prepare")
        return cls(directory, json.loads(file.read_text(encoding="utf-8")))

    def entries(self, kind: str) -> Iterator[dict[str, object]]:
        shards = self.manifest["shards"]
        assert isinstance(shards, list)
        return (entry for entry in shards if entry["kind"] == kind)

    def documents(self, kind: str) -> list[Document]:
        """Documents of all shards of a kind that are here; a shard whose content is another is refused.

        Some of the shards may be missing, so that a part of the corpus can be used where it has not all arrived.
        """
        found: list[Document] = []
        for entry in self.entries(kind):
            path = self.directory / str(entry["file"])
            if not path.is_file():
                print(f"{path.name}: not here, left out")
                continue
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                raise SystemExit(f"{path}: not the content the manifest names; copy it again or prepare anew")
            found += shard_documents(path)
        return found


def write_manifest(directory: Path, writers: Iterable[ShardWriter], facts: dict[str, object]) -> None:
    shards = [entry for writer in writers for entry in writer.entries]
    text = json.dumps(facts | {"shards": shards}, indent=1)
    (directory / "manifest.json").write_text(text + "\n", encoding="utf-8")
