"""A history and its snapshots as segments, and back, bit for bit. torch is imported when a tensor is first met."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from model.policy import BLOCK_TOKENS
from server.sessions.errors import SegmentDamaged
from server.sessions.manifest import RUN_BLOCKS, RUN_TOKENS, BlockRun, SavedCheckpoint, TokenRun
from server.sessions.segments import RawTensor, SealedSegment, SegmentKind, Segments, seal

if TYPE_CHECKING:
    from torch import Tensor

    from model.cache.kv_archive import ArchivedBlock
    from model.cache.snapshot import BlockContent, Snapshot

KV_DTYPES = ("F32", "BF16")
Sealed = dict[str, SealedSegment]


def seal_tokens(token_ids: Sequence[int]) -> tuple[tuple[TokenRun, ...], Sealed]:
    """The history in runs, and their segments by name."""
    values = np.array(token_ids, dtype="<i4")
    runs: list[TokenRun] = []
    sealed: Sealed = {}
    for start in range(0, len(values), RUN_TOKENS):
        part = values[start : start + RUN_TOKENS]
        segment = seal(SegmentKind.TOKENS, {"token_ids": RawTensor("I32", part.shape, (part.tobytes(),))})
        runs.append(TokenRun(segment.ref, len(part)))
        sealed[segment.ref.name] = segment
    return tuple(runs), sealed


def open_tokens(segments: Segments, run: TokenRun) -> "array[int]":
    """The token ids of one run. Raises SegmentDamaged."""
    tensors = segments.read(run.segment, SegmentKind.TOKENS)
    is_as_told = list(tensors) == ["token_ids"] and tensors["token_ids"].dtype == "I32"
    if not is_as_told or tensors["token_ids"].shape != (run.num_tokens,):
        raise _other(segments, run.segment.name, f"{run.num_tokens} token ids", tensors)
    token_ids = array("i")
    token_ids.frombytes(tensors["token_ids"].pieces[0])
    return token_ids


class Packer:
    """Snapshots to segments. Runs of blocks that several snapshots share are looked at once."""

    def __init__(self) -> None:
        self.sealed: Sealed = {}
        self._runs: dict[tuple[tuple[int, int], ...], BlockRun] = {}

    def pack(self, snapshot: "Snapshot") -> SavedCheckpoint:
        """The snapshot by reference; ``sealed`` has its segments from now on. The tensors must outlive the packer."""
        tensors = {"ssm": _raw(snapshot.ssm), "conv": _raw(snapshot.conv)}
        if snapshot.hidden is not None:
            tensors["hidden"] = _raw(snapshot.hidden)
        state = self._keep(seal(SegmentKind.STATE, tensors))
        # What left the window stands beside what is in it: both are blocks of the text, which are named by their bytes.
        contents = dict(enumerate(snapshot.archive, snapshot.archive_place)) | dict(snapshot.blocks)
        return SavedCheckpoint(
            num_tokens=snapshot.num_tokens,
            information_bits=snapshot.information_bits,
            state=state.ref,
            block_runs=tuple(
                self._run({block: contents[block] for block in blocks})
                for _, blocks in groupby(sorted(contents), lambda block: block // RUN_BLOCKS)
            ),
            ssm_bytes=snapshot.ssm.nbytes,
            conv_bytes=snapshot.conv.nbytes,
            kv_bytes=sum(content.nbytes for content in snapshot.blocks.values()),
            archived=(snapshot.archive_place, snapshot.archive_place + len(snapshot.archive)),
            kv_archive_bytes=sum(content.nbytes for content in snapshot.archive),
            selected_from=snapshot.selected_from,
        )

    def _run(self, contents: Mapping[int, "BlockContent | ArchivedBlock"]) -> BlockRun:
        identity = tuple((block, id(content)) for block, content in contents.items())
        run = self._runs.get(identity)
        if run is None:
            blocks = tuple(contents)
            segment = self._keep(
                seal(
                    SegmentKind.BLOCKS,
                    {
                        "keys": _stacked([content.keys for content in contents.values()]),
                        "values": _stacked([content.values for content in contents.values()]),
                        "blocks": RawTensor("I32", (len(blocks),), (np.array(blocks, dtype="<i4").tobytes(),)),
                    },
                )
            )
            run = self._runs[identity] = BlockRun(segment.ref, blocks)
        return run

    def _keep(self, segment: SealedSegment) -> SealedSegment:
        return self.sealed.setdefault(segment.ref.name, segment)


class Unpacker:
    """Segments to snapshots. Runs that several snapshots share are read once, and their tensors are shared."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._contents: dict[BlockRun, dict[int, BlockContent]] = {}

    def unpack(self, checkpoint: SavedCheckpoint) -> "Snapshot":
        """The snapshot that was packed, every byte of it verified. Raises SegmentDamaged."""
        from model.cache.snapshot import Snapshot

        state = self._segments.read(checkpoint.state, SegmentKind.STATE)
        ranks = {name: (tensor.dtype, len(tensor.shape)) for name, tensor in state.items()}
        hidden = state.get("hidden")
        expected = {"ssm": ("F32", 3), "conv": ("F32", 3)} | ({} if hidden is None else {"hidden": ("F32", 1)})
        sizes = (checkpoint.ssm_bytes, checkpoint.conv_bytes)
        if ranks != expected or (state["ssm"].num_bytes, state["conv"].num_bytes) != sizes:
            raise _other(self._segments, checkpoint.state.name, f"states of {sizes} bytes", state)
        blocks: dict[int, BlockContent] = {}
        for run in checkpoint.block_runs:
            if run not in self._contents:
                self._contents[run] = self._read(run)
            blocks |= self._contents[run]
        archived = range(*checkpoint.archived)
        return Snapshot(
            num_tokens=checkpoint.num_tokens,
            ssm=_tensor(state["ssm"]),
            conv=_tensor(state["conv"]),
            blocks={block: content for block, content in blocks.items() if block not in archived},
            archive=tuple(blocks[block] for block in archived),
            archive_place=archived.start,
            selected_from=checkpoint.selected_from,
            hidden=None if hidden is None else _tensor(hidden),
            information_bits=checkpoint.information_bits,
        )

    def _read(self, run: BlockRun) -> dict[int, "BlockContent"]:
        from model.cache.snapshot import BlockContent

        tensors = self._segments.read(run.segment, SegmentKind.BLOCKS)
        told = f"keys and values of blocks {run.blocks}"
        if set(tensors) != {"keys", "values", "blocks"} or tensors["blocks"].dtype != "I32":
            raise _other(self._segments, run.segment.name, told, tensors)
        keys, values, blocks = tensors["keys"], tensors["values"], tensors["blocks"]
        is_alike = keys.dtype == values.dtype and keys.dtype in KV_DTYPES and keys.shape == values.shape
        is_of_blocks = len(keys.shape) == 5 and (keys.shape[0], keys.shape[2]) == (len(run.blocks), BLOCK_TOKENS)
        numbers = tuple(np.frombuffer(blocks.pieces[0], dtype="<i4").tolist())
        if not is_alike or not is_of_blocks or numbers != run.blocks:
            raise _other(self._segments, run.segment.name, told, tensors)
        stacks = zip(_tensor(keys), _tensor(values), strict=True)
        return {block: BlockContent(*pair) for block, pair in zip(run.blocks, stacks, strict=True)}


def num_shared(left: "array[int]", right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(left), len(right))
    differs = np.frombuffer(left, dtype=np.int32)[:length] != np.array(right[:length], dtype=np.int32)
    return int(differs.argmax()) if differs.any() else length


def _raw(tensor: "Tensor") -> RawTensor:
    return RawTensor(_dtype(tensor), tuple(tensor.shape), (_bytes(tensor),))


def _stacked(tensors: Sequence["Tensor"]) -> RawTensor:
    """The tensors one after another along a new first axis, without a copy."""
    first = tensors[0]
    assert all(each.shape == first.shape and each.dtype == first.dtype for each in tensors), "blocks are not alike"
    return RawTensor(_dtype(first), (len(tensors), *first.shape), tuple(_bytes(each) for each in tensors))


def _bytes(tensor: "Tensor") -> memoryview:
    import torch

    # numpy has no bfloat16, but bytes are bytes.
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _dtype(tensor: "Tensor") -> str:
    import torch

    return {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]


def _tensor(raw: RawTensor) -> "Tensor":
    import torch

    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[raw.dtype]
    if prod(raw.shape) == 0:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(raw.pieces[0], dtype=dtype).view(raw.shape)


def _other(segments: Segments, name: str, told: str, tensors: Mapping[str, RawTensor]) -> SegmentDamaged:
    found = ", ".join(f"{key} {tensor.dtype} {list(tensor.shape)}" for key, tensor in tensors.items())
    return SegmentDamaged(segments.path(name), f"is not what the manifest says: it has {found}, expected {told}")
