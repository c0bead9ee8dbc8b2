"""The means of neighbouring blocks of the archive in lists of like ones: what a token reads instead of all of them.

Specification of the search: :func:`model.kernels.selection.scores_by_index`; native: ``native/lists.h``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.huge_pages import zeros
from model.kernels.arguments import NativeIndex
from model.tiles import SUMMARY_ROWS, summary_shape


class BlockIndex:
    """Of every attention layer and key head, [layers, G, ...]: ``centres`` of the lists in strips, the strips that each
    list ``starts`` with [lists + 1], ``means`` [strips, *summary_shape], and of each mean which block's it is,
    ``places`` [strips, R], counted from the first block of the index. The last strip of a list is filled up with its
    first mean.
    """

    __slots__ = ("centres", "means", "native", "num_blocks", "places", "starts")

    def __init__(self, num_blocks: int, centres: Tensor, starts: Tensor, means: Tensor, places: Tensor) -> None:
        self.num_blocks = num_blocks
        self.centres, self.starts, self.means, self.places = centres, starts, means, places
        assert all(each.is_contiguous() for each in self.tensors), "native kernels read it where it lies"
        self.native = NativeIndex(*(each.data_ptr() for each in self.tensors), num_strips=means.shape[2])

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that is held."""
        return self.centres, self.starts, self.means, self.places

    @property
    def num_lists(self) -> int:
        """L: lists of each layer and key head, empty ones too."""
        return self.starts.shape[-1] - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(each.nbytes for each in self.tensors)

    @staticmethod
    def of(means: Tensor, centres: Tensor, owners: Tensor) -> "BlockIndex":
        """``means`` [layers, G, B, R, E] of blocks in lists around ``centres`` [layers, G, L, E], in the dtype of the
        means; ``owners`` [layers, G, B * R] is the list of each."""
        layers, groups, num_blocks, num_rows, _ = means.shape
        num_lists = centres.shape[2]
        assert num_rows == SUMMARY_ROWS and int(owners.max()) < num_lists, f"{means.shape} in {num_lists} lists"
        sorted_rows = [
            [_by_list(owners[layer, group], num_lists) for group in range(groups)] for layer in range(layers)
        ]
        num_strips = max(len(rows) for each in sorted_rows for rows, _ in each) // SUMMARY_ROWS
        # Read here and there, where small pages cost a walk through their tables each.
        listed = zeros((layers, groups, num_strips, *summary_shape(means.shape[-1], means.itemsize)), means.dtype)
        places = torch.zeros((layers, groups, num_strips, SUMMARY_ROWS), dtype=torch.int32)
        starts = torch.zeros((layers, groups, num_lists + 1), dtype=torch.int32)
        for layer, each in enumerate(sorted_rows):
            for group, (rows, ends) in enumerate(each):
                count = len(rows) // SUMMARY_ROWS
                listed[layer, group, :count] = as_strips(means[layer, group].flatten(0, 1)[rows])
                places[layer, group, :count] = (rows // SUMMARY_ROWS).view(count, SUMMARY_ROWS)
                starts[layer, group, 1:] = ends
        filled = pad(centres, (0, 0, 0, -num_lists % SUMMARY_ROWS))
        return BlockIndex(num_blocks, as_strips(filled), starts, listed, places)


def as_strips(rows: Tensor) -> Tensor:
    """[..., n * R, E] -> [..., n, *summary_shape]."""
    depth, num_rows, pair = summary_shape(rows.shape[-1], rows.itemsize)
    filled = pad(rows, (0, depth * pair - rows.shape[-1]))
    strips = filled.view(*rows.shape[:-2], rows.shape[-2] // num_rows, num_rows, depth, pair)
    return strips.transpose(-3, -2).contiguous()


def _by_list(owners: Tensor, num_lists: int) -> tuple[Tensor, Tensor]:
    """Rows in the order of their lists, each list filled up to whole strips; and how many strips lie before its end."""
    sizes = torch.bincount(owners, minlength=num_lists)
    strips = -(-sizes // SUMMARY_ROWS)
    order = owners.argsort(stable=True)
    begins, ends = sizes.cumsum(0) - sizes, strips.cumsum(0)
    filled = torch.arange(SUMMARY_ROWS * int(ends[-1]))
    owner = torch.repeat_interleave(torch.arange(num_lists), strips * SUMMARY_ROWS)
    within = filled - SUMMARY_ROWS * (ends - strips)[owner]
    return order[begins[owner] + torch.where(within < sizes[owner], within, 0)], ends


def lists_of(index: BlockIndex, layer: int, group: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Strips [n, *summary_shape] and places [n, R] of some of the lists."""
    starts = index.starts[layer, group].tolist()
    strips = [strip for number in numbers for strip in range(starts[number], starts[number + 1])]
    return index.means[layer, group][strips], index.places[layer, group][strips]
