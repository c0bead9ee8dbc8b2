"""Which blocks of the archive share an index, and which tokens choose by it. No torch."""

import math
from dataclasses import dataclass

from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import SUMMARY_ROWS, summary_shape

# Measured by bench/archive_index.py: means of a list, and the part of the lists that is looked through.
LIST_ROWS = 64
PROBED_PART = 8
INT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """``num_blocks`` neighbours of a text, counted from its sinks on, share an index: their means lie in ``num_lists``
    lists of like ones, and a token looks through the ``num_probed`` whose centres meet its query best.

    It does so once the last of them stands ``num_late`` blocks before its window, and scans them until then: so an
    index is of blocks that left the windows in an earlier step, however a prompt of steps of at most ``num_late``
    blocks is cut, and what is chosen depends on positions and on what stands there.
    """

    num_blocks: int
    num_lists: int
    num_probed: int
    num_late: int

    @staticmethod
    def of(num_blocks: int, chunk_tokens: int) -> "IndexPlan":
        """For indexes of ``num_blocks``, where a step reads ``chunk_tokens`` of a prompt at most."""
        num_lists = max(1, num_blocks * SUMMARY_ROWS // LIST_ROWS)
        return IndexPlan(num_blocks, num_lists, max(1, num_lists // PROBED_PART), -(-chunk_tokens // BLOCK_TOKENS))

    def num_indexed(self, policy: AttentionPolicy, position: int, select_from: int) -> int:
        """By how many indexes the token at ``position`` chooses."""
        if policy.name is not PolicyName.ARCHIVE or position < select_from:
            return 0
        beyond = policy.window_start(position) // BLOCK_TOKENS - self.num_late
        return max(0, (beyond - policy.sinks // BLOCK_TOKENS) // self.num_blocks)

    def most_bytes(self, num_layers: int, num_heads: int, width: int, item_bytes: int) -> int:
        """Most bytes of one index: its lists end in strips that are not full."""
        strip = math.prod(summary_shape(width, item_bytes)) * item_bytes
        num_strips = self.num_blocks + self.num_lists
        centres = -(-self.num_lists // SUMMARY_ROWS) * strip
        listed = num_strips * (strip + SUMMARY_ROWS * INT32_BYTES) + (self.num_lists + 1) * INT32_BYTES
        return num_layers * num_heads * (centres + listed)
