"""Recurrent states by slot: what the Mamba layers of a sequence remember, constant in its length."""

import torch
from torch import Tensor

from model.cache.host_copies import HostCopies
from model.config import ModelConfig
from model.errors import PoolExhausted
from model.huge_pages import zeros


class StatePool:
    """A fixed number of slots, each the scan and convolution state of one sequence in every Mamba layer.

    ``ssm`` [Mamba layers, slots, N, I] and ``conv`` [Mamba layers, slots, K-1, I], both float32 and both in the
    layout that ``model.kernels.reference`` states. All memory is taken at construction. A slot is free, used by a
    sequence, or cached: a checkpoint's, which can be given up.
    """

    def __init__(self, config: ModelConfig, num_slots: int, device: str = "cpu") -> None:
        layers, inner = config.num_mamba_layers, config.inner_size
        # Written and not only promised zeros: pages that are touched later could be refused later.
        self.ssm = zeros((layers, num_slots, config.state_size, inner), torch.float32, device).zero_()
        self.conv = zeros((layers, num_slots, config.conv_width - 1, inner), torch.float32, device).zero_()
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._used: set[int] = set()
        self._cached: set[int] = set()
        self._copies = HostCopies.of(device)

    @property
    def num_free(self) -> int:
        """Slots nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots that sequences hold."""
        return len(self._used)

    @property
    def num_cached(self) -> int:
        """Slots that checkpoints hold."""
        return len(self._cached)

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

    def allocate(self, is_cached: bool = False) -> int:
        """Hand out a slot with a fresh (zero) state, ``is_cached`` to a checkpoint. Raises PoolExhausted where none is
        free."""
        if not self._free:
            raise PoolExhausted("state", 1, 0, self.num_slots)
        slot = self._free.pop()
        (self._cached if is_cached else self._used).add(slot)
        self.zero(slot)
        return slot

    def free(self, slot: int) -> None:
        """Take back a slot that ``allocate`` handed out."""
        assert slot in self._used or slot in self._cached, f"slot {slot} is not in use"
        self._used.discard(slot)
        self._cached.discard(slot)
        self._free.append(slot)

    def keep(self, slot: int) -> None:
        """Let a sequence's slot become a checkpoint's."""
        self._used.remove(slot)
        self._cached.add(slot)

    def zero(self, slot: int) -> None:
        """Make the state of ``slot`` that of a sequence that has read nothing."""
        self.ssm[:, slot].zero_()
        self.conv[:, slot].zero_()

    def copy(self, source: int, target: int) -> None:
        """Overwrite the state in ``target`` with the one in ``source``; both slots are in use."""
        held = self._used | self._cached
        assert source in held and target in held, f"copy {source} -> {target} touches a free slot"
        self.ssm[:, target] = self.ssm[:, source]
        self.conv[:, target] = self.conv[:, source]

    def content(self, slot: int) -> tuple[Tensor, Tensor]:
        """The scan and the convolution state of ``slot`` in host memory, from the next ``settle`` on."""
        return self._copies.begin(self.ssm[:, slot]), self._copies.begin(self.conv[:, slot])

    def settle(self) -> None:
        """Wait for what was copied to the host. Idempotent."""
        self._copies.settle()

    def check(self) -> None:
        """Assert conservation: every slot is free, used or cached, never two of them, never none."""
        parts = [*self._free, *self._used, *self._cached]
        assert len(parts) == len(set(parts)), "a slot is two of free, used and cached, or was freed twice"
        assert set(parts) == set(range(self.num_slots)), "a slot got lost"
