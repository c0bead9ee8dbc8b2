"""int8 numbers in groups that share a scale: how weights and activations are rounded, and what their product is.

The specification of ``kernels/native/groups.h``. A row's bits depend on nothing but the row: the products of a group
are summed up in whole numbers, exactly, and the groups in float32 in their order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.tiles import GROUP_SIZE, grouped_size

LARGEST = 127
# Scales that are tried for a group of weights: the least bfloat16 under which its largest magnitude is still within
# 127, and the next ones up. Some round the 32 numbers better than others, which is worth 5 % of the error.
NUM_SCALES = 4
# Of a group of activations that are all smaller, nothing is left: 127 / peak must not overflow.
LEAST_PEAK = 1e-36
# Weights that are looked at together, so that they stay in the cache.
TILE_ELEMENTS = 1 << 16


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, in] of a float type as int8 [n, depth] and scales bfloat16 [n, depth / 32]; zeros beyond ``in``.

    Each is rounded to the nearest, ties to even, under that scale of the few that leaves the least sum of squares.
    A group that is not finite has the scale NaN.
    """
    num_rows, size = weight.shape
    depth = grouped_size(size)
    numbers = torch.empty((num_rows, depth), dtype=torch.int8)
    scales = torch.empty((num_rows, depth // GROUP_SIZE), dtype=torch.bfloat16)
    step = max(1, TILE_ELEMENTS // depth)
    for start in range(0, num_rows, step):
        rows = F.pad(weight[start : start + step].float(), (0, depth - size)).view(-1, depth // GROUP_SIZE, GROUP_SIZE)
        found, scale = _quantise_groups(rows)
        numbers[start : start + step] = found.flatten(1).to(torch.int8)
        scales[start : start + step] = scale
    return numbers, scales


def dequantise(numbers: Tensor, scales: Tensor) -> Tensor:
    """[n, depth] float32 of what ``quantise`` gave: the numbers times their scales."""
    return (numbers.float().view(*scales.shape, GROUP_SIZE) * scales.float()[..., None]).flatten(-2)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [T, in] float32 as whole numbers [T, depth] in float32, and scales [T, depth / 32] float32.

    A group's largest magnitude becomes 127, the others are rounded to the nearest, ties to even.
    """
    groups = F.pad(x, (0, grouped_size(x.shape[1]) - x.shape[1])).view(x.shape[0], -1, GROUP_SIZE)
    peak = groups.abs().amax(-1)
    inverse = torch.where(peak > LEAST_PEAK, LARGEST / peak, 0)
    return (groups * inverse[..., None]).round_().flatten(1), peak / LARGEST


def multiply(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """[T, in] float32 by quantised weights of ``out`` rows -> [T, out] float32."""
    whole, own = round_rows(x)
    out = torch.zeros((x.shape[0], numbers.shape[0]))
    weights = numbers.float()
    for group in range(scales.shape[1]):
        part = slice(group * GROUP_SIZE, (group + 1) * GROUP_SIZE)
        # Exact in any order: 32 * 127 * 127 is less than 2^24.
        sums = whole[:, part] @ weights[:, part].t()
        out += sums * (scales[:, group].float() * own[:, group, None])
    return out


def _quantise_groups(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers like ``groups`` [n, G, 32] float32, and scales [n, G] bfloat16."""
    peak = groups.abs().amax(-1, keepdim=True)
    # The next bfloat16 up, unless it is one: the low half of the bits is what bfloat16 lacks. A group of zeros has the
    # scale zero, and its neighbours do no harm.
    bits = ((peak / LARGEST).view(torch.int32) + 0xFFFF) & ~0xFFFF
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for index in range(NUM_SCALES):
        scale = (bits + (index << 16)).view(torch.float32)
        numbers = (groups / scale).nan_to_num_(0.0, 0.0, 0.0).round_()
        error = (numbers * scale).sub_(groups).square_().sum(-1, keepdim=True)
        if best is None:
            best = error, numbers, scale
        else:
            is_better = error < best[0]
            best = (
                torch.where(is_better, error, best[0]),
                torch.where(is_better, numbers, best[1]),
                torch.where(is_better, scale, best[2]),
            )
    assert best is not None
    _, numbers, scale = best
    scale = torch.where(peak.isfinite(), scale, torch.nan)
    return torch.where(peak.isfinite(), numbers, 0), scale[..., 0].to(torch.bfloat16)
