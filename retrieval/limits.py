"""What one library takes on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one library takes on: characters and facts of a document, and bytes of indexes held in memory."""

    max_characters: int = 20_000_000
    max_index_bytes: int = 1 << 30
    max_facts: int = 500_000
