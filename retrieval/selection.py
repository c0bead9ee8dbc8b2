"""The documents of one question, with what is made of all of them once: names to be met, places by number."""

import sys
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import overload

import numpy as np
from typing_extensions import override

from retrieval.asked_documents import Names
from retrieval.chunker import HEADING_SEPARATOR
from retrieval.contents import Contents
from retrieval.laid_out import Numbers
from retrieval.record import Listed

# A place in two tables, with its key.
_PLACE_BYTES = 200


class Selection(Sequence[Listed]):
    """Documents of ``tenant`` in their order, as the store had them at its revision ``as_of``, None where nobody knows.

    Any number of threads may read it.
    """

    def __init__(self, documents: Sequence[Listed], tenant: str = "", as_of: int | None = None) -> None:
        self._documents = documents
        self.tenant = tenant
        self.as_of = as_of
        self._names: Names | None = None

    @overload
    def __getitem__(self, place: int) -> Listed: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Listed]: ...
    @override
    def __getitem__(self, place: int | slice) -> Listed | Sequence[Listed]:
        return self._documents[place]

    @override
    def __len__(self) -> int:
        return len(self._documents)

    def is_of(self, documents: Sequence[Listed]) -> bool:
        """Whether these are the documents, unchanged."""
        return self._documents == documents

    @cached_property
    def numbers(self) -> Numbers:
        """Of each document."""
        return np.fromiter((record.number for record in self._documents), np.int64, len(self))

    @cached_property
    def revisions(self) -> Numbers:
        """Of each document those of its chunks and its vectors, -1 for vectors that do not stand."""
        pairs = (
            (record.chunks_revision or 0, -1 if record.vectors_revision is None else record.vectors_revision)
            for record in self._documents
        )
        return np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(self)).reshape(-1, 2)

    @cached_property
    def num_rows(self) -> Numbers:
        """Of each document how many rows get a vector."""
        return np.fromiter((record.num_rows for record in self._documents), np.int64, len(self))

    @cached_property
    def places(self) -> dict[int, int]:
        """Where the document of a number is."""
        return {record.number: place for place, record in enumerate(self._documents)}

    def at(self, places: Numbers) -> "Selection":
        """The documents at these places."""
        if len(places) == len(self):
            return self
        return Selection([self._documents[place] for place in places.tolist()], self.tenant, self.as_of)

    def names(self, contents: Contents) -> Names:
        """The names of the documents, and their titles: the first heading of a text."""
        if self._names is None:
            firsts = contents.first_headings(self.numbers.tolist()) if len(self) > 1 else {}
            titles = [firsts.get(record.number, "").split(HEADING_SEPARATOR)[0] for record in self._documents]
            self._names = Names([record.name for record in self._documents], titles)
        return self._names

    @property
    def num_bytes(self) -> int:
        """See ``Held.num_bytes``; about."""
        texts = sum(sys.getsizeof(record.id) + sys.getsizeof(record.name) for record in self._documents)
        tables = sum(map(sys.getsizeof, self._documents)) + _PLACE_BYTES * len(self)
        return texts + tables + (self._names.num_bytes if self._names is not None else 0)

    @property
    def embedding_bytes(self) -> int:
        """See ``Held.embedding_bytes``."""
        return 0
