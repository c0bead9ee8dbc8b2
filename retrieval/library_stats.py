"""What a library holds and takes, counted."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LibraryStats:
    """The library's bill at one moment. ``host_bytes`` by index and embeddings, ``disk_bytes`` by store and index.

    ``num_pending`` documents have an index that is behind the store; of those that cannot be asked yet the first has
    waited for ``waiting_seconds``.
    """

    num_documents: dict[str, int]
    num_vectors: int
    num_facts: int
    host_bytes: dict[str, int]
    disk_bytes: dict[str, int]
    num_pending: int = 0
    waiting_seconds: float = 0.0
