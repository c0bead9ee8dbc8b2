"""Texts in a library, and where each way of searching finds what is asked: the product, and its baselines."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrieval.embedder import Embedder
from retrieval.library import Library
from retrieval.passage import DocumentStatus, Passage, Span
from retrieval.passages import Rankings, compose

TENANT = "default"
FIRST = 5
PRODUCT = "product"
# What each baseline is not given. All are composed to passages in the same way, so that none wins by longer ones.
BASELINES: dict[str, dict[str, Any]] = {
    "no keys": {"keys": {}},
    "lexical": {"keys": {}, "dense": {}},
    "dense": {"keys": {}, "lexical": ()},
}


class Archive:
    """A library in ``directory``, which a context manager removes unless it is to be kept."""

    def __init__(
        self, directory: Path, embedder: Embedder, count_tokens: Callable[[str], int], keep: bool = False
    ) -> None:
        self._directory = directory
        self._keep = keep
        self.library = Library.open(directory / "data", embedder, count_tokens=count_tokens)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.library.close()
        if not self._keep:
            shutil.rmtree(self._directory)

    def add(self, text: str, name: str) -> str:
        """Take a text in to the last stage; its document's id. One that is there already costs nothing."""
        source = self._directory / "source.txt"
        source.write_bytes(text.encode())
        document, is_new = self.library.add(TENANT, name, "text/plain", source)
        if is_new:
            self.library.process(document.id)
        document = self.library.get(TENANT, document.id)
        assert document.status is DocumentStatus.READY, document.error
        return document.id

    def num_tokens(self, document_id: str) -> int:
        return self.library.get(TENANT, document_id).num_tokens or 0

    def product(self, question: str, document_id: str) -> tuple[Passage, ...]:
        """What a question of a client is answered from; nothing where the search says that nothing was found."""
        return self.library.search(TENANT, question, [document_id], FIRST).passages

    def baselines(self, question: str, document_id: str) -> dict[str, list[Span]]:
        """Spans of the first passages of each baseline, best first, whatever the search would say of them."""
        library = self.library
        record = library._store.record(document_id, TENANT)
        rankings: Rankings = library._search.rank(question, [record])
        return {
            name: [
                passage.span
                for passage in compose(library._store, library._contents, [record], replace(rankings, **without), FIRST)
            ]
            for name, without in BASELINES.items()
        }
