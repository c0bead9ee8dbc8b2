"""Texts in a library, and where each way of searching finds what is asked: the product, and its baselines."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from retrieval.embedder import Embedder
from retrieval.fusion import fuse
from retrieval.library import Library
from retrieval.passage import DocumentStatus, Span
from retrieval.passages import Rankings, compose
from retrieval.record import Record

TENANT = "default"
FIRST = 5
PRODUCT = "product"
# The product before it decides that nothing was found; the learned ranking without the key table; and what there was
# before it was learned: reciprocal ranks with equal weights, words alone, nearest sentence alone. All are composed to
# passages in the same way, so that none wins by longer ones.
BASELINES = ("ungated", "no keys", "plain fusion", "lexical", "dense")


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

    def product(self, question: str, document_id: str) -> list[Span]:
        """The passages that a question of a client is answered from; none where it is told that nothing was found."""
        result = self.library.search(TENANT, question, [document_id], FIRST)
        return [passage.span for passage in result.passages] if result.found else []

    def baselines(self, question: str, document_id: str) -> dict[str, list[Span]]:
        """The first passages of each baseline, best first."""
        library = self.library
        record = library._store.record(document_id, TENANT)
        whole: Rankings = library._search.rank(question, [record])
        ranked = {"lexical": whole.lexical, "dense": [*whole.dense]}
        without_keys = replace(whole, keys={})
        ways = {
            "ungated": whole,
            "no keys": without_keys,
            "plain fusion": replace(without_keys, scores=fuse(ranked, {"lexical": 1.0, "dense": 1.0})),
            "lexical": replace(without_keys, scores=fuse({"lexical": whole.lexical}, {"lexical": 1.0})),
            "dense": replace(without_keys, scores=fuse({"dense": [*whole.dense]}, {"dense": 1.0})),
        }
        return {name: self._composed(record, rankings) for name, rankings in ways.items()}

    def text(self, document_id: str, span: Span) -> str:
        return self.library.text(TENANT, document_id, span.start, span.end)

    def _composed(self, record: Record, rankings: Rankings) -> list[Span]:
        library = self.library
        return [p.span for p in compose(library._store, library._contents, [record], rankings, FIRST)]
