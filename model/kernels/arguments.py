"""What the native kernels are given: the structures of ``native/arguments.h``, field by field.

Addresses are those of contiguous tensors that outlive the structure.
"""

import ctypes
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, TypeVar

from torch import Tensor

from model.index_plan import IndexPlan
from model.policy import AttentionPolicy, PolicyName

Record = TypeVar("Record", bound=ctypes.Structure)

ADDRESS, INT64 = ctypes.c_void_p, ctypes.c_int64

# As what a matrix is held, by the bytes of one of its numbers.
WEIGHT_KINDS = {4: 0, 2: 1, 1: 2}

LAYER_MATRICES = ("in_proj", "out_proj", "gate_up", "down", "x_proj")
LAYER_VECTORS = ("dt_proj", "conv_weight", "conv_bias", "dt_norm", "b_norm", "c_norm", "dt_bias", "a", "d")


def as_array(table: Sequence[int]) -> "array[int]":
    """A block table that a native kernel can read: the table itself where it is one already."""
    return table if isinstance(table, array) else array("q", table)


@lru_cache(maxsize=256)
def array_of(structure: type[Record], count: int) -> "type[ctypes.Array[Record]]":
    """The type of ``count`` of them in a row. ctypes forgets one that is not held, and making it anew is slow."""
    return structure * count


class NativeLayer(ctypes.Structure):
    """Weights of one layer: matrices in strips of the model's kind, the rest float32; 0 for what its kind lacks."""

    _fields_: ClassVar = [
        ("is_attention", INT64),
        *((name, ADDRESS) for name in ("mixer_norm", "ffn_norm", *LAYER_MATRICES, *LAYER_VECTORS)),
    ]


class NativeModel(ctypes.Structure):
    """Geometry and weights of a model."""

    _fields_: ClassVar = [
        *((name, INT64) for name in ("weight_kind", "num_layers", "vocabulary", "width", "inner", "num_states")),
        *((name, INT64) for name in ("num_taps", "dt_rank", "ffn", "num_heads", "num_kv_heads", "head_width")),
        ("eps", ctypes.c_double),
        *((name, ADDRESS) for name in ("embedding", "head", "final_norm", "layers")),
    ]


class DecodedSequence(ctypes.Structure):
    """Where one sequence stands: its block table, and the two half-open ranges of positions it sees."""

    _fields_: ClassVar = [
        ("blocks", ADDRESS),
        ("num_blocks", INT64),
        ("range_start", INT64 * 2),
        ("range_end", INT64 * 2),
    ]


class AttendedSpan(ctypes.Structure):
    """One sequence of a step: its block table, the position of its first token, its policy's numbers, and where it
    selects the numbers of its blocks in the archive."""

    _fields_: ClassVar = [
        ("blocks", ADDRESS),
        *((name, INT64) for name in ("num_blocks", "first_position", "is_full", "sinks", "window")),
        ("archived", ADDRESS),
        *((name, INT64) for name in ("num_archived", "select", "select_from")),
        ("indexes", ADDRESS),
        ("num_indexes", INT64),
    ]


class NativeIndex(ctypes.Structure):
    """Means of neighbouring blocks in lists; see ``model.kernels.block_index.BlockIndex``."""

    _fields_: ClassVar = [
        *((name, ADDRESS) for name in ("centres", "starts", "means", "places")),
        ("num_strips", INT64),
    ]


class NativeArchive(ctypes.Structure):
    """Blocks that left the windows, and pairs of those that leave in this step and where they go."""

    _fields_: ClassVar = [
        *((name, ADDRESS) for name in ("memory", "file", "summaries")),
        *((name, INT64) for name in ("num_in_memory", "num_blocks", "num_layers", "num_leaving")),
        ("leaving", ADDRESS),
        *((name, INT64) for name in ("index_blocks", "num_lists", "num_probed", "num_late")),
    ]


class Attended(ctypes.Structure):
    """Queries over one layer's keys and values."""

    _fields_: ClassVar = [
        *((name, ADDRESS) for name in ("queries", "keys", "values", "out", "query_start", "spans")),
        *((name, INT64) for name in ("is_bf16", "query_stride", "num_sequences", "num_blocks")),
        *((name, INT64) for name in ("num_heads", "num_kv_heads", "head_width", "padded_width")),
        ("archive", ADDRESS),
        *((name, INT64) for name in ("layer", "num_places", "most_selected")),
    ]


class NativeStep(ctypes.Structure):
    """Tokens of several sequences, with the pools of all layers."""

    _fields_: ClassVar = [
        *((name, INT64) for name in ("num_tokens", "num_sequences", "num_decodes", "num_logits", "num_slots")),
        ("num_blocks", INT64),
        *((name, ADDRESS) for name in ("input_ids", "query_start", "state_slots", "kv_rows", "logits_rows")),
        *((name, ADDRESS) for name in ("sequences", "spans", "ssm", "conv", "keys", "values")),
        *((name, ADDRESS) for name in ("x", "hidden", "logits", "workspace", "archive")),
    ]


class NativeProduct(ctypes.Structure):
    """One product: rows of activations with a matrix in strips."""

    _fields_: ClassVar = [
        *((name, ADDRESS) for name in ("x", "matrix", "out")),
        *((name, INT64) for name in ("weight_kind", "x_stride", "num_tokens", "num_rows", "size")),
    ]


def native_span(
    table: "array[int]",
    first_position: int,
    policy: AttentionPolicy,
    archived: "array[int] | None" = None,
    select_from: int = 0,
    indexes: "array[int] | None" = None,
) -> AttendedSpan:
    """Where a sequence stands whose next token has ``first_position``, with the addresses of its ``indexes``; the
    tables must outlive the structure."""
    selects = policy.name is PolicyName.ARCHIVE and archived is not None
    return AttendedSpan(
        blocks=table.buffer_info()[0],
        num_blocks=len(table),
        first_position=first_position,
        is_full=policy.name is PolicyName.FULL,
        sinks=policy.sinks,
        window=policy.window,
        archived=archived.buffer_info()[0] if archived is not None and selects else None,
        num_archived=len(archived) if archived is not None and selects else 0,
        select=policy.select if selects else 0,
        select_from=select_from,
        indexes=indexes.buffer_info()[0] if indexes else None,
        num_indexes=len(indexes) if indexes else 0,
    )


def addresses_of(indexes: "Sequence[NativeIndex]") -> "array[int]":
    """Where they lie, as a span is told of them."""
    return array("q", [ctypes.addressof(each) for each in indexes])


def native_archive(
    memory: Tensor, file: Tensor, summaries: Tensor, leaving: "array[int]", plan: IndexPlan | None = None
) -> NativeArchive:
    """The archive with what leaves the windows in this step; see ``model.kernels.selection.ArchivedLayer``."""
    return NativeArchive(
        memory=memory.data_ptr(),
        file=file.data_ptr(),
        summaries=summaries.data_ptr(),
        num_in_memory=len(memory),
        num_blocks=summaries.shape[2],
        num_layers=summaries.shape[0],
        num_leaving=len(leaving) // 2,
        leaving=leaving.buffer_info()[0],
        index_blocks=0 if plan is None else plan.num_blocks,
        num_lists=0 if plan is None else plan.num_lists,
        num_probed=0 if plan is None else plan.num_probed,
        num_late=0 if plan is None else plan.num_late,
    )
