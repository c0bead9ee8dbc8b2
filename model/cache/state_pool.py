"""Recurrent states by slot: what the Mamba layers of a sequence remember, constant in its length."""

import torch

from model.config import ModelConfig
from model.errors import PoolExhausted


class StatePool:
    """A fixed number of slots, each the scan and convolution state of one sequence in every Mamba layer.

    ``ssm`` [Mamba layers, slots, N, I] and ``conv`` [Mamba layers, slots, K-1, I], both float32 and both in the
    layout that ``model.kernels.reference`` states. All memory is taken at construction.
    """

    def __init__(self, config: ModelConfig, num_slots: int, device: str = "cpu") -> None:
        layers, inner = config.num_mamba_layers, config.inner_size
        # Written and not only promised zeros: pages that are touched later could be refused later.
        self.ssm = torch.empty(layers, num_slots, config.state_size, inner, device=device).zero_()
        self.conv = torch.empty(layers, num_slots, config.conv_width - 1, inner, device=device).zero_()
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Slots nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots handed out and not yet freed."""
        return len(self._used)

    @property
    def ssm_bytes(self) -> int:
        """Bytes of the scan states of all slots."""
        return self.ssm.nbytes

    @property
    def conv_bytes(self) -> int:
        """Bytes of the convolution states of all slots."""
        return self.conv.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return self.ssm_bytes + self.conv_bytes

    def allocate(self) -> int:
        """Hand out a slot with a fresh (zero) state. Raises PoolExhausted where none is free."""
        if not self._free:
            raise PoolExhausted("state", 1, 0, self.num_slots)
        slot = self._free.pop()
        self._used.add(slot)
        self.zero(slot)
        return slot

    def free(self, slot: int) -> None:
        """Take back a slot that ``allocate`` handed out."""
        assert slot in self._used, f"slot {slot} is not in use"
        self._used.remove(slot)
        self._free.append(slot)

    def zero(self, slot: int) -> None:
        """Make the state of ``slot`` that of a sequence that has read nothing."""
        self.ssm[:, slot].zero_()
        self.conv[:, slot].zero_()

    def copy(self, source: int, target: int) -> None:
        """Overwrite the state in ``target`` with the one in ``source``; both slots are in use."""
        assert source in self._used and target in self._used, f"copy {source} -> {target} touches a free slot"
        self.ssm[:, target] = self.ssm[:, source]
        self.conv[:, target] = self.conv[:, source]

    def check(self) -> None:
        """Assert conservation: every slot is free or used, never both, never neither."""
        free = set(self._free)
        assert len(free) == len(self._free), "a slot was freed twice"
        assert not free & self._used, "a slot is both free and used"
        assert free | self._used == set(range(self.num_slots)), "a slot got lost"
