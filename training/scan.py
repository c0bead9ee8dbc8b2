"""The selective scan and the causal convolution with gradients, from scan.cpp through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK = 16
LOG2_E = 1.4426950408889634
SOURCE = Path(__file__).with_name("scan.cpp")
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi"]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels; built by the system compiler for this very machine and kept by content hash."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"fano-training-scan-{digest}.so"
    if not target.exists():
        scratch = target.with_suffix(f".{np.random.default_rng().integers(1 << 40)}.so")
        subprocess.run(["c++", *FLAGS, str(SOURCE), "-o", str(scratch)], check=True)
        scratch.replace(target)
    return ctypes.CDLL(str(target))


class Segments:
    """Runs of tokens `(first, tokens, parent)`; a parent stands earlier, or is -1 for a fresh start."""

    def __init__(self, rows: list[tuple[int, int, int]]) -> None:
        self.rows = np.array(rows, dtype=np.int64)
        chunks = (self.rows[:, 1] + CHUNK - 1) // CHUNK
        self.checkpoint_start = np.concatenate([[0], np.cumsum(chunks)[:-1]]).astype(np.int64)
        self.num_checkpoints = int(chunks.sum())
        self.history = self._history()

    def __len__(self) -> int:
        return len(self.rows)

    def _history(self) -> np.ndarray:
        """[T, 4]: the token itself last, then its predecessors along the path to the root; -1 before the start."""
        history = np.full((int(self.rows[:, 1].sum()), 4), -1, dtype=np.int64)
        for first, tokens, parent in self.rows:
            tail = np.full(3, -1)
            if parent >= 0:
                start, length, _ = self.rows[parent]
                tail = history[start + length - 1, 1:]
            path = np.concatenate([tail, np.arange(first, first + tokens)])
            for k in range(4):
                history[first : first + tokens, k] = path[k : k + tokens]
        return history


def _pointer(array: Tensor | np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data)


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, s: Segments
    ) -> Tensor:
        inner = u.shape[1]
        inputs = [x.contiguous() for x in (u, dt, (a * LOG2_E).t(), b, c, d)]
        finals = torch.empty(len(s), 16, inner)
        checkpoints = torch.empty(s.num_checkpoints, 16, inner)
        y = torch.empty_like(inputs[0])
        library().scan_forward(
            *map(_pointer, inputs), _pointer(s.rows), _pointer(s.checkpoint_start), ctypes.c_int64(len(s)),
            ctypes.c_int64(inner), _pointer(finals), _pointer(checkpoints), _pointer(y), _threads(),
        )  # fmt: skip
        ctx.save_for_backward(*inputs, checkpoints)
        ctx.segments = s
        s.finals = finals
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a2, b, c, d, checkpoints = ctx.saved_tensors
        s, (tokens, inner), workers = ctx.segments, u.shape, torch.get_num_threads()
        dy = dy.contiguous()
        dfinals = torch.zeros(len(s), 16, inner)
        du, ddt, da, dd = torch.empty_like(u), torch.empty_like(u), torch.zeros(16, inner), torch.zeros(inner)
        db, dc = torch.zeros(workers, tokens, 16), torch.zeros(workers, tokens, 16)
        library().scan_backward(
            *map(_pointer, (u, dt, a2, b, c, d, s.rows, s.checkpoint_start)), ctypes.c_int64(len(s)),
            ctypes.c_int64(tokens), ctypes.c_int64(inner),
            *map(_pointer, (checkpoints, dy, dfinals, du, ddt, da, db, dc, dd)), _threads(),
        )  # fmt: skip
        return du, ddt, da.t(), db.sum(0), dc.sum(0), dd, None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, s: Segments) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        y = torch.empty_like(x)
        library().conv_forward(
            *map(_pointer, (x, weight, bias, s.history)), *map(ctypes.c_int64, x.shape), _pointer(y), _threads()
        )
        ctx.save_for_backward(x, weight, bias)
        ctx.segments = s
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dy = dy.contiguous()
        dx, dw, db = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        library().conv_backward(
            *map(_pointer, (x, weight, bias, ctx.segments.history)), *map(ctypes.c_int64, x.shape),
            *map(_pointer, (dy, dx, dw, db)), _threads(),
        )  # fmt: skip
        return dx, dw, db, None


def selective_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, segments: Segments) -> Tensor:
    """y [T, I] of u, dt [T, I] (dt positive), a [I, 16] (negative), b, c [T, 16], d [I]; all fp32.

    Leaves the states after each segment, [S, 16, I], in `segments.finals`.
    """
    return _Scan.apply(u, dt, a, b, c, d, segments)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, segments: Segments) -> Tensor:
    """silu of the width-4 depthwise convolution along each path; x [T, I], weight [4, I], bias [I]; fp32."""
    return _Conv.apply(x, weight, bias, segments)


def selective_scan_reference(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, segments: Segments
) -> Tensor:
    """The same as a loop over tokens, in any dtype; the oracle for values and gradients."""
    finals: list[Tensor] = []
    rows: list[Tensor] = []
    for first, tokens, parent in segments.rows.tolist():
        h = finals[parent] if parent >= 0 else torch.zeros_like(a)
        for t in range(first, first + tokens):
            h = torch.exp(dt[t][:, None] * a) * h + (dt[t] * u[t])[:, None] * b[t]
            rows.append(h @ c[t] + d * u[t])
        finals.append(h)
    return torch.stack(rows)
