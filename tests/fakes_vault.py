"""For tests of the vault: snapshots by number, a model of it in memory, and a disk that fails when it is told to."""

import errno
import os
import random
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from model.cache.snapshot import BlockContent, Snapshot
from server.sessions.errors import SessionError
from server.sessions.manifest import Manifest
from server.sessions.vault import Vault

PARTS = {"weights": "w" * 8, "tokenizer": "t", "policy": "window", "dtype": "float32", "kernels": "reference"}
OTHER_PARTS = PARTS | {"kernels": "native"}
TENANT = "acme"


@lru_cache(maxsize=512)
def block(number: int, seed: int, dtype: torch.dtype) -> BlockContent:
    values = torch.randint(0, 256, (2, 2, 64, 1, 4, dtype.itemsize), dtype=torch.uint8, generator=_random(number, seed))
    keys, values = values.view(dtype).squeeze(-1)  # Any bits, hence also NaN and infinities.
    return BlockContent(keys.contiguous(), values.contiguous())


@lru_cache(maxsize=512)
def snapshot(num_tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Snapshot:
    """State of some history after so many tokens, under a window: the first block and the last three."""
    last = (num_tokens - 1) // 64
    generator = _random(num_tokens, seed)
    return Snapshot(
        num_tokens=num_tokens,
        ssm=torch.randn(2, 4, 8, generator=generator),
        conv=torch.randn(2, 3, 8, generator=generator),
        blocks={each: block(each, seed, dtype) for each in sorted({0, *range(max(0, last - 2), last + 1)})},
        hidden=torch.randn(8, generator=generator) if seed % 2 else None,
        information_bits=num_tokens * 1.1 if seed % 3 else None,
    )


def tokens(count: int, seed: int = 0) -> "array[int]":
    """A history; a shorter one of the same seed is its beginning."""
    return array("i", [zlib.crc32(b"%d.%d" % (seed, place)) % 65_536 for place in range(count)])


def same_tensor(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    """Bit for bit, NaN and the sign of nought included."""
    if left is None or right is None:
        return left is right
    is_alike = left.dtype == right.dtype and left.shape == right.shape
    return is_alike and torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def same_snapshot(left: Snapshot, right: Snapshot) -> bool:
    return (
        (left.num_tokens, left.information_bits) == (right.num_tokens, right.information_bits)
        and all(same_tensor(getattr(left, name), getattr(right, name)) for name in ("ssm", "conv", "hidden"))
        and sorted(left.blocks) == sorted(right.blocks)
        and all(
            same_tensor(left.blocks[number].keys, right.blocks[number].keys)
            and same_tensor(left.blocks[number].values, right.blocks[number].values)
            for number in left.blocks
        )
    )


def same_snapshots(left: tuple[Snapshot, ...], right: tuple[Snapshot, ...]) -> bool:
    return len(left) == len(right) and all(map(same_snapshot, left, right))


@dataclass(frozen=True)
class Expected:
    """What a session should be."""

    token_ids: "array[int]"
    version: int = 1
    snapshots: tuple[Snapshot, ...] = ()
    saved_version: int | None = None
    documents: tuple[str, ...] = ()


Change = Callable[[Vault], Any]


@dataclass
class Model:
    """The sessions of one tenant as they should be. Each method returns the change to make to a vault."""

    sessions: dict[str, Expected] = field(default_factory=dict)

    def copy(self) -> "Model":
        return Model(dict(self.sessions))

    def commit_turn(self, name: str, token_ids: "array[int]", documents: tuple[str, ...] = ()) -> Change:
        before = self.sessions.get(name)
        version = before.version if before else 0
        kept: tuple[Snapshot, ...] = ()
        if before:
            both = zip(before.token_ids, token_ids, strict=False)
            shared = next((place for place, (old, new) in enumerate(both) if old != new), len(before.token_ids))
            kept = tuple(each for each in before.snapshots if each.num_tokens <= shared)
        saved_version = before.saved_version if before and kept else None
        self.sessions[name] = Expected(token_ids, version + 1, kept, saved_version, documents)
        return lambda vault: vault.commit_turn(
            TENANT, name, token_ids, expected_version=version, fingerprint=PARTS, documents=documents
        )

    def save(self, name: str, snapshots: tuple[Snapshot, ...]) -> Change:
        before = self.sessions[name]
        version = before.version
        self.sessions[name] = Expected(before.token_ids, version + 1, snapshots, version + 1, before.documents)
        return lambda vault: vault.save(TENANT, name, snapshots, version)

    def fork(self, name: str, to: str) -> Change:
        self.sessions[to] = self.sessions[name]
        return lambda vault: vault.fork(TENANT, name, to)

    def delete(self, name: str) -> Change:
        del self.sessions[name]
        return lambda vault: vault.delete(TENANT, name)

    def differences(self, vault: Vault) -> list[str]:
        """What of the vault is not as it should be, read back from the disk."""
        found = {manifest.name: manifest for manifest in vault.manifests(TENANT)}
        names = [f"sessions {sorted(found)} for {sorted(self.sessions)}"] if set(found) != set(self.sessions) else []
        return names + [
            text
            for name, expected in self.sessions.items()
            if name in found
            for text in _differences(vault, found[name], expected)
        ]


def _differences(vault: Vault, manifest: Manifest, expected: Expected) -> Iterator[str]:
    if (manifest.version, manifest.saved_version) != (expected.version, expected.saved_version):
        yield f"{manifest.name} at {manifest.version}, {manifest.saved_version}, not {expected.version}"
    elif manifest.documents != expected.documents:
        yield f"{manifest.name} contains {manifest.documents}"
    elif vault.load_tokens(manifest) != expected.token_ids:
        yield f"{manifest.name} has other tokens"
    elif not same_snapshots(vault.load_snapshots(manifest), expected.snapshots):
        yield f"{manifest.name} has other state"


def random_change(model: Model, choose: random.Random) -> Change:
    """Some change to ``model``, and the same for a vault."""
    names = sorted(model.sessions)
    what = choose.choice(["turn", "turn", "save", "save", "fork", "delete"]) if names else "turn"
    name = choose.choice(names) if names else "s0"
    if what == "turn":
        if choose.random() < 0.3 and len(names) < 6:
            name = f"s{choose.randrange(100)}"
        before = model.sessions.get(name)
        length = (len(before.token_ids) if before else 0) + choose.randrange(1, 90)
        return model.commit_turn(name, tokens(length, choose.choice([0, 0, 0, 1])))
    if what == "save":
        length = len(model.sessions[name].token_ids)
        places = sorted({choose.randrange(1, length + 1), length})
        return model.save(name, tuple(snapshot(place, choose.randrange(3)) for place in places))
    if what == "fork":
        free = next(f"f{number}" for number in range(100) if f"f{number}" not in model.sessions)
        return model.fork(name, free)
    return model.delete(name)


CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir")
# A full disk still removes files.
WRITING_CALLS = ("open", "write", "fsync", "replace")


@dataclass
class Disk:
    """Counts the calls that change files, and fails the ``fail_at``-th of them, or all of ``lasting`` from there on."""

    fail_at: int | None = None
    code: int = errno.ENOSPC
    lasting: tuple[str, ...] = ()
    on_call: Callable[[int], None] = lambda number: None
    num_calls: int = 0
    has_failed: bool = False

    def call(self, name: str, path: Any) -> None:
        """One call is about to be made."""
        self.on_call(self.num_calls)
        number, self.num_calls = self.num_calls, self.num_calls + 1
        if self.fail_at is not None and (number == self.fail_at or (name in self.lasting and number > self.fail_at)):
            self.has_failed = True
            raise OSError(self.code, os.strerror(self.code), str(path) if not isinstance(path, int) else None)


@contextmanager
def on_disk(disk: Disk) -> Iterator[Disk]:
    """Let every change of a file inside pass by ``disk``. Nothing is synchronised, which makes tests quick."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _passing_by(disk, name, getattr(os, name)))
        yield disk


def _passing_by(disk: Disk, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(first: Any, *rest: Any, **options: Any) -> Any:
        disk.call(name, first)
        if name == "fsync":
            return None
        if name == "write":
            return real(first, rest[0][: max(700, len(rest[0]) // 2)])  # The rest has to be asked for again.
        return real(first, *rest, **options)

    return call


def named_error(error: BaseException) -> bool:
    """Whether the error is one of those that a person can act on."""
    return isinstance(error, SessionError) and bool(str(error))


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _random(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(seeds).encode()))
