"""A question to passages: keys first, then words, then meaning; fused, exact hits always in."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from retrieval.contents import Contents, StoredFact
from retrieval.embedder import Embedder
from retrieval.fusion import fuse
from retrieval.keys import query_keys
from retrieval.lexical_index import LexicalQuery, search_lexical
from retrieval.passage import SearchResult
from retrieval.passages import KeyHit, Place, compose
from retrieval.shelf_files import Shelf
from retrieval.shelves import Shelves
from retrieval.store import Record, Store

# Candidates each search contributes to the fusion.
DEPTH = 50
WEIGHTS = {"lexical": 0.5, "dense": 1.0}
# Below this inner product the nearest passage has nothing to do with the question.
DENSE_FLOOR = 0.2


class Search:
    """Finds passages in documents that can be asked. Any number of threads may search at once."""

    def __init__(self, store: Store, contents: Contents, shelves: Shelves, embedder: Embedder) -> None:
        self._store = store
        self._contents = contents
        self._shelves = shelves
        self._embedder = embedder

    def run(self, question: str, records: Sequence[Record], max_passages: int) -> SearchResult:
        """The best passages of ``records``, which must be answerable. The same store gives the same result.

        Raises:
            UnknownDocument: one of them was deleted meanwhile.
        """
        seconds: dict[str, float] = {}
        with _timed(seconds, "keys"):
            facts = self._facts(question, records)
            key_hits = _key_hits(facts, records)
        with _timed(seconds, "lexical"):
            shelves = [self._shelves.open(record) for record in records]
            words = LexicalQuery.of(question)
            hits, num_words = search_lexical([shelf.lexical for shelf in shelves], words, DEPTH)
            lexical: list[Place] = [(document, ordinal) for document, ordinal, _ in hits]
        with _timed(seconds, "dense"):
            dense, nearest = self._dense(question, shelves)
        with _timed(seconds, "fusion"):
            scores = fuse({"lexical": lexical, "dense": dense}, WEIGHTS)
            found = bool(key_hits) or num_words > 0 or nearest >= DENSE_FLOOR
            passages = (
                compose(
                    self._store,
                    self._contents,
                    records,
                    key_hits,
                    scores,
                    _finders(lexical, dense),
                    words.exact,
                    max_passages,
                )
                if found
                else ()
            )
        return SearchResult(
            passages=passages,
            found=bool(passages),
            reason=_reason(shelves),
            num_facts=len({(fact.document, fact.span) for fact in facts}),
            num_chunks_searched=sum(len(shelf.lexical) for shelf in shelves),
            seconds=seconds,
        )

    def _facts(self, question: str, records: Sequence[Record]) -> list[StoredFact]:
        keys = list(dict.fromkeys(form for key in query_keys(question) for form in key.folded))
        return self._contents.facts_by_key([record.number for record in records], keys) if keys else []

    def _dense(self, question: str, shelves: Sequence[Shelf]) -> tuple[list[Place], float]:
        indexes = [(document, shelf.vectors) for document, shelf in enumerate(shelves) if shelf.vectors is not None]
        if not indexes:
            return [], -1.0
        query = self._embedder.embed_query(question)
        hits = [
            (score, document, ordinal)
            for document, vectors in indexes
            for ordinal, score in vectors.search(query, DEPTH)
        ]
        hits.sort(key=lambda hit: (-hit[0], hit[1], hit[2]))
        return [(document, ordinal) for _, document, ordinal in hits[:DEPTH]], hits[0][0] if hits else -1.0


def _key_hits(facts: Sequence[StoredFact], records: Sequence[Record]) -> dict[Place, KeyHit]:
    documents = {record.number: document for document, record in enumerate(records)}
    hits: dict[Place, KeyHit] = {}
    for fact in facts:
        hits.setdefault((documents[fact.document], fact.chunk), KeyHit(fact.form)).note(fact)
    return hits


def _finders(lexical: Sequence[Place], dense: Sequence[Place]) -> dict[Place, tuple[str, ...]]:
    finders: dict[Place, tuple[str, ...]] = {}
    for name, places in (("lexical", lexical), ("dense", dense)):
        for place in places:
            finders[place] = (*finders.get(place, ()), name)
    return finders


def _reason(shelves: Sequence[Shelf]) -> str:
    num_dense = sum(1 for shelf in shelves if shelf.vectors is not None)
    if num_dense == len(shelves):
        return "searched by keys, words and meaning"
    if num_dense == 0:
        return "searched by keys and words; the vectors for a search by meaning are still being computed"
    return (
        f"searched by keys and words, and {num_dense} of {len(shelves)} documents by meaning; "
        "the vectors of the others are still being computed"
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
