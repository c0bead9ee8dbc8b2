"""A matrix of weights: as the checkpoint has it, or in the strips that the native kernels read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Kernels
from model.layers.groups import dequantise, multiply, quantise
from model.layers.parameters import Parameterised, parameter
from model.tiles import (
    GROUP_SIZE,
    SCALE_BYTES,
    STABLE_ROWS,
    STRIP_ROWS,
    grouped_size,
    num_padded_rows,
    padded_shape,
)


class Matrix(Parameterised):
    """``x @ weight.T`` for a weight [out, in], held in ``weight`` with rows and columns rounded up to whole strips.

    ``pack`` lays it out anew in its own memory: strips of 16 outputs; in each, for one input after another (in
    bfloat16 for one pair of inputs after another), the weights of all its outputs side by side. A row's bits depend on
    nothing but the row.

    int8 weights share a bfloat16 scale by groups of 32 inputs (see :mod:`model.layers.groups`). A row of ``weight`` is
    then the row's numbers and the bytes of its scales; a strip is one pair of groups after another, first the scales of
    all outputs, then for four inputs after another their numbers with 128 added.
    """

    def __init__(self, out_size: int, in_size: int, dtype: torch.dtype, kernels: Kernels) -> None:
        self.out_size, self.in_size = out_size, in_size
        self.weight = parameter(*padded_shape(out_size, in_size, dtype.itemsize), dtype=dtype)
        self.is_packed = False
        self._kernels = kernels
        self._clear_padding()

    @property
    def plain(self) -> Tensor:
        """[out, in], in float32 where it is held in int8: a view as long as a float matrix is not packed, else a
        copy."""
        if self._is_grouped:
            return dequantise(*self._grouped())[: self.out_size, : self.in_size]
        if not self.is_packed:
            return self.weight[: self.out_size, : self.in_size]
        return self._strips.transpose(1, 2).reshape(self.weight.shape)[: self.out_size, : self.in_size]

    def fill(self, rows: Tensor, first: int = 0) -> None:
        """Take over ``rows`` [n, in] of any float type as the outputs from ``first`` on, rounded to what is held."""
        assert not self.is_packed, "a packed matrix takes no rows"
        target = self.weight[first : first + rows.shape[0]]
        if not self._is_grouped:
            target[:, : self.in_size].copy_(rows)
            return
        numbers, scales = quantise(rows)
        depth = numbers.shape[1]
        target[:, :depth].copy_(numbers)
        target[:, depth:].copy_(scales.view(torch.int8))

    def move_to(self, memory: Tensor) -> None:
        """Hold the weights in ``memory`` [bytes] int8 from now on; they are not filled yet."""
        assert not self.is_packed, "a packed matrix is known by its address"
        self.weight = memory.view(self.weight.dtype).view(self.weight.shape)
        self._clear_padding()

    def holds(self, tensor: Tensor) -> bool:
        """Whether it is what :meth:`fill` makes of ``tensor`` [out, in]."""
        if self._is_grouped:
            tensor = dequantise(*quantise(tensor))[:, : self.in_size]
        return torch.equal(tensor.to(self.plain.dtype), self.plain)

    def pack(self) -> None:
        """Lay the weights out in strips, for good. Idempotent."""
        if self.is_packed:
            return
        self._clear_padding()
        if self._is_grouped:
            self._pack_groups()
        else:
            strips = self.weight.view(-1, STRIP_ROWS, self.weight.shape[1] // self._num_together, self._num_together)
            packed = strips.transpose(1, 2).clone(memory_format=torch.contiguous_format)
            self.weight.copy_(packed.view(self.weight.shape))
        self.is_packed = True

    def rows(self, indices: Tensor) -> Tensor:
        """Rows [T, in] float32 of the weight, as an embedding has them; ``indices`` [T]."""
        if self._is_grouped:
            return dequantise(*self._grouped(indices))[:, : self.in_size]
        if not self.is_packed:
            return F.embedding(indices, self.weight)[:, : self.in_size].float()
        found = self._strips[indices // STRIP_ROWS, :, indices % STRIP_ROWS]
        return found.reshape(len(indices), -1)[:, : self.in_size].float()

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] of any float dtype -> [T, out] float32."""
        if self._kernels.product is not None and self.is_packed:
            return self._kernels.product(x.float(), self.weight, self.out_size)
        if self._is_grouped:
            return multiply(x.float(), *self._grouped())[:, : self.out_size]
        return _product(x.to(self.weight.dtype), self.plain).float()

    def _clear_padding(self) -> None:
        self.weight[self.out_size :] = 0
        if not self._is_grouped:
            self.weight[:, self.in_size :] = 0

    @property
    def _is_grouped(self) -> bool:
        return self.weight.dtype == torch.int8

    @property
    def _num_together(self) -> int:
        """Weights of an output that are neighbours in a strip."""
        return 4 // self.weight.itemsize

    @property
    def _strips(self) -> Tensor:
        return self.weight.view(-1, self.weight.shape[1] // self._num_together, STRIP_ROWS, self._num_together)

    def _pack_groups(self) -> None:
        numbers, scales = self._grouped()
        num_pairs = scales.shape[1] // 2
        numbers = numbers.view(-1, STRIP_ROWS, num_pairs, 2, GROUP_SIZE // 4, 4).permute(0, 2, 3, 4, 1, 5)
        scales = scales.view(-1, STRIP_ROWS, num_pairs, 2).permute(0, 2, 3, 1).contiguous()
        parts = scales.view(torch.int8).flatten(2), (numbers ^ -128).flatten(2)
        self.weight.copy_(torch.cat(parts, dim=2).view(self.weight.shape))

    def _grouped(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Numbers [n, depth] int8 and scales [n, groups] bfloat16 of all rows that are held, or of ``indices`` [n]."""
        depth = grouped_size(self.in_size)
        if not self.is_packed:
            rows = self.weight if indices is None else self.weight[indices]
            return rows[:, :depth], rows[:, depth:].contiguous().view(torch.bfloat16)
        num_pairs, scale_bytes = depth // (2 * GROUP_SIZE), 2 * STRIP_ROWS * SCALE_BYTES
        if indices is None:
            indices = torch.arange(self.weight.shape[0])
        every = torch.arange(len(indices))
        strips = self.weight.view(self.weight.shape[0] // STRIP_ROWS, num_pairs, -1)[indices // STRIP_ROWS]
        scales = strips[:, :, :scale_bytes].contiguous().view(torch.bfloat16).view(-1, num_pairs, 2, STRIP_ROWS)
        numbers = strips[:, :, scale_bytes:].view(-1, num_pairs, 2, GROUP_SIZE // 4, STRIP_ROWS, 4)
        lanes = indices % STRIP_ROWS
        return numbers[every, ..., lanes, :].flatten(1) ^ -128, scales[every, ..., lanes].flatten(1)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in torch, whose sums do not depend on the number of rows if there are enough of them."""
    num_rows = x.shape[0]
    num_padded = num_padded_rows(num_rows)
    if num_padded == num_rows or x.device.type != "cpu" or (x.dtype == torch.float32 and num_rows > STABLE_ROWS):
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, num_padded - num_rows)), weight)[:num_rows]
