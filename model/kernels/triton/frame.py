"""The tables of a decode step that is recorded once and replayed: their numbers change, their places do not."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from model.batch import Batch
from model.kernels.triton.tables import (
    LEAST_SPLIT_BLOCKS,
    SPAN_COLUMNS,
    Integers,
    Latest,
    Tables,
    paging_pieces,
    paging_tables,
    recurrence_pieces,
)
from model.policy import AttentionPolicy
from model.tiles import MAX_SPLITS

# Of a row that is nobody's: no slot, no row of the pool, nothing to see. It writes nothing but its own activations.
NOBODY = -1


class DecodeFrame:
    """A step of ``num_rows`` decodes that see at most ``width`` blocks each.

    ``batch`` is what the model is run with; ``load`` puts a step into it. Rows that a step leaves over are padding.
    """

    def __init__(
        self, num_rows: int, width: int, device: str, recurrences: Latest[Tables], pagings: Latest[Tables]
    ) -> None:
        self.num_rows, self.width = num_rows, width
        self._recurrences, self._pagings = recurrences, pagings
        rows = torch.arange(num_rows, device=device)
        self.batch = Batch(
            input_ids=torch.zeros_like(rows),
            query_start=torch.arange(num_rows + 1),
            state_slots=torch.full((num_rows,), NOBODY),
            kv_rows=torch.full_like(rows, NOBODY),
            logits_rows=rows,
            first_positions=(0,) * num_rows,
            block_tables=((),) * num_rows,
            policies=(AttentionPolicy(),) * num_rows,
            num_decodes=num_rows,
        )
        sizes = {"num_sequences": num_rows, "num_tiles": num_rows, "longest": 1, "tile_tokens": 1}
        self._recurrence = Tables.sent(self._slots(()), sizes, device)
        num_splits = min(MAX_SPLITS, -(-width // LEAST_SPLIT_BLOCKS))
        self._paging = paging_tables(self._places(None), device, num_splits)

    def load(self, batch: Batch) -> None:
        """Put a step of decodes, not more than ``num_rows``, into the frame's tensors."""
        count = batch.num_tokens
        assert count == batch.num_decodes <= self.num_rows, f"{count} tokens of {batch.num_decodes} decodes"
        self.batch.input_ids[:count] = batch.input_ids
        self.batch.kv_rows[:count] = batch.kv_rows
        self.batch.kv_rows[count:] = NOBODY
        self._recurrence.overwrite(self._slots(batch.state_slots.tolist()))
        self._paging.overwrite(self._places(batch))

    @contextmanager
    def entered(self) -> Iterator[Batch]:
        """Let the kernels take the frame's tables for those of its ``batch``, which is given."""
        batch = self.batch
        self._recurrences.put((batch.query_start, batch.state_slots), self._recurrence)
        paged = batch.query_start, batch.first_positions, batch.block_tables, batch.policies
        self._pagings.put(paged, self._paging)
        yield batch

    def _slots(self, slots: tuple[int, ...] | list[int]) -> dict[str, Integers]:
        padded = [*slots, *[NOBODY] * (self.num_rows - len(slots))]
        return recurrence_pieces(range(self.num_rows + 1), padded)

    def _places(self, batch: Batch | None) -> dict[str, Integers]:
        """The paging of ``batch``, or of nobody, with rows that see nothing behind it."""
        count = 0 if batch is None else batch.num_tokens
        spans = np.zeros((self.num_rows, len(SPAN_COLUMNS)), np.int32)
        spans[:, SPAN_COLUMNS.index("split_blocks")] = LEAST_SPLIT_BLOCKS
        spans[:, SPAN_COLUMNS.index("row")] = np.arange(self.num_rows)
        entries = np.zeros((self.num_rows, self.width), np.int32)
        if batch is not None:
            own = paging_pieces(
                range(count + 1), batch.first_positions, batch.block_tables, batch.policies, 1, self.width
            )
            spans[:count], entries[:count] = own["spans"], own["entries"]
        return {
            "spans": spans,
            "entries": entries,
            "decodes": np.arange(self.num_rows, dtype=np.int32),
            "tile_sequence": np.zeros(0, np.int32),
            "tile_token": np.zeros(0, np.int32),
            "lengths": np.ones(self.num_rows, np.int32),
        }
