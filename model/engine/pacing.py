"""How much of a step's time prompts may take beside streams. No torch."""

# Weight of the newest decode step in the running mean.
FRESHNESS = 0.2


class Pacing:
    """Lets prompts have ``prefill_share`` of the time while streams run, and all of it while none do.

    Each second of decoding earns prompts ``share / (1 - share)`` seconds; a step that reads prompts spends what it
    took beyond a step that only decodes. So a stream beside a long prompt keeps ``1 - share`` of its pace, whatever
    the model and the machine, and no more is saved up than one step.
    """

    def __init__(self, prefill_share: float) -> None:
        self._earning = prefill_share / (1 - prefill_share)
        self._decode_seconds: float | None = None
        self._credit_seconds = 0.0

    @property
    def allows_prompts(self) -> bool:
        """Whether the next step beside streams may read prompts."""
        return self._credit_seconds >= 0

    def rest(self) -> None:
        """There were no streams, or no prompts: nothing is owed."""
        self._credit_seconds = 0.0

    def record(self, seconds: float, reads_prompts: bool) -> None:
        """A step with streams took ``seconds``."""
        if not reads_prompts:
            before = seconds if self._decode_seconds is None else self._decode_seconds
            self._decode_seconds = before + FRESHNESS * (seconds - before)
            self._credit_seconds = min(0.0, self._credit_seconds + seconds * self._earning)
            return
        decoding = min(seconds, self._decode_seconds or 0.0)
        self._credit_seconds += decoding * self._earning - (seconds - decoding)
