"""Kernels that are told of sequences by tables alone, as those on a device are, and a recorder without a device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.kernels import Kernels, reference
from model.kernels.triton.frame import DecodeFrame
from model.kernels.triton.tables import ENDLESS, Latest, Tables, paging_pieces, paging_tables, recurrence_tables
from model.policy import AttentionPolicy, PolicyName

TILE_TOKENS = 16


class TabledReference:
    """The reference kernels behind the tables that the Triton kernels read; rows of nobody get zeros."""

    def __init__(self) -> None:
        self.recurrences: Latest[Tables] = Latest()
        self.pagings: Latest[Tables] = Latest()

    def kernels(self) -> Kernels:
        """As the engine takes them."""
        own = self.causal_conv, self.selective_scan, self.attend
        return Kernels("tabled", *own, store_kv=self.store_kv, frame=self.frame)

    def frame(self, num_rows: int, width: int) -> DecodeFrame:
        return DecodeFrame(num_rows, width, "cpu", self.recurrences, self.pagings)

    def causal_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, start: Tensor, slots: Tensor
    ) -> Tensor:
        y = torch.zeros(x.shape)
        for rows, step in self._sequences(start, slots):
            y[rows] = reference.causal_conv(x[rows], weight, bias, state, *step)
        return y

    def selective_scan(self, u, dt, dt_bias, a, b, c, d, z, state, start, slots):  # type: ignore[no-untyped-def]
        y = torch.zeros(u.shape)
        for rows, step in self._sequences(start, slots):
            gate = None if z is None else z[rows]
            y[rows] = reference.selective_scan(
                u[rows], dt[rows], dt_bias, a, b[rows], c[rows], d, gate, state, *step
            )  # fmt: skip
        return y

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        start: Tensor,
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        policies: Sequence[AttentionPolicy],
    ) -> Tensor:
        def make() -> Tables:
            pieces = paging_pieces(start.tolist(), first_positions, block_tables, policies, TILE_TOKENS)
            return paging_tables(pieces, "cpu")

        tables = self.pagings.of((start, first_positions, block_tables, policies), make)
        out = torch.zeros(queries.shape, dtype=queries.dtype)
        parts = tables.parts
        for span, entries, length in zip(parts["spans"].tolist(), parts["entries"], parts["lengths"], strict=True):
            first, count, sink_blocks, skipped, sinks, window, _, row = span
            if not count:
                continue
            table = entries[:count].tolist()
            table[sink_blocks:sink_blocks] = [-1] * skipped
            policy = AttentionPolicy() if window == ENDLESS else AttentionPolicy(PolicyName.WINDOW, sinks, window)
            rows = slice(row, row + int(length))
            step = torch.tensor([0, int(length)]), [first], [table], [policy]
            out[rows] = reference.attend(queries[rows], keys, values, *step)
        return out

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, kv_rows: Tensor) -> None:
        kept = kv_rows >= 0
        reference.store_kv(k[kept], v[kept], keys, values, kv_rows[kept])

    def _sequences(self, start: Tensor, slots: Tensor) -> list[tuple[slice, tuple[Tensor, Tensor]]]:
        tables = self.recurrences.of((start, slots), lambda: recurrence_tables(start, slots, "cpu"))
        bounds = tables.parts["bounds"].tolist()
        return [
            (slice(begin, end), (torch.tensor([0, end - begin]), torch.tensor([slot])))
            for begin, end, slot in zip(bounds[:-1], bounds[1:], tables.parts["slots"].tolist(), strict=True)
            if slot >= 0
        ]


class CallingRecorder:
    """Runs again what it was told to record, into the same tensor. ``num_recorded`` were."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.num_recorded += 1
        result = run()

        def replay() -> None:
            with torch.inference_mode():
                result.copy_(run())

        return result, replay
