"""An embedder that computes the vector of a text once, whatever run and whatever document the text stands in."""

import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.embedder import Embedder, Vectors

# SQLite takes at most 32,766 variables in a statement; a batch of the ingestion has 128.
LOOKUP = 500


class KeptVectors:
    """``inner`` with its passages' vectors on the disk under the hash of their text; same fingerprint, same vectors.

    The cells of a run share most of their haystack, and embedding it is nearly all that a cell costs. One vector may
    differ in its last bits from what ``inner`` would give beside other texts of a batch. Questions are not kept.
    """

    def __init__(self, inner: Embedder, path: Path) -> None:
        self._inner = inner
        self.dimension = inner.dimension
        self.fingerprint = inner.fingerprint
        self.num_computed = 0
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, timeout=60)
        # A cache: what a power cut takes is computed again.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def close(self) -> None:
        self._database.close()

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        keys = [self._key(text) for text in texts]
        with self._lock:
            known = self._known(keys)
            new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            if new:
                vectors = self._inner.embed_passages(list(new.values()))
                known |= dict(zip(new, vectors, strict=True))
                rows = [(key, vector.tobytes()) for key, vector in zip(new, vectors, strict=True)]
                with self._database:
                    self._database.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
                self.num_computed += len(new)
        made: Vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for row, key in enumerate(keys):
            made[row] = known[key]
        return made

    def embed_query(self, text: str) -> Vectors:
        return self._inner.embed_query(text)

    def _key(self, text: str) -> bytes:
        return hashlib.blake2b(f"{self.fingerprint}\0{text}".encode(), digest_size=16).digest()

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        found: dict[bytes, Vectors] = {}
        for first in range(0, len(keys), LOOKUP):
            part = keys[first : first + LOOKUP]
            marks = ",".join("?" * len(part))
            rows = self._database.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", part)
            found |= {key: np.frombuffer(vector, dtype=np.float32) for key, vector in rows}
        return found
