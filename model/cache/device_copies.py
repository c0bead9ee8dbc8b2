"""Copies of what is in host memory on a device, which kernels wait for and the host does not.

The other way round from :mod:`model.cache.host_copies`. What is sent lies in pinned memory and is not written to before
it has left; where it goes is not written to before the device is done with what it was told to do there.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PROBED_BYTES = 1 << 20


class Lift(Protocol):
    """A way from the host to the device, beside the stream of the steps."""

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory to send from. Raises RuntimeError where there is none."""
        ...

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy each source to its target, when all is done that the device was told so far; what it is told from now on
        waits for the copies."""
        ...

    def wait(self) -> None:
        """Until everything that was sent has left, so that its sources may be written to."""
        ...


class CudaLift:
    """From pinned memory, on a stream of its own. Not run on a device yet: see ``verified_lift``."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See :class:`Lift`."""
        return torch.empty(*shape, dtype=dtype, pin_memory=True)

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """See :class:`Lift`."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
        current.wait_stream(self._stream)

    def wait(self) -> None:
        """See :class:`Lift`."""
        self._stream.synchronize()


class DirectLift:
    """Copies at once: on a CPU, and to a device whose own way was seen to fail."""

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See :class:`Lift`."""
        return torch.empty(*shape, dtype=dtype)

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """See :class:`Lift`."""
        for source, target in pairs:
            target.copy_(source)

    def wait(self) -> None:
        """See :class:`Lift`."""


def lift_to(device: str) -> Lift:
    """The way to ``device``."""
    return verified_lift(device) if device.startswith("cuda") else DirectLift()


def verified_lift(device: str) -> Lift:
    """The way to ``device`` beside its steps, if what is read before a copy is as it was, what is read after it has
    arrived, and what was sent may be written to afterwards; else the direct one."""
    try:
        lift = CudaLift(device)
        room = lift.room((PROBED_BYTES,), torch.uint8)
        target = torch.zeros(PROBED_BYTES, dtype=torch.uint8, device=device)
        room.fill_(1)
        before = target.clone()
        lift.send([(room, target)])
        after = target.clone()
        lift.wait()
        room.fill_(2)
        if not before.any() and bool((after == 1).all()):
            return lift
        reason = "what arrived was not what was sent"
    except RuntimeError as error:
        reason = str(error)
    logger.warning("copies to %s are waited for one by one: %s", device, reason)
    return DirectLift()
