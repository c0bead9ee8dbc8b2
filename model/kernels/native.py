"""The native kernels behind the signatures of their reference twins: ctypes over the C ABI of ``native/fano.cpp``.

ctypes lets go of the interpreter lock during a call. Results do not depend on the number of threads.
"""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.arguments import (
    WEIGHT_KINDS,
    Attended,
    AttendedSpan,
    NativeModel,
    NativeProduct,
    NativeStep,
    addresses_of,
    array_of,
    as_array,
    native_archive,
    native_span,
)
from model.kernels.build import find_library
from model.kernels.selection import ArchivedLayer
from model.policy import BLOCK_TOKENS, AttentionPolicy
from model.tiles import padded_shape

ABI_VERSION = 8

POINTER, INT64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
SIGNATURES: dict[str, tuple[object, ...]] = {
    "fano_abi_version": (),
    "fano_best_isa": (),
    "fano_attend": (POINTER, POINTER, INT, INT),
    "fano_attend_workspace": (POINTER, INT),
    "fano_choose": (POINTER, POINTER, INT64, POINTER, INT, INT),
    "fano_step": (POINTER, POINTER, INT, INT),
    "fano_step_workspace": (POINTER, POINTER, INT),
    "fano_product": (POINTER, POINTER, INT, INT),
    "fano_product_workspace": (INT64, INT64),
    "fano_exp": (POINTER, POINTER, INT64, INT),
    "fano_conv": (POINTER, INT64, *[POINTER] * 6, *[INT64] * 5, INT, INT),
    "fano_scan": (
        *(POINTER, INT64, POINTER, INT64, POINTER, POINTER, POINTER, INT64, POINTER, INT64, POINTER, POINTER, INT64),
        *[POINTER] * 4,
        *[INT64] * 5,
        *(INT, INT),
    ),
}


class InstructionSet(IntEnum):
    """Widths the library was compiled for; the number is the library's own."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512VNNI = 3
    AVX512BF16 = 4


def load_native(num_threads: int, instruction_set: InstructionSet | None = None) -> tuple[Kernels | None, str]:
    """``(kernels, reason)`` for at most ``num_threads`` threads a call, or ``(None, reason)`` where they cannot be had.

    Takes the widest ``instruction_set`` the CPU has unless one is named. Raises ValueError for one the CPU lacks.
    """
    path = find_library()
    if path is None:
        return None, "the native kernels are not built; run `python -m model.kernels.build`"
    try:
        library = _open(path)
    except OSError as error:
        return None, f"the native kernels cannot be loaded ({error}); run `python -m model.kernels.build`"
    best = InstructionSet(library.fano_best_isa())
    chosen = best if instruction_set is None else instruction_set
    if chosen > best:
        raise ValueError(f"instruction_set is {chosen.name}, expected at most {best.name}, which is what this CPU has")
    native = NativeKernels(library, chosen, num_threads)
    name = f"native-{chosen.name.lower()}"
    recurrence = native.causal_conv, native.selective_scan
    kernels = Kernels(
        name, *recurrence, native.attend, native.product, native.step, num_threads, choose=native.chosen_places
    )
    return kernels, f"{name}: the widest this CPU has" if chosen is best else f"{name}: as asked"


@dataclass(frozen=True, slots=True)
class NativeKernels:
    """The library at one instruction set and number of threads. Contracts are those of ``model.kernels.reference``."""

    library: ctypes.CDLL
    instruction_set: InstructionSet
    num_threads: int

    def causal_conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor,
        query_start: Tensor,
        state_slots: Tensor,
    ) -> Tensor:
        """See :func:`model.kernels.reference.causal_conv`."""
        num_tokens, inner = x.shape
        num_taps = weight.shape[0]
        num_slots, num_sequences = state.shape[0], state_slots.shape[0]
        y = torch.empty((num_tokens, inner))
        refused = self.library.fano_conv(
            *_rows(x, num_tokens, inner),
            _whole(weight, num_taps, inner),
            None if bias is None else _whole(bias, inner),
            _whole(state, num_slots, num_taps - 1, inner),
            y.data_ptr(),
            _whole(query_start, num_sequences + 1, dtype=torch.int64),
            _whole(state_slots, num_sequences, dtype=torch.int64),
            num_tokens,
            num_sequences,
            num_slots,
            inner,
            num_taps,
            self.num_threads,
            self.instruction_set,
        )
        assert not refused, f"sequences {query_start.tolist()} in slots {state_slots.tolist()} do not fit {x.shape}"
        return y

    def selective_scan(
        self,
        u: Tensor,
        dt: Tensor,
        dt_bias: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        z: Tensor | None,
        state: Tensor,
        query_start: Tensor,
        state_slots: Tensor,
    ) -> Tensor:
        """See :func:`model.kernels.reference.selective_scan`."""
        num_tokens, inner = u.shape
        num_states = a.shape[0]
        num_slots, num_sequences = state.shape[0], state_slots.shape[0]
        y = torch.empty((num_tokens, inner))
        refused = self.library.fano_scan(
            *_rows(u, num_tokens, inner),
            *_rows(dt, num_tokens, inner),
            _whole(dt_bias, inner),
            _whole(a, num_states, inner),
            *_rows(b, num_tokens, num_states),
            *_rows(c, num_tokens, num_states),
            _whole(d, inner),
            *((None, 0) if z is None else _rows(z, num_tokens, inner)),
            _whole(state, num_slots, num_states, inner),
            y.data_ptr(),
            _whole(query_start, num_sequences + 1, dtype=torch.int64),
            _whole(state_slots, num_sequences, dtype=torch.int64),
            num_tokens,
            num_sequences,
            num_slots,
            inner,
            num_states,
            self.num_threads,
            self.instruction_set,
        )
        assert not refused, f"sequences {query_start.tolist()} in slots {state_slots.tolist()} do not fit {u.shape}"
        return y

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        query_start: Tensor,
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        policies: Sequence[AttentionPolicy],
        archive: ArchivedLayer | None = None,
    ) -> Tensor:
        """See :func:`model.kernels.reference.attend`. Which tokens are read together changes no bit."""
        num_tokens, num_heads, width = queries.shape
        num_blocks, block_tokens, num_kv_heads, _ = keys.shape
        assert block_tokens == BLOCK_TOKENS and queries.stride()[1:] == (width, 1), f"{keys.shape} {queries.stride()}"
        num_sequences = len(policies)
        wide = queries.float()
        out = torch.empty(queries.shape)
        tables = [as_array(table) for table in block_tables]
        places = tables, first_positions, policies
        kept = None
        if archive is not None:
            kept = native_archive(archive.memory, archive.file, archive.summaries, array("q"), archive.plan)
            archived = [as_array(table) for table in archive.tables]
            indexes = [
                addresses_of([index.native for index in each]) for each in archive.indexes or [()] * num_sequences
            ]
            selected = archived, archive.select_from, indexes
            spans = array_of(AttendedSpan, num_sequences)(*map(native_span, *places, *selected))
        else:
            spans = array_of(AttendedSpan, num_sequences)(*map(native_span, *places))
        attended = Attended(
            queries=wide.data_ptr(),
            keys=_whole(keys, *keys.shape, dtype=queries.dtype),
            values=_whole(values, *keys.shape, dtype=queries.dtype),
            out=out.data_ptr(),
            query_start=_whole(query_start, num_sequences + 1, dtype=torch.int64),
            spans=ctypes.addressof(spans),
            is_bf16=queries.dtype == torch.bfloat16,
            query_stride=wide.stride(0),
            num_sequences=num_sequences,
            num_blocks=num_blocks,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_width=width,
            archive=None if kept is None else ctypes.addressof(kept),
            layer=0 if archive is None else archive.layer,
        )
        num_floats = self.library.fano_attend_workspace(ctypes.addressof(attended), self.num_threads)
        workspace = torch.empty(num_floats, dtype=torch.float32)
        refused = int(query_start[-1]) != num_tokens or self.library.fano_attend(
            ctypes.addressof(attended), workspace.data_ptr(), self.num_threads, self.instruction_set
        )
        assert not refused, f"sequences {query_start.tolist()} from {first_positions} do not fit {queries.shape}"
        return out.to(queries.dtype)

    def chosen_places(
        self,
        queries: Tensor,
        query_start: Tensor,
        first_positions: Sequence[int],
        policies: Sequence[AttentionPolicy],
        archive: ArchivedLayer,
    ) -> Tensor:
        """See :func:`model.kernels.selection.chosen_places`. Chosen is what ``attend`` sees."""
        num_tokens, num_heads, width = queries.shape
        assert archive.plan is None, "every summary is scanned here"
        num_kv_heads, most = archive.summaries.shape[1], max(policy.select for policy in policies)
        wide = queries.float()
        places = torch.empty((num_tokens, num_kv_heads, most), dtype=torch.int32)
        kept = native_archive(archive.memory, archive.file, archive.summaries, array("q"))
        archived = [as_array(table) for table in archive.tables]
        # What lies on the device is not looked at.
        spans = array_of(AttendedSpan, len(policies))(
            *map(native_span, [array("q")] * len(policies), first_positions, policies, archived, archive.select_from)
        )
        asked = Attended(
            queries=_whole(wide, num_tokens, num_heads, width),
            query_start=_whole(query_start, len(policies) + 1, dtype=torch.int64),
            spans=ctypes.addressof(spans),
            is_bf16=archive.summaries.dtype == torch.bfloat16,
            query_stride=wide.stride(0),
            num_sequences=len(policies),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_width=width,
            archive=ctypes.addressof(kept),
            layer=archive.layer,
        )
        workspace = torch.empty(self.library.fano_attend_workspace(ctypes.addressof(asked), self.num_threads))
        refused = int(query_start[-1]) != num_tokens or self.library.fano_choose(
            ctypes.addressof(asked), places.data_ptr(), most, workspace.data_ptr(), self.num_threads,
            self.instruction_set,
        )  # fmt: skip
        assert not refused, f"sequences {query_start.tolist()} from {first_positions} choose what is not in the archive"
        return places

    def product(self, x: Tensor, matrix: Tensor, num_rows: int) -> Tensor:
        """[T, in] float32, of any row stride, by a matrix in strips of ``num_rows`` outputs -> [T, out] float32.

        The specification is ``x @ matrix.T`` of the matrix as it was before it was packed; see
        :class:`model.layers.matrix.Matrix`.
        """
        num_tokens, size = x.shape
        out = torch.empty((num_tokens, num_rows))
        address, stride = _rows(x, num_tokens, size)
        assert matrix.shape == padded_shape(num_rows, size, matrix.itemsize), f"{matrix.shape} for {num_rows} x {size}"
        kind = WEIGHT_KINDS[matrix.itemsize]
        product = NativeProduct(address, matrix.data_ptr(), out.data_ptr(), kind, stride, num_tokens, num_rows, size)
        workspace = torch.empty(self.library.fano_product_workspace(num_tokens, size))
        self.library.fano_product(
            ctypes.addressof(product), workspace.data_ptr(), self.num_threads, self.instruction_set
        )
        return out

    def step(self, model: NativeModel, step: NativeStep, num_threads: int, workspace: Tensor) -> Tensor:
        """A step of any tokens through the whole model on ``num_threads``. Mutates the pools of ``step``.

        Works in ``workspace``, float32, or in a new one where that is too small; returns the one it used. The
        specification is :meth:`model.hybrid.HybridLM.read` through the layers.
        """
        addresses = ctypes.addressof(model), ctypes.addressof(step)
        num_floats = self.library.fano_step_workspace(*addresses, num_threads)
        if workspace.numel() < num_floats:
            workspace = torch.empty(num_floats)
        step.workspace = workspace.data_ptr()
        refused = self.library.fano_step(*addresses, num_threads, self.instruction_set)
        assert not refused, "the step does not fit the model and its pools"
        return workspace


@cache
def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, argument_types in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = argument_types, INT64 if name.endswith("_workspace") else INT
    version = library.fano_abi_version()
    if version != ABI_VERSION:
        raise OSError(f"{path} has ABI version {version}, expected {ABI_VERSION}")
    return library


def _rows(tensor: Tensor, num_rows: int, width: int) -> tuple[int, int]:
    """Address and row stride of [num_rows, width] float32 whose rows are contiguous."""
    assert tensor.shape == (num_rows, width) and tensor.dtype == torch.float32, f"{tensor.shape} {tensor.dtype}"
    row_stride, stride = tensor.stride()
    assert stride == 1 or width == 1, f"neighbouring channels are {stride} apart"
    return tensor.data_ptr(), row_stride


def _whole(tensor: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> int:
    """Address of a contiguous tensor of this shape."""
    assert tensor.shape == shape and tensor.dtype == dtype, f"{tensor.shape} {tensor.dtype}, expected {shape} {dtype}"
    assert tensor.is_contiguous(), f"strides {tensor.stride()} of {shape}"
    return tensor.data_ptr()
