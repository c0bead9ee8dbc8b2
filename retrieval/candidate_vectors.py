"""Vectors of no more of a text than a question comes near: a prompt is asked once, and most of it is never compared."""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from retrieval.embedder import Embedder
from retrieval.vector_index import ExactIndex


class CandidateVectors(ExactIndex):
    """Holds the rows that were wanted. One question's own: what is near depends on nothing that was asked before."""

    _embedder: Embedder | None = None
    _texts: Callable[[Sequence[int]], Sequence[str]]

    @classmethod
    def of(cls, embedder: Embedder, texts: Callable[[Sequence[int]], Sequence[str]]) -> Self:
        """None yet; ``texts`` gives those of rows."""
        index = cls(embedder.dimension)
        index._embedder = embedder
        index._texts = texts
        return index

    def want(self, rows: Iterable[int]) -> None:
        """Make the vectors of these rows that are not there."""
        known = set(self._rows[0].tolist())
        missing = sorted(set(rows) - known)
        if missing:
            assert self._embedder is not None, "made by of"
            vectors = self._embedder.embed_passages(self._texts(missing))
            self.add(np.array(missing, np.int64), vectors)

    @override
    def products(self, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See ``VectorIndex.products``; rows that have no vector get one."""
        self.want(ids.tolist())
        return super().products(query, ids)
