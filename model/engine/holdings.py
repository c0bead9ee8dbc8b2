"""What requests and checkpoints hold, in bytes. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes of the tensors that the sequences of one request hold; what they share is counted once. Those of the
    archive are on the host."""

    kv: int = 0
    ssm_state: int = 0
    conv_state: int = 0
    kv_archive: int = 0
    kv_summaries: int = 0

    @property
    def total(self) -> int:
        """All of the device's."""
        return self.kv + self.ssm_state + self.conv_state


@dataclass(frozen=True, slots=True)
class Holding:
    """Where the deepest checkpoint of a text is (``resident``, ``host``, or ``none``), after how many tokens it was
    kept, and the bytes it takes there, shared ones in full."""

    tier: str = "none"
    num_tokens: int = 0
    kv_bytes: int = 0
    ssm_state_bytes: int = 0
    conv_state_bytes: int = 0
    kv_archive_bytes: int = 0
