"""The matrix products and norms that every mixer is built from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """``x @ weight.T + bias``: ``weight`` [out, in] in the weight dtype, ``bias`` [out] float32 or None."""

    def __init__(self, in_size: int, out_size: int, dtype: torch.dtype, bias: bool = False) -> None:
        super().__init__()
        self.weight = parameter(out_size, in_size, dtype=dtype)
        self.bias = parameter(out_size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] of any float dtype -> [T, out] in the weight dtype, or float32 where there is a bias."""
        y = F.linear(x.to(self.weight.dtype), self.weight)
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Division by the root mean square of the last dimension, then a gain (arXiv 1910.07467); all float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.shape = (size,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, size] float32 with any row stride -> the same shape, float32."""
        return F.rms_norm(x, self.shape, self.weight, self.eps)


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter without values: loading fills it, and nothing here is trained."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
