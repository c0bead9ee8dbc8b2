"""What is written about one session: its history, and the checkpoints whose state was saved, all by reference."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from model.policy import BLOCK_TOKENS
from server.sessions.errors import ManifestDamaged, ManifestTooNew
from server.sessions.segments import SegmentRef

# Raised by one whenever the body changes; MIGRATIONS[n] then makes a body of format n + 1 from one of format n.
FORMAT = 1
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

RUN_TOKENS = 16_384
RUN_BLOCKS = 16
# The frame around the body is the same in every format, so that damage is told from a later format.
FRAME = re.compile(rb'\{"format":([1-9][0-9]{0,8}),"checksum":"([0-9a-f]{64})","body":(\{.*\})\}\n', re.DOTALL)


@dataclass(frozen=True, slots=True)
class TokenRun:
    """The next ``num_tokens`` tokens of the history: ``RUN_TOKENS`` but for the last run."""

    segment: SegmentRef
    num_tokens: int


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Keys and values of ``blocks``, ascending logical block numbers with the same ``block // RUN_BLOCKS``."""

    segment: SegmentRef
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = self.blocks and self.blocks[0] >= 0 and list(self.blocks) == sorted(set(self.blocks))
        if not ascending or self.blocks[0] // RUN_BLOCKS != self.blocks[-1] // RUN_BLOCKS:
            raise ValueError(f"blocks {self.blocks} make no run")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A snapshot on the disk: what was remembered after the first ``num_tokens`` tokens, and bytes of its tensors. The
    blocks from the first to before the second of ``archived`` had left the window; tokens selected from position
    ``selected_from`` on."""

    num_tokens: int
    information_bits: float | None
    state: SegmentRef
    block_runs: tuple[BlockRun, ...]
    ssm_bytes: int
    conv_bytes: int
    kv_bytes: int
    archived: tuple[int, int] = (0, 0)
    kv_archive_bytes: int = 0
    selected_from: int | None = None

    def __post_init__(self) -> None:
        blocks = [block for run in self.block_runs for block in run.blocks]
        if blocks != sorted(set(blocks)) or any(block * BLOCK_TOKENS >= self.num_tokens for block in blocks):
            raise ValueError(f"blocks {blocks} are not those of {self.num_tokens} tokens")
        sizes = self.ssm_bytes, self.conv_bytes, self.kv_bytes, self.kv_archive_bytes
        if self.num_tokens < 1 or min(*sizes, self.selected_from or 0) < 0:
            raise ValueError("a checkpoint with counts below nought")
        if not set(range(*self.archived)) <= set(blocks):
            raise ValueError(f"blocks {self.archived} of the archive are not among {blocks}")
        if self.information_bits is not None and not isfinite(self.information_bits):
            raise ValueError(f"information_bits is {self.information_bits}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One session at one version. ``saved_version`` is the version whose state was saved, None without any.

    ``prelude_tokens`` of the history are the reading of a document, before the conversation. ``documents`` are the ids
    of those it contains. Times are seconds since 1970. Raises ValueError for counts that contradict each other.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    tenant: str
    name: str
    version: int
    created_at: float
    updated_at: float
    fingerprint: Mapping[str, str]
    num_tokens: int
    token_runs: tuple[TokenRun, ...]
    documents: tuple[str, ...]
    prelude_tokens: int
    checkpoints: tuple[SavedCheckpoint, ...]
    saved_version: int | None

    def __post_init__(self) -> None:
        key_of(self.tenant, self.name)
        lengths = [run.num_tokens for run in self.token_runs]
        if sum(lengths) != self.num_tokens or not all(0 < length <= RUN_TOKENS for length in lengths):
            raise ValueError(f"runs of {lengths} tokens for a history of {self.num_tokens}")
        if any(length != RUN_TOKENS for length in lengths[:-1]):
            raise ValueError(f"runs of {lengths} tokens are not full")
        places = [checkpoint.num_tokens for checkpoint in self.checkpoints]
        if places != sorted(set(places)) or max(places, default=0) > self.num_tokens:
            raise ValueError(f"checkpoints at {places} in a history of {self.num_tokens} tokens")
        saved_version = self.version if self.saved_version is None else self.saved_version
        if not 1 <= saved_version <= self.version:
            raise ValueError(f"version {self.version}, of which {self.saved_version} was saved")
        if not 0 <= self.prelude_tokens <= self.num_tokens:
            raise ValueError(f"a prelude of {self.prelude_tokens} tokens in a history of {self.num_tokens}")

    @property
    def key(self) -> str:
        """The stem of the manifest's file."""
        return key_of(self.tenant, self.name)

    @property
    def is_saved(self) -> bool:
        """Whether the state of this very version is saved."""
        return self.saved_version == self.version

    @property
    def segments(self) -> dict[str, SegmentRef]:
        """Every segment it refers to, once, by name."""
        refs = [run.segment for run in self.token_runs]
        for checkpoint in self.checkpoints:
            refs += [checkpoint.state, *(run.segment for run in checkpoint.block_runs)]
        return {ref.name: ref for ref in refs}

    @property
    def checksum(self) -> str:
        """SHA-256 over fingerprint, token ids and saved state, which the names of the segments stand for."""
        saved = [
            [each.num_tokens, each.state.name, *(run.segment.name for run in each.block_runs)]
            for each in self.checkpoints
        ]
        content = [dict(self.fingerprint), [run.segment.name for run in self.token_runs], saved]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self) -> bytes:
        """The manifest's file: JSON with the format, the checksum of the body, and the body."""
        body = _adapter().dump_json(self)
        return b'{"format":%d,"checksum":"%s","body":%s}\n' % (FORMAT, _checksum(FORMAT, body), body)


def key_of(tenant: str, name: str) -> str:
    """The stem of the file of a session: tenants and names may hold what file names may not.

    Raises ValueError for a tenant with a NUL, or text that UTF-8 cannot hold.
    """
    if "\0" in tenant:
        raise ValueError(f"tenant {tenant!r} has a NUL")
    return hashlib.sha256(f"{tenant}\0{name}".encode()).hexdigest()


def decode(path: Path, content: bytes) -> Manifest:
    """The manifest in ``content``, which was read from ``path``.

    Raises:
        ManifestDamaged: it is torn, altered, contradicts itself, or is that of another session.
        ManifestTooNew: it is whole, and of a format after ``FORMAT``.
    """
    frame = FRAME.fullmatch(content)
    if frame is None:
        raise ManifestDamaged(path, "is torn or altered: it does not have the form of a manifest")
    found, body = int(frame[1]), frame[3]
    if frame[2] != _checksum(found, body):
        raise ManifestDamaged(path, "was altered: its checksum differs")
    if found > FORMAT:
        raise ManifestTooNew(path, found, FORMAT)
    try:
        manifest = _adapter().validate_json(_migrate(found, body), strict=True)
    except (ValueError, KeyError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise ManifestDamaged(path, f"is no manifest of format {found}: {first}") from error
    if path.name.split(".")[0] != manifest.key:
        raise ManifestDamaged(path, f"is the manifest of another session, {manifest.name!r}")
    return manifest


def _migrate(found: int, body: bytes) -> bytes:
    if found == FORMAT:
        return body
    fields = json.loads(body)
    for number in range(found, FORMAT):
        fields = MIGRATIONS[number](fields)
    return json.dumps(fields).encode()


def _checksum(number: int, body: bytes) -> bytes:
    return hashlib.sha256(b"%d\n%s" % (number, body)).hexdigest().encode()


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
