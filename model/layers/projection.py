"""Parameters, and the matrix products and norms that every mixer is built from.

The layers are plain classes: a decode step makes about a hundred small calls, and the hooks and attribute look-ups of
``torch.nn.Module``, none of which inference needs, would cost as much as the arithmetic of a small model.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from model.tiles import STABLE_ROWS, num_padded_rows


class Parameterised:
    """Something that holds parameters: tensors among its attributes, and those of what it is built from."""

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter once, under the dotted path of attributes that leads to it."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, Parameterised):
                yield from ((f"{name}.{path}", tensor) for path, tensor in value.named_parameters())
            elif isinstance(value, list) and value and isinstance(value[0], Parameterised):
                for index, part in enumerate(value):
                    yield from ((f"{name}.{index}.{path}", tensor) for path, tensor in part.named_parameters())

    def parameters(self) -> Iterator[Tensor]:
        """Each parameter once."""
        return (tensor for _, tensor in self.named_parameters())


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``: [T, in] and [out, in] of one dtype -> [T, out]. A row's bits do not depend on the others."""
    num_rows = x.shape[0]
    num_padded = num_padded_rows(num_rows)
    if num_padded == num_rows or x.device.type != "cpu" or (x.dtype == torch.float32 and num_rows > STABLE_ROWS):
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, num_padded - num_rows)), weight)[:num_rows]


class Projection(Parameterised):
    """``x @ weight.T + bias``: ``weight`` [out, in] in the weight dtype, ``bias`` [out] float32 or None."""

    def __init__(self, in_size: int, out_size: int, dtype: torch.dtype, bias: bool = False) -> None:
        self.weight = parameter(out_size, in_size, dtype=dtype)
        self.bias = parameter(out_size) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] of any float dtype -> [T, out] in the weight dtype, or float32 where there is a bias."""
        y = product(x.to(self.weight.dtype), self.weight)
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


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A parameter without values: loading fills it, and nothing here is trained."""
    return torch.empty(shape, dtype=dtype)
