"""Projections and norms: what every mixer is built from."""

import torch
from torch import Tensor

from model.kernels import Kernels
from model.layers.matrix import Matrix
from model.layers.parameters import Parameterised, parameter


class Projection(Matrix):
    """``x @ weight.T + bias``: a matrix in the weight dtype, ``bias`` [out] float32 or None."""

    def __init__(
        self, in_size: int, out_size: int, dtype: torch.dtype, kernels: Kernels, *, bias: bool = False
    ) -> None:
        super().__init__(out_size, in_size, dtype, kernels)
        self.bias = parameter(out_size) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] of any float dtype -> [T, out] float32."""
        y = super().__call__(x)
        return y if self.bias is None else y + self.bias


class RMSNorm(Parameterised):
    """Division by the root mean square of the last dimension, then a gain (arXiv 1910.07467); all float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = parameter(size)
        self.size = size
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """[T, size] float32 with any row stride -> the same shape, float32, contiguous."""
        # torch's rms_norm is no single kernel on the CPU; this form makes one temporary of x's size, not three.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        scale = norm.square_().mul_(1 / self.size).add_(self.eps).rsqrt_()
        return torch.mul(x, scale).mul_(self.weight)
