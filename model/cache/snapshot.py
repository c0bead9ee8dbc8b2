"""What a sequence remembers after so many tokens, as plain tensors in host memory: the unit of saving and restoring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from model.cache.kv_archive import ArchivedBlock


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class BlockContent:
    """Keys and values [attention layers, P, G, E] of one block, in the weight dtype. Snapshots share them."""

    keys: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A checkpoint apart from every pool; nothing of it is ever written to.

    ``num_tokens`` were read. ``ssm`` [Mamba layers, N, I] and ``conv`` [Mamba layers, K-1, I] are float32. ``blocks``
    by ``position // P``: those that later tokens can see; the others had been given back. ``hidden`` [D] float32 is the
    last token's row before the LM head, None where it is not known. ``information_bits`` is the surprisal of the
    tokens but the first, None where it was not computed. ``archive`` are the blocks that left the window, from place
    ``archive_place`` on: of the archive, or apart from it where they were read from the disk. Blocks were selected from
    position ``selected_from`` on; None where none were yet.
    """

    num_tokens: int
    ssm: Tensor
    conv: Tensor
    blocks: Mapping[int, BlockContent]
    hidden: Tensor | None = None
    information_bits: float | None = None
    archive: "Sequence[ArchivedBlock | BlockContent]" = ()
    archive_place: int = 0
    selected_from: int | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state and the hidden row."""
        return self.ssm.nbytes + self.conv.nbytes + (0 if self.hidden is None else self.hidden.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors but those of the archive, shared ones in full."""
        return self.state_bytes + sum(content.nbytes for content in self.blocks.values())
