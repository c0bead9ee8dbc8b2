"""A device that is late: what it is told is done when somebody waits for it, and copies beside it in any order."""

from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

LATE = 77.0


class LateLink:
    """Takes aside what is sent and delivers it when it is waited for, as a stream may."""

    def __init__(self) -> None:
        self.sent: list[tuple[Tensor, Tensor]] = []

    def send(self, source: Tensor) -> Tensor:
        arriving = torch.full(source.shape, LATE).to(source.dtype)
        self.sent.append((arriving, source.clone()))
        return arriving

    def wait(self) -> None:
        for arriving, content in self.sent:
            arriving.copy_(content)
        self.sent.clear()


class LateDevice:
    """Two streams, as :class:`model.cache.device_copies.Lift` has them: that of the steps, and that of the copies.

    Each does what it is told in its order. A copy waits for what the steps' stream had been told before it, and what
    that is told later for the copy; beyond that ``dice`` decide which goes on. A copy reads its source when it is done.
    """

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        # What each stream has to do yet, with how much of the other must be done before.
        self.steps: list[tuple[int, Callable[[], None]]] = []
        self.copies: list[tuple[int, Callable[[], None]]] = []
        self.num_done = [0, 0]

    def run(self, launched: Callable[[], None]) -> None:
        """Tell the steps' stream."""
        self.steps.append((self.num_done[1] + len(self.copies), launched))
        self._go_on()

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), LATE).to(dtype)

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for source, target in pairs:
            self.copies.append((self.num_done[0] + len(self.steps), lambda s=source, t=target: t.copy_(s)))
        self._go_on()

    def wait(self) -> None:
        while self.copies:
            self._do(1 if self._is_free(1) else 0)

    def drain(self) -> None:
        """Until everything is done."""
        while self.steps or self.copies:
            self._go_on(1)

    def _go_on(self, most: int = 3) -> None:
        for _ in range(self.dice.randint(1, most) if most == 1 else self.dice.randint(0, most)):
            free = [stream for stream in (0, 1) if self._is_free(stream)]
            if free:
                self._do(self.dice.choice(free))

    def _is_free(self, stream: int) -> bool:
        queue = self.copies if stream else self.steps
        return bool(queue) and queue[0][0] <= self.num_done[1 - stream]

    def _do(self, stream: int) -> None:
        assert self._is_free(stream), "the streams wait for each other"
        _, work = (self.copies if stream else self.steps).pop(0)
        work()
        self.num_done[stream] += 1
