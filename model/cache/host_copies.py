"""Copies of what is on a device in host memory, which the host waits for only when somebody is to read them.

Whoever begins a copy gets a tensor without contents, and ``settle`` fills it. In between the source may be overwritten:
it was copied aside on the device, in the order of the steps. From there it goes to pinned memory on a stream of its
own, beside the next step, and on settling to ordinary memory: what is held is as large as it says, and pinned memory is
taken for what is on its way alone.
"""

import logging
from typing import Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PROBED_BYTES = 1 << 20


class Link(Protocol):
    """A way from the device to the host."""

    def send(self, source: Tensor) -> Tensor:
        """A contiguous tensor in host memory that has the contents of ``source`` after the next ``wait``."""
        ...

    def wait(self) -> None:
        """Until everything that was sent has arrived."""
        ...


class CudaLink:
    """Through pinned memory, on a stream beside that of the steps. Not run on a device yet: see ``verified_link``."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, source: Tensor) -> Tensor:
        """See :class:`Link`. Raises RuntimeError where no memory can be pinned."""
        aside = source.clone(memory_format=torch.contiguous_format)
        target = torch.empty(aside.shape, dtype=aside.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(aside, non_blocking=True)
        # Its memory is not given to others before this stream is done with it.
        aside.record_stream(self._stream)
        return target

    def wait(self) -> None:
        """See :class:`Link`."""
        self._stream.synchronize()


class HostCopies:
    """The copies of one pool. Used by one thread.

    Without a link a copy is complete when it is begun: on a CPU, and on a device whose link was seen to fail.
    """

    def __init__(self, link: Link | None) -> None:
        self._link = link
        self._pending: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def of(device: str) -> "HostCopies":
        """Those of a pool on ``device``."""
        return HostCopies(verified_link(device) if device.startswith("cuda") else None)

    def begin(self, source: Tensor) -> Tensor:
        """A contiguous tensor in host memory that is a copy of ``source`` from the next ``settle`` on.

        ``source`` may be overwritten at once. Raises MemoryError or RuntimeError where there is no memory.
        """
        if self._link is None:
            return source.to("cpu", copy=True).contiguous()
        arriving = self._link.send(source)
        target = torch.empty(arriving.shape, dtype=arriving.dtype)
        self._pending.append((arriving, target))
        return target

    def settle(self) -> None:
        """Fill whatever was begun. Idempotent."""
        if not self._pending or self._link is None:
            return
        self._link.wait()
        for arrived, target in self._pending:
            target.copy_(arrived)
        self._pending.clear()


def verified_link(device: str) -> Link | None:
    """The link to ``device`` if what it sends arrives, although the source is overwritten at once; else None."""
    try:
        link = CudaLink(device)
        source = torch.arange(PROBED_BYTES, device=device).to(torch.uint8).view(2, -1)
        expected = source.t().to("cpu", copy=True)
        arriving = link.send(source.t())
        source.zero_()
        link.wait()
        if torch.equal(arriving, expected):
            return link
        reason = "what arrived was not what was sent"
    except RuntimeError as error:
        reason = str(error)
    logger.warning("copies from %s are waited for one by one: %s", device, reason)
    return None
