"""The selective scan over packed rows in plain torch, on any device; the twin of `training.triton_scan`.

The recurrence of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752, section 3.3), per row, channel i and state n:
    h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t        y_t = C_t h_t + D u_t
Each step is a pair (decay, value), and two steps in a row are one: (e, x) then (f, z) is (e f, f x + z). So prefixes
double: after k rounds every token holds the pair of the 2^k tokens that end with it. Only products of decays occur,
never a quotient: after a few hundred tokens a product underflows to zero, which is right, and dividing by it is not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 32
# Elements of [B, T, channels, 16] worked on at once; autograd keeps about a dozen such tensors until they are done.
PIECE = 1 << 24


def _prefixes(decay: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of all prefixes along dimension 1."""
    reach = 1
    while reach < decay.shape[1]:
        late = decay[:, reach:]
        value = torch.cat([value[:, :reach], value[:, reach:] + late * value[:, :-reach]], 1)
        decay = torch.cat([decay[:, :reach], late * decay[:, :-reach]], 1)
        reach *= 2
    return decay, value


def _scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h0: Tensor, reset: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    rows, tokens, inner = u.shape
    chunks, states = -(-tokens // chunk), a.shape[1]
    # A token of zeros decays nothing and adds nothing, so the last chunk may be filled up with them.
    fill = (0, 0, 0, chunks * chunk - tokens)
    u, dt, b, c = (F.pad(x, fill).view(rows * chunks, chunk, -1) for x in (u, dt, b, c))
    reset = F.pad(reset, fill[2:]).view(rows * chunks, chunk, 1, 1)
    decay = torch.exp(dt[..., None] * a).masked_fill(reset, 0.0)
    decay, value = _prefixes(decay, (dt * u)[..., None] * b[:, :, None])
    last_decay, last_value = (x[:, -1].view(rows, chunks, inner, states) for x in (decay, value))
    chunk_decay, chunk_value = _prefixes(last_decay, last_value)
    ends = chunk_value + chunk_decay * h0[:, None]
    begins = torch.cat([h0[:, None], ends[:, :-1]], 1).view(rows * chunks, 1, inner, states)
    h = value + decay * begins
    y = (h * c[:, :, None]).sum(-1) + d * u
    return y.view(rows, -1, inner)[:, :tokens], ends[:, -1]


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h0: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """y [B, T, I] in the dtype of u and the state after the last token, [B, I, 16]; differentiable but for reset.

    Takes u, dt [B, T, I] (dt positive) and b, c [B, T, 16] in any dtype, a [I, 16] (negative), d [I], the state before
    the first token h0 [B, I, 16], and reset [B, T] bool: true where a document begins, so that what came before counts
    for nothing. Inside, everything has the dtype of a.
    """
    dtype = u.dtype
    u, dt, b, c, d, h0 = (x.to(a.dtype) for x in (u, dt, b, c, d, h0))
    width = max(1, PIECE // (u.shape[0] * u.shape[1] * a.shape[1]))
    # Recomputed piece by piece in the backward pass, or the states of all tokens would be kept many times over.
    pieces = [
        checkpoint(_scan, *piece[:3], b, c, *piece[3:], reset, CHUNK, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(
            u.split(width, 2), dt.split(width, 2), a.split(width), d.split(width), h0.split(width, 1), strict=True
        )
    ]
    y, final = zip(*pieces, strict=True)
    return torch.cat(y, 2).to(dtype), torch.cat(final, 1)
