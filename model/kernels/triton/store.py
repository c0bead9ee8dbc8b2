"""Keys and values of a step's tokens into the rows of the pool that are theirs; importing this needs triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 256, 4


@triton.jit
def _store(
    k: tl.tensor, v: tl.tensor, keys: tl.tensor, values: tl.tensor, rows: tl.tensor,
    k_stride: tl.tensor, v_stride: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Part of one token's key and value heads, rounded to what the pool holds; the row -1 is nobody's."""
    token = tl.program_id(1).to(tl.int64)
    row = tl.load(rows + token)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tl.where(row >= 0, width, 0)
    key = tl.load(k + token * k_stride + i, mask=inside, other=0.0)
    value = tl.load(v + token * v_stride + i, mask=inside, other=0.0)
    tl.store(keys + row * width + i, key.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + row * width + i, value.to(values.dtype.element_ty), mask=inside)


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, kv_rows: Tensor) -> None:
    """See :func:`model.kernels.reference.store_kv`."""
    width = keys.shape[2] * keys.shape[3]
    _store[triton.cdiv(width, BLOCK), k.shape[0]](
        k, v, keys, values, kv_rows, k.stride(0), v.stride(0), width, BLOCK=BLOCK, num_warps=WARPS
    )
