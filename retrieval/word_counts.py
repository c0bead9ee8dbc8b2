"""The words of a document's chunks, counted: what a lexical index of it is made of, as a few arrays in one value.

A word is its hash of 64 bits. Of ten million different words two have the same with a probability of 3 in a million.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.lexical_index import EXACT, HEADING, STEMMED, stems
from retrieval.words import words

# Raised whenever the words of a text or this layout change: what was counted before is then counted anew.
COUNTS_FORMAT = 1
# A word that stands equally often as it is written and as a stem, as most do, is counted once for both.
FIELDS = {STEMMED: 1, HEADING: 2, EXACT: 4}
_HEADER = struct.Struct("<II")
_POSTING = np.dtype([("term", "<u8"), ("chunk", "<u4"), ("count", "<u2"), ("fields", "u1")])
_CHUNK = np.dtype([(field, "<u4") for field in FIELDS] + [("rows", "<u4")])
# Words come again and again.
_MAX_KNOWN_TERMS = 100_000


class WordCounts(NamedTuple):
    """``postings`` has a row for each word and chunk: hash, ordinal, how often, and the bits of the ``FIELDS`` that it
    stands in so often. ``chunks`` has for each chunk how many words each field is, and how many rows get a vector."""

    postings: NDArray[np.void]
    chunks: NDArray[np.void]

    @classmethod
    def of(cls, chunks: Sequence[tuple[str, str]], num_rows: Sequence[int]) -> Self:
        """Of the (text, heading) of each chunk, in order, with ``num_rows`` each."""
        postings: list[tuple[int, int, int, int]] = []
        lengths: list[tuple[int, ...]] = []
        for ordinal, ((text, heading), rows) in enumerate(zip(chunks, num_rows, strict=True)):
            exact = words(text)
            own = {STEMMED: stems(exact), HEADING: stems(words(heading)), EXACT: exact}
            fields: dict[tuple[str, int], int] = {}
            for field, tokens in own.items():
                for counted in Counter(tokens).items():
                    fields[counted] = fields.get(counted, 0) | FIELDS[field]
            postings += [(hash_of(word), ordinal, count, bits) for (word, count), bits in fields.items()]
            lengths.append((*(len(own[field]) for field in FIELDS), rows))
        return cls(np.array(postings, _POSTING), np.array(lengths, _CHUNK))

    def to_bytes(self) -> bytes:
        """For ``joined``."""
        return _HEADER.pack(len(self.chunks), len(self.postings)) + self.chunks.tobytes() + self.postings.tobytes()


def joined(stored: Sequence[bytes]) -> tuple[WordCounts, NDArray[np.int64], NDArray[np.int64]]:
    """What ``WordCounts.to_bytes`` gave of several documents, laid end to end; and of each how many chunks and how many
    postings it has. Ordinals are those within the document."""
    sizes = np.array([_HEADER.unpack_from(each) for each in stored], np.int64).reshape(len(stored), 2)
    ends = (_HEADER.size + sizes[:, 0] * _CHUNK.itemsize).tolist()
    chunks = b"".join(each[_HEADER.size : end] for each, end in zip(stored, ends, strict=True))
    postings = b"".join(each[end:] for each, end in zip(stored, ends, strict=True))
    whole = WordCounts(np.frombuffer(postings, _POSTING), np.frombuffer(chunks, _CHUNK))
    return whole, sizes[:, 0], sizes[:, 1]


def rows_by_chunk(chunk_of_row: Sequence[int], num_chunks: int) -> list[int]:
    """How many rows each chunk has."""
    counts = Counter(chain(chunk_of_row))
    return [counts[ordinal] for ordinal in range(num_chunks)]


@lru_cache(maxsize=_MAX_KNOWN_TERMS)
def hash_of(word: str) -> int:
    """The same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
