"""Attention over paged keys and values, without positional encoding."""

import torch
from torch import Tensor

from model.batch import Batch
from model.config import ModelConfig
from model.kernels import Kernels
from model.kernels.selection import ArchivedLayer
from model.layers.fetching import FetchingStep
from model.layers.matrix import Matrix
from model.layers.parameters import Parameterised


class SparseAttention(Parameterised):
    """Grouped- or multi-query attention; which keys a token sees is its sequence's policy.

    No positions are encoded, so keys and values stay valid wherever their block stands and whoever attends.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels, dtype: torch.dtype, index: int) -> None:
        # Among the attention layers.
        self.index = index
        self.num_heads, self.head_width = config.num_heads, config.head_width
        self.split = [config.query_size, config.kv_size, config.kv_size]
        self.kernels = kernels
        self.qkv_proj = Matrix(sum(self.split), config.hidden_size, dtype, kernels)
        self.o_proj = Matrix(config.hidden_size, config.query_size, dtype, kernels)

    def __call__(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        batch: Batch,
        archive: ArchivedLayer | None = None,
        fetching: FetchingStep | None = None,
    ) -> Tensor:
        """[T, D] float32 -> [T, D]. Writes the tokens' keys and values into ``keys`` and ``values`` [blocks, P, G, E]
        at the rows ``batch.kv_rows``, copies what leaves the windows in this step to ``archive``, then attends;
        ``fetching`` brings what is chosen to a device."""
        q, k, v = self.qkv_proj(x).split_with_sizes(self.split, dim=1)
        self.kernels.store_kv(k, v, keys, values, batch.kv_rows)
        where = batch.query_start, batch.first_positions, batch.block_tables, batch.policies
        queries = q.to(keys.dtype).view(-1, self.num_heads, self.head_width)
        if archive is None:
            assert fetching is None, "what is fetched comes from an archive"
            mixed = self.kernels.attend(queries, keys, values, *where)
        elif fetching is not None:
            mixed = fetching.attend(self.kernels, queries, keys, values, archive)
        else:
            # Before anybody attends: a prompt's later tokens may choose what its earlier ones left behind.
            for block, number in zip(batch.leaving[::2], batch.leaving[1::2], strict=True):
                archive.put(number, keys[block], values[block])
            mixed = self.kernels.attend(queries, keys, values, *where, archive)
        return self.o_proj(mixed.flatten(1))
