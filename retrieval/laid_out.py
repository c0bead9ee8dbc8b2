"""The words and vectors of several documents laid end to end, as they come from the store."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.word_counts import FIELDS, joined

Numbers = NDArray[np.int64]


class Piece(NamedTuple):
    """A document as the store has it: its number, the revisions of its contents (-1 without vectors), its words
    (``WordCounts.to_bytes``) and, once they stand, its vectors."""

    number: int
    chunks_revision: int
    vectors_revision: int
    counts: bytes
    vectors: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class LaidOut:
    """Documents, chunks, postings and vectors, each in the order of the documents. ``num_vectors`` is 0 for a document
    whose vectors do not stand; ``chunks`` are numbered through."""

    numbers: Numbers
    revisions: Numbers
    num_chunks: Numbers
    num_vectors: Numbers
    num_rows: Numbers
    lengths: NDArray[np.uint32]
    terms: NDArray[np.uint64]
    chunks: NDArray[np.int32]
    counts: NDArray[np.uint16]
    bits: NDArray[np.uint8]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, pieces: Sequence[Piece], dimension: int) -> Self:
        """Documents as they come from the store."""
        counts, num_chunks, num_postings = joined([piece.counts for piece in pieces])
        first = np.repeat(starts(num_chunks)[:-1], num_postings)
        vectors = [piece.vectors for piece in pieces if piece.vectors is not None]
        return cls(
            numbers=np.array([piece.number for piece in pieces], np.int64),
            revisions=np.array([piece[1:3] for piece in pieces], np.int64).reshape(len(pieces), 2),
            num_chunks=num_chunks,
            num_vectors=np.array([0 if piece.vectors is None else len(piece.vectors) for piece in pieces], np.int64),
            num_rows=counts.chunks["rows"].astype(np.int64),
            lengths=np.stack([counts.chunks[field] for field in FIELDS], axis=-1),
            terms=counts.postings["term"],
            chunks=(counts.postings["chunk"] + first).astype(np.int32),
            counts=counts.postings["count"],
            bits=counts.postings["fields"],
            vectors=np.concatenate(vectors) if vectors else np.empty((0, dimension), np.float32),
        )

    @classmethod
    def end_to_end(cls, parts: Sequence["LaidOut"]) -> "LaidOut":
        """Several as one, in their order."""
        before = starts(np.array([len(part.num_rows) for part in parts], np.int64)).tolist()
        arrays = {each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)}
        moved = [part.chunks + np.int32(first) for part, first in zip(parts, before, strict=False)]
        return cls(**{**arrays, "chunks": np.concatenate(moved)})

    def kept(self, wanted: NDArray[np.bool_]) -> "LaidOut":
        """The documents that are ``wanted`` [documents], with nothing of the others left in it."""
        by_chunk = np.repeat(wanted, self.num_chunks)
        by_posting = by_chunk[self.chunks]
        new_chunk = np.cumsum(by_chunk, dtype=np.int32) - np.int32(1)
        return LaidOut(
            numbers=self.numbers[wanted],
            revisions=self.revisions[wanted],
            num_chunks=self.num_chunks[wanted],
            num_vectors=self.num_vectors[wanted],
            num_rows=self.num_rows[by_chunk],
            lengths=self.lengths[by_chunk],
            terms=self.terms[by_posting],
            chunks=new_chunk[self.chunks[by_posting]],
            counts=self.counts[by_posting],
            bits=self.bits[by_posting],
            vectors=self.vectors[np.repeat(wanted, self.num_vectors)],
        )


def starts(sizes: Numbers) -> Numbers:
    """Where each of several things begins that lie end to end, and where the last one ends."""
    found: Numbers = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    return found
