"""How many threads work on a decode step: one, or all that are allowed; whichever was faster of late. No torch.

Threads that wait for each other lose more than they win while a core is busy with something else, and a decode step
is too short to find that out by itself. The number of threads changes no bit of a result, so it may change at any time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

# One step of so many tries what was slower of late; the newest time of each weighs so much.
STEPS_BETWEEN_TRIALS = 32
FRESHNESS = 0.5


class CrewSize:
    """Chooses for steps of about the same number of sequences. Used by one thread."""

    def __init__(self, num_threads: int) -> None:
        self._sizes = (1,) if num_threads == 1 else (num_threads, 1)
        self._seconds: dict[tuple[int, int], float] = {}
        self._num_steps = 0

    @contextmanager
    def chosen(self, num_sequences: int) -> Iterator[int]:
        """The number of threads for a step over ``num_sequences``, which is timed until the block is left."""
        # Steps of 1, of 2 or 3, of 4 to 7 sequences and so on are alike.
        kind = num_sequences.bit_length()
        size = self._next(kind)
        started = perf_counter()
        yield size
        seconds = perf_counter() - started
        before = self._seconds.get((kind, size), seconds)
        self._seconds[kind, size] = before + FRESHNESS * (seconds - before)

    def _next(self, kind: int) -> int:
        untried = next((size for size in self._sizes if (kind, size) not in self._seconds), None)
        if untried is not None:
            return untried
        self._num_steps += 1
        ranked = sorted(self._sizes, key=lambda size: self._seconds[kind, size])
        return ranked[-1] if self._num_steps % STEPS_BETWEEN_TRIALS == 0 else ranked[0]
