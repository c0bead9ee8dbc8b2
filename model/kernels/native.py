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
from model.kernels.arguments import Attended, AttendedSpan, DecodedModel, DecodedStep, as_array
from model.kernels.build import find_library
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

ABI_VERSION = 3

POINTER, INT64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
SIGNATURES: dict[str, tuple[object, ...]] = {
    "fano_abi_version": (),
    "fano_best_isa": (),
    "fano_attend": (POINTER, POINTER, INT, INT),
    "fano_attend_workspace": (INT64, INT64, INT64, INT),
    "fano_decode": (POINTER, POINTER, INT, INT),
    "fano_decode_workspace": (POINTER, POINTER, INT),
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
    AVX512BF16 = 3


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
    kernels = Kernels(name, native.causal_conv, native.selective_scan, native.attend, native.decode, num_threads)
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
    ) -> Tensor:
        """See :func:`model.kernels.reference.attend`. Which tokens are read together changes no bit."""
        num_tokens, num_heads, width = queries.shape
        num_blocks, block_tokens, num_kv_heads, _ = keys.shape
        assert block_tokens == BLOCK_TOKENS and queries.stride()[1:] == (width, 1), f"{keys.shape} {queries.stride()}"
        num_sequences = len(policies)
        out = torch.empty(queries.shape, dtype=queries.dtype)
        tables = [as_array(table) for table in block_tables]
        spans = (AttendedSpan * num_sequences)(*map(_span, tables, first_positions, policies))
        workspace = torch.empty(
            self.library.fano_attend_workspace(num_heads, num_kv_heads, width, self.num_threads), dtype=torch.float32
        )
        attended = Attended(
            queries=queries.data_ptr(),
            keys=_whole(keys, *keys.shape, dtype=queries.dtype),
            values=_whole(values, *keys.shape, dtype=queries.dtype),
            out=out.data_ptr(),
            query_start=_whole(query_start, num_sequences + 1, dtype=torch.int64),
            spans=ctypes.addressof(spans),
            is_bf16=queries.dtype == torch.bfloat16,
            query_stride=queries.stride(0),
            num_sequences=num_sequences,
            num_blocks=num_blocks,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_width=width,
        )
        refused = int(query_start[-1]) != num_tokens or self.library.fano_attend(
            ctypes.addressof(attended), workspace.data_ptr(), self.num_threads, self.instruction_set
        )
        assert not refused, f"sequences {query_start.tolist()} from {first_positions} do not fit {queries.shape}"
        return out

    def decode(self, model: DecodedModel, step: DecodedStep, num_threads: int) -> None:
        """One token of each sequence through the whole model on ``num_threads``. Mutates the pools of ``step``.

        The specification is :meth:`model.hybrid.HybridLM.__call__` on such a batch.
        """
        addresses = ctypes.addressof(model), ctypes.addressof(step)
        workspace = torch.empty(self.library.fano_decode_workspace(*addresses, num_threads))
        step.workspace = workspace.data_ptr()
        refused = self.library.fano_decode(*addresses, num_threads, self.instruction_set)
        assert not refused, "the step does not fit the model and its pools"


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


def _span(table: "array[int]", first_position: int, policy: AttentionPolicy) -> AttendedSpan:
    return AttendedSpan(
        blocks=table.buffer_info()[0],
        num_blocks=len(table),
        first_position=first_position,
        is_full=policy.name is PolicyName.FULL,
        sinks=policy.sinks,
        window=policy.window,
    )


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
