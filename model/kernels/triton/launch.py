"""The Triton kernels behind the signatures of their reference twins; importing this needs triton.

Bounds, slots and block tables come from the host, as everywhere; they are sent once a step (``tables``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.kernels.listed import ListedTokens
from model.kernels.selection import ArchivedLayer
from model.kernels.triton.attention import attend_prompts, tile_tokens
from model.kernels.triton.convolution import causal_conv
from model.kernels.triton.decoding import attend_decodes
from model.kernels.triton.frame import DecodeFrame
from model.kernels.triton.listing import attend_listed
from model.kernels.triton.scan import selective_scan
from model.kernels.triton.store import store_kv
from model.kernels.triton.tables import Latest, Tables, paging_pieces, paging_tables, recurrence_tables
from model.policy import BLOCK_TOKENS, AttentionPolicy


class TritonKernels:
    """The kernels on one device. Contracts are those of ``model.kernels.reference``. Used by one thread at a time.

    ``recurrences`` and ``pagings`` remember the last step's tables; who brings tables of his own puts them there.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.recurrences: Latest[Tables] = Latest()
        self.pagings: Latest[Tables] = Latest()

    def causal_conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor,
        query_start: Tensor,
        state_slots: Tensor,
    ) -> Tensor:
        """See :func:`model.kernels.reference.causal_conv`."""
        num_taps, inner = weight.shape
        _require_rows(x, inner)
        _require_whole(state, (state.shape[0], num_taps - 1, inner))
        return causal_conv(x, weight, bias, state, self._recurrence(query_start, state_slots))

    def selective_scan(
        self,
        u: Tensor,
        dt: Tensor,
        dt_bias: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        z: Tensor | None,
        state: Tensor,
        query_start: Tensor,
        state_slots: Tensor,
    ) -> Tensor:
        """See :func:`model.kernels.reference.selective_scan`."""
        num_states, inner = a.shape
        for rows, width in ((u, inner), (dt, inner), (b, num_states), (c, num_states), (u if z is None else z, inner)):
            _require_rows(rows, width)
        _require_whole(state, (state.shape[0], num_states, inner))
        tables = self._recurrence(query_start, state_slots)
        return selective_scan(u, dt, dt_bias, a, b, c, d, z, state, tables)

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        query_start: Tensor,
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        policies: Sequence[AttentionPolicy],
        archive: ArchivedLayer | None = None,
    ) -> Tensor:
        """See :func:`model.kernels.reference.attend`. Nobody selects: those who do bring lists of what they see."""
        assert archive is None, "what left the windows lies on the host"
        _, num_heads, width = queries.shape
        num_blocks, block_tokens, num_groups, _ = keys.shape
        assert block_tokens == BLOCK_TOKENS and queries.stride()[1:] == (width, 1), f"{keys.shape} {queries.stride()}"
        for pool in (keys, values):
            _require_whole(pool, (num_blocks, block_tokens, num_groups, width), queries.dtype)

        def make() -> Tables:
            tokens = tile_tokens(num_heads, num_groups, queries.dtype)
            pieces = paging_pieces(query_start.tolist(), first_positions, block_tables, policies, tokens)
            return paging_tables(pieces, self.device)

        tables = self.pagings.of((query_start, first_positions, block_tables, policies), make)
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        if tables.sizes["num_decodes"]:
            attend_decodes(queries, keys, values, tables, out)
        if tables.sizes["num_tiles"]:
            attend_prompts(queries, keys, values, tables, out)
        return out

    def attend_listed(
        self, queries: Tensor, keys: Tensor, values: Tensor, fetched: Tensor, tokens: ListedTokens, out: Tensor
    ) -> None:
        """See :func:`model.kernels.reference.attend_listed`."""
        width = queries.shape[2]
        num_blocks, block_tokens, num_groups, _ = keys.shape
        assert block_tokens == BLOCK_TOKENS and queries.stride()[1:] == (width, 1), f"{keys.shape} {queries.stride()}"
        for pool in (keys, values):
            _require_whole(pool, (num_blocks, block_tokens, num_groups, width), queries.dtype)
        _require_whole(fetched, (len(fetched), 2, block_tokens, width), queries.dtype)
        _require_whole(out, tuple(queries.shape), queries.dtype)
        assert tokens.entries.shape[1] == num_groups, f"lists {tokens.entries.shape} for {num_groups} key heads"
        attend_listed(queries, keys, values, fetched, tokens, out)

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, kv_rows: Tensor) -> None:
        """See :func:`model.kernels.reference.store_kv`. A token whose row is -1 is stored nowhere."""
        num_groups, head_width = keys.shape[2:]
        for rows, pool in ((k, keys), (v, values)):
            _require_rows(rows, num_groups * head_width)
            _require_whole(pool, tuple(keys.shape), keys.dtype)
        assert kv_rows.shape == (k.shape[0],) and kv_rows.dtype == torch.int64, f"{kv_rows.shape} {kv_rows.dtype}"
        store_kv(k, v, keys, values, kv_rows)

    def frame(self, num_rows: int, width: int) -> DecodeFrame:
        """Tables for steps of at most ``num_rows`` decodes that see at most ``width`` blocks each."""
        return DecodeFrame(num_rows, width, self.device, self.recurrences, self.pagings)

    def _recurrence(self, query_start: Tensor, state_slots: Tensor) -> Tables:
        def make() -> Tables:
            return recurrence_tables(query_start, state_slots, self.device)

        return self.recurrences.of((query_start, state_slots), make)


def _require_rows(tensor: Tensor, width: int) -> None:
    assert tensor.shape[1] == width and tensor.dtype == torch.float32, f"{tensor.shape} {tensor.dtype}"
    assert tensor.stride(1) == 1 or width == 1, f"neighbouring channels are {tensor.stride(1)} apart"


def _require_whole(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    assert tensor.shape == shape and tensor.dtype == dtype, f"{tensor.shape} {tensor.dtype}, expected {shape} {dtype}"
    assert tensor.is_contiguous(), f"strides {tensor.stride()} of {shape}"
