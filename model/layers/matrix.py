"""A matrix of weights: as the checkpoint has it, or in the strips that the native kernels read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Kernels
from model.layers.parameters import Parameterised, parameter
from model.tiles import STABLE_ROWS, STRIP_ROWS, num_padded_rows, padded_shape


class Matrix(Parameterised):
    """``x @ weight.T`` for a weight [out, in], held in ``weight`` with rows and columns rounded up to whole strips.

    ``pack`` lays it out anew in its own memory: strips of 16 outputs; in each, for one input after another (in
    bfloat16 for one pair of inputs after another), the weights of all its outputs side by side. A row's bits depend on
    nothing but the row.
    """

    def __init__(self, out_size: int, in_size: int, dtype: torch.dtype, kernels: Kernels) -> None:
        self.out_size, self.in_size = out_size, in_size
        self.weight = parameter(*padded_shape(out_size, in_size, dtype.itemsize), dtype=dtype)
        self.is_packed = False
        self._kernels = kernels
        self._clear_padding()

    @property
    def plain(self) -> Tensor:
        """[out, in]: a view as long as the matrix is not packed, then a copy."""
        if not self.is_packed:
            return self.weight[: self.out_size, : self.in_size]
        strips = self.weight.view(-1, self.weight.shape[1] // self._num_grouped, STRIP_ROWS, self._num_grouped)
        return strips.transpose(1, 2).reshape(self.weight.shape)[: self.out_size, : self.in_size]

    def pack(self) -> None:
        """Lay the weights out in strips, for good. Idempotent."""
        if self.is_packed:
            return
        self._clear_padding()
        strips = self.weight.view(-1, STRIP_ROWS, self.weight.shape[1] // self._num_grouped, self._num_grouped)
        self.weight.copy_(strips.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(self.weight.shape))
        self.is_packed = True

    def rows(self, indices: Tensor) -> Tensor:
        """Rows [T, in] float32 of the weight, as an embedding has them; ``indices`` [T]."""
        if not self.is_packed:
            return F.embedding(indices, self.weight)[:, : self.in_size].float()
        strips = self.weight.view(-1, self.weight.shape[1] // self._num_grouped, STRIP_ROWS, self._num_grouped)
        found = strips[indices // STRIP_ROWS, :, indices % STRIP_ROWS]
        return found.reshape(len(indices), -1)[:, : self.in_size].float()

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] of any float dtype -> [T, out] float32."""
        if self._kernels.product is not None and self.is_packed:
            return self._kernels.product(x.float(), self.weight, self.out_size)
        return _product(x.to(self.weight.dtype), self.plain).float()

    def _clear_padding(self) -> None:
        self.weight[self.out_size :] = 0
        self.weight[:, self.in_size :] = 0

    @property
    def _num_grouped(self) -> int:
        return 4 // self.weight.itemsize


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in torch, whose sums do not depend on the number of rows if there are enough of them."""
    num_rows = x.shape[0]
    num_padded = num_padded_rows(num_rows)
    if num_padded == num_rows or x.device.type != "cpu" or (x.dtype == torch.float32 and num_rows > STABLE_ROWS):
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, num_padded - num_rows)), weight)[:num_rows]
