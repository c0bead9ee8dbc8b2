"""A question to passages: keys first, then words, then meaning; ranked as one, exact hits always in."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from retrieval.asked_documents import AskedDocuments, first_of
from retrieval.asked_keys import Met, meet
from retrieval.candidates import candidates
from retrieval.contents import Contents
from retrieval.cutting import Cuttings, Pieces
from retrieval.embedder import Embedder
from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.features import NAMES, AskedWords, Candidate, features
from retrieval.fusion import fuse
from retrieval.holdings import DEPTH, Holdings
from retrieval.hops import Trail
from retrieval.lexical_index import LexicalHits, LexicalQuery
from retrieval.passage import Cutting, SearchResult
from retrieval.passages import KeyHit, Place, Rankings, compose
from retrieval.ranker import Ranker
from retrieval.rare_words import only_places, rare_places, spread
from retrieval.record import Listed
from retrieval.scope import Scope
from retrieval.selection import Selection
from retrieval.shelves import Shelves
from retrieval.stack_view import StackView
from retrieval.stacks import STACKED_ROWS, Stacks
from retrieval.store import Store

# What a year or a phrase of the question stands in is evidence only this far up by score.
LIKELY = 5
# A chunk that has the only mention of a name, and so large a share of all names of the question, has to do with it.
MOST_NAMES = 0.5
# Of the candidates of each search, how many the learned ranking looks at. Measured on 1875 training questions in a
# text of 1.5 million characters: the answer is among those of depth 24 for 94.9 %, of depth 50 for 96.6 %, at twice the
# time.
RANKED_DEPTH = 24
# The learned ranking knows the inner products of this embedder only. For others there are weighted reciprocal ranks:
# measured on 620 training questions over five corpora, found among the first five: words alone 82.0 %, nearest
# sentence alone 89.4 %, fused so 92.4 % (equal weights: 90.6 %).
LEARNED_WITH = "all-MiniLM-L6-v2/"
WEIGHTS = {"lexical": 0.5, "dense": 1.0}
# And below this inner product the nearest sentence is taken to have nothing to do with the question.
DENSE_FLOOR = 0.33


class Search:
    """Finds passages in documents that can be asked. Any number of threads may search at once."""

    def __init__(
        self, store: Store, contents: Contents, shelves: Shelves, embedder: Embedder, stacks: Stacks | None = None
    ) -> None:
        """Without ``stacks`` every document is asked by itself."""
        self._store = store
        self._stacks = stacks
        self._contents = contents
        self._shelves = shelves
        self._embedder = embedder
        self._cuttings = Cuttings(store.database)
        self._is_learned = embedder.fingerprint.startswith(LEARNED_WITH)

    def run(
        self,
        question: str,
        records: Sequence[Listed],
        max_passages: int,
        scope: Scope | None = None,
        cuttings: Mapping[str, Sequence[Cutting | None]] | None = None,
    ) -> SearchResult:
        """The best passages of ``records``, which must be answerable, or of what of them is in ``scope``; cut as
        ``cuttings`` say.

        The same store gives the same result.

        Raises:
            UnknownDocument: one of them was deleted meanwhile.
            DocumentNotReady: one of them is being read anew.
        """
        records = records if isinstance(records, Selection) else Selection(records)
        rankings = self.rank(question, records, scope)
        started = time.perf_counter()
        contents = (scope or Scope()).contents(self._contents, records)
        pieces = Pieces(self._cuttings)
        passages = compose(self._store, contents, records, rankings, max_passages, cuttings or {}, pieces)
        seconds = {**rankings.seconds, "passages": time.perf_counter() - started}
        self._check(records)
        return SearchResult(
            passages=passages,
            found=bool(passages) and rankings.found,
            reason=rankings.reason + _unshown(rankings.num_leading, max_passages),
            num_facts=rankings.num_facts,
            num_chunks_searched=rankings.num_chunks,
            seconds=seconds,
            confidence=rankings.confidence,
        )

    def rank(self, question: str, records: Sequence[Listed], scope: Scope | None = None) -> Rankings:
        """What each search finds, before any of it is joined."""
        records = records if isinstance(records, Selection) else Selection(records)
        scope = scope or Scope()
        seconds: dict[str, float] = {}
        contents = scope.contents(self._contents, records)
        with _timed(seconds, "keys"):
            asked = records.names(self._contents).asked(question)
            met = meet(contents, question, records, asked.shares)
        with _timed(seconds, "lexical"):
            holdings = self._opened(records, scope, contents)
            words = LexicalQuery.of(question)
            lexical = holdings.search_words(words, DEPTH, asked)
        with _timed(seconds, "dense"):
            query = self._embedder.embed_query(question) if holdings.num_dense else None
            dense = holdings.nearest(query, asked)
        num_chunks = holdings.num_chunks
        with _timed(seconds, "ranking"):
            if self._is_learned:
                near = dict(first_of([*dense.items()], RANKED_DEPTH, asked, lambda item: item[0][0]))
                hits = first_of(lexical.hits, RANKED_DEPTH, asked, lambda hit: hit[0])
                rare = rare_places(holdings.search_words, lexical)
                found = candidates(self._store, records, holdings, hits, near, query, met, rare.values())
                scores, confidence, is_found = _weighed(
                    AskedWords.of(question, words, lexical), found, rare, num_chunks
                )
            else:
                scores = fuse({"lexical": _places(lexical), "dense": [*dense]}, WEIGHTS)
                is_found = bool(lexical.known) or (bool(dense) and next(iter(dense.values())).score >= DENSE_FLOOR)
                confidence = float(is_found)
        key_hits = _joined(met, scores, self._is_learned, asked)
        with _timed(seconds, "hops"):
            hops = Trail(self._store, contents, records, holdings).follow(question, met.leading)
        is_led = any(hit.is_leading for hit in key_hits.values())
        return Rankings(
            keys=key_hits,
            hops=hops,
            lexical=_places(lexical),
            dense=dense,
            scores=scores,
            question=question,
            question_words=words.exact,
            found=is_led or is_found,
            confidence=1.0 if is_led else confidence,
            reason=_reason(holdings.num_dense, len(records)) + _told(asked),
            num_facts=met.num_facts,
            num_chunks=num_chunks,
            seconds=seconds,
            asked=asked,
        )

    def _opened(self, records: Selection, scope: Scope, contents: Contents) -> Holdings:
        """Many documents as one, but for those of which only a part is asked; else each by itself."""
        alone: Sequence[int] = range(len(records))
        stack = None
        num_dense = 0
        is_stacked = records.num_rows <= STACKED_ROWS
        if self._stacks is not None and self._stacks.takes(records.num_rows[is_stacked]):
            if scope.parts:
                is_stacked = is_stacked & np.array([record.id not in scope.parts for record in records], bool)
            places = np.flatnonzero(is_stacked)
            stacked = records.at(places)
            held = self._stacks.opened(stacked.tenant, stacked, stacked.numbers, stacked.revisions)
            stack = StackView(held, stacked.numbers, stacked.revisions, places)
            num_dense = int((stacked.revisions[:, 1] >= 0).sum())
            alone = np.flatnonzero(~is_stacked).tolist()
        shelves = {
            place: scope.shelf(self._shelves.open(records[place]), records[place], self._store, contents)
            for place in alone
        }
        return Holdings(shelves, stack, num_dense)

    def _check(self, records: Selection) -> None:
        """Ranks and texts were read one after the other; a document that went in between may have lost its text."""
        if records.as_of is not None and records.as_of == self._store.database.revision():
            return
        now = self._store.chunks_revisions(records.numbers.tolist())
        for record in records:
            if record.number not in now:
                raise UnknownDocument(record.id)
            if now[record.number] != record.chunks_revision:
                raise DocumentNotReady(self._store.record(record.id).document)


def _weighed(
    asked: AskedWords, found: Sequence[Candidate], rare: Mapping[str, Sequence[Place]], num_chunks: int
) -> tuple[dict[Place, float], float, bool]:
    """Scores of the candidates by the learned ranking, how sure it is, and whether something of it was found."""
    ranker = Ranker.load()
    table = features(asked, found)
    ranked = ranker.scores(table)
    places = [one.place for one in found]
    confidence = ranker.confidence(table, ranked, num_chunks)
    names_at = dict(zip(places, table[:, NAMES.index("names_chunk")].tolist(), strict=True))
    has_name = any(names_at[place] >= MOST_NAMES for place in only_places(asked.names, rare))
    scores = spread(dict(zip(places, _shares(ranked), strict=True)), rare, LIKELY)
    return scores, confidence, has_name or confidence >= ranker.thresholds(num_chunks)


def _joined(met: Met, scores: Mapping[Place, float], is_learned: bool, asked: AskedDocuments) -> dict[Place, KeyHit]:
    """Every place that keys lead to, with all keys that stand there; and of the others those that the ranking has far
    up, in its order. Without a learned ranking, which weighs them, few places are as good as an exact key."""
    hits = {place: hit.copy() for place, hit in met.leading.items()}
    best_first = sorted(scores, key=lambda place: (-scores[place], place))
    likely = set(first_of(best_first, LIKELY, asked, lambda place: place[0]))
    for place, weak in met.weak.items():
        if place in hits or not is_learned or place in likely:
            hit = hits.setdefault(place, KeyHit(is_leading=not is_learned))
            for meeting in weak.meetings:
                hit.note(*meeting)
    return hits


def _places(hits: LexicalHits) -> tuple[Place, ...]:
    return tuple((document, ordinal) for document, ordinal, _ in hits.hits)


def _shares(scores: NDArray[np.float32]) -> list[float]:
    """The share of belief that each candidate has: between 0 and 1, all together 1."""
    if len(scores) == 0:
        return []
    weights = np.exp(scores.astype(np.float64) - scores.max())
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def _reason(num_dense: int, num_documents: int) -> str:
    if num_dense == num_documents:
        return "searched by keys, words and meaning"
    if num_dense == 0:
        return "searched by keys and words; the vectors for a search by meaning are still being computed"
    return (
        f"searched by keys and words, and {num_dense} of {num_documents} documents by meaning; "
        "the vectors of the others are still being computed"
    )


def _told(asked: AskedDocuments) -> str:
    if not asked.shares:
        return ""
    if len(asked.shares) == 1:
        return "; the document that the question names comes first"
    whose = "that the question names" if asked.shares == asked.named else "asked"
    return f"; each of the {len(asked.shares)} documents {whose} has its share"


def _unshown(num_key_hits: int, max_passages: int) -> str:
    if num_key_hits <= max_passages:
        return ""
    return f"; what was asked for by key stands in {num_key_hits} places, of which {max_passages} are given"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
