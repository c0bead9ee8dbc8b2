"""The archive of prompts that are longer than a window: indexed in memory while they are asked, found as documents are.

A prompt is cut into texts that begin where messages do, and each is indexed by itself: of a conversation that goes on,
only what is new. Keys and words are indexed at once. By meaning only what has words of the question is compared, unless
all of it is little: the vectors of a text take as long as it takes a small model to read it.
"""

import hashlib
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from typing_extensions import override

from retrieval.candidate_vectors import CandidateVectors
from retrieval.chunker import chunk
from retrieval.contents import Contents
from retrieval.counted_index import CountedIndex
from retrieval.durability import make_directory
from retrieval.embedder import Embedder
from retrieval.errors import PromptMemoryFull
from retrieval.fact_book import within_budget
from retrieval.lexical_index import LexicalIndex, LexicalQuery, search_lexical
from retrieval.open_prompt import HeldText, OpenPrompt
from retrieval.passage import Chunk, SearchResult, Span
from retrieval.passages import MAX_PASSAGE_CHARACTERS
from retrieval.prompt_part import PromptPart
from retrieval.prompt_store import PromptStore
from retrieval.recognisers import recognise
from retrieval.record import Listed
from retrieval.search import RANKED_DEPTH, Search
from retrieval.shelf_files import SMALL_ROWS, Shelf
from retrieval.shelves import Shelves
from retrieval.skim import Skim, Skims, likely_rows
from retrieval.tantivy_index import TantivyIndex
from retrieval.vector_rows import vector_rows

# Messages are put together to texts of this length or a little more; a longer message is a text by itself.
TEXT_CHARACTERS = 1 << 15
# Between two messages of a text: more blanks than a passage may have, so that none reaches into both.
GAP = "\n" * (MAX_PASSAGE_CHARACTERS + 1)
# Where words find nothing, so large a share of the rows are compared by meaning, and no more than so many: some two
# seconds for 64K tokens, seven for a million, beside those that it takes to read them.
LIKELY_SHARE = 4
MOST_LIKELY = 1024
# What a character takes at most when all of it is indexed, in prose, tables and code alike; measured, see ``needed``.
BYTES_PER_CHARACTER = 24


class PromptArchive:
    """Indexes prompts, and keeps what nobody asks any more until its room is wanted, oldest first.

    What is kept is only spared work: whoever asks brings the whole prompt along. It is in memory alone, under the
    tenant it came from. Any number of threads may ask at once; ``directory`` is for files while they are made.
    """

    def __init__(
        self,
        directory: Path,
        embedder: Embedder,
        max_bytes: int = 1 << 30,
        max_facts: int = 500_000,
        most_rows: int = 192,
    ) -> None:
        """Of prompts of ``most_rows`` sentences at most all are compared by meaning."""
        self._most_rows = most_rows
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)  # what a crash left while an index was made
        self._embedder = embedder
        self._max_bytes = max_bytes
        self._max_facts = max_facts
        self._store = PromptStore()
        self._contents = Contents(self._store.database)
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, HeldText] = OrderedDict()
        self._making: dict[bytes, threading.Lock] = {}
        # What texts that are still to be indexed may take, and how many prompts that are open have each text.
        self._promised: dict[bytes, int] = {}
        self._wanted = Counter[bytes]()
        self._store_bytes = self._store.memory.num_bytes
        self.num_evicted = 0

    @property
    def num_bytes(self) -> int:
        """Host memory of all texts and what was found in them. Waits for nobody who indexes."""
        with self._lock:
            shelves = sum(held.shelf.num_bytes for held in self._held.values())
            wanted = sum(held.index_bytes - held.found_bytes for held in self._held.values())
            return self._store_bytes + shelves + wanted

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()
        self._store.close()

    @contextmanager
    def opened(self, tenant: str, parts: Sequence[PromptPart]) -> Iterator[OpenPrompt]:
        """The prompt that consists of ``parts``, in their order, indexed.

        Raises:
            PromptMemoryFull: others ask, and what they ask and this one together are more than may be held.
        """
        texts = list(_texts(parts))
        keys = [_key(tenant, text) for text in texts]
        with self._admitted(keys, texts):
            held = [self._indexed_once(key, text) for key, text in zip(keys, texts, strict=True)]
            yield OpenPrompt(self, tuple(held), tuple(texts))

    def search(self, question: str, texts: Sequence[HeldText], max_passages: int) -> SearchResult:
        """As ``retrieval.search.Search.run``, with the vectors of all rows if these are few, else of those that have
        words of ``question``; and of those with words like them, if that finds nothing."""
        if sum(len(text.shelf.row_spans) for text in texts) <= self._most_rows:
            shelves = {text.record.number: self._with_all_vectors(text) for text in texts}
            return self._found(question, texts, shelves, max_passages)
        wanted: dict[int, list[int]] = {number: [] for number in range(len(texts))}
        hits = search_lexical([text.shelf.lexical for text in texts], LexicalQuery.of(question), RANKED_DEPTH).hits
        for number, ordinal, _ in hits:
            wanted[number] += texts[number].shelf.rows_of(ordinal)
        vectors = [self._vectors(text) for text in texts]
        found = self._found_among(question, texts, vectors, [*wanted.values()], max_passages)
        if found.found or not isinstance(self._embedder, Skims):
            return replace(found, reason=f"{found.reason} (by meaning what has words of the question)")
        skims = [self._skim(self._embedder, text) for text in texts]
        most = min(max(sum(map(len, skims)) // LIKELY_SHARE, self._most_rows), MOST_LIKELY)
        likely = likely_rows(self._embedder, question, skims, most)
        found = self._found_among(question, texts, vectors, likely, max_passages)
        return replace(found, reason=f"{found.reason} (by meaning what has words like those of the question)")

    def _found(
        self, question: str, texts: Sequence[HeldText], shelves: dict[int, Shelf], max_passages: int
    ) -> SearchResult:
        search = Search(self._store, self._contents, _OwnShelves(shelves), self._embedder)
        return search.run(question, [text.record for text in texts], max_passages)

    def _with_all_vectors(self, text: HeldText) -> Shelf:
        if text.vectors is None:
            vectors = self._vectors(text)
            vectors.want(range(len(text.shelf.row_spans)))
            with self._lock:
                text.vectors = vectors
        return replace(text.shelf, vectors=text.vectors)

    def _found_among(
        self,
        question: str,
        texts: Sequence[HeldText],
        vectors: Sequence[CandidateVectors],
        rows: Sequence[Sequence[int]],
        max_passages: int,
    ) -> SearchResult:
        """What is found when these rows of each text have vectors too."""
        shelves = {}
        for text, own, wanted in zip(texts, vectors, rows, strict=True):
            own.want(wanted)
            shelves[text.record.number] = replace(text.shelf, vectors=own)
        return self._found(question, texts, shelves, max_passages)

    def _skim(self, embedder: Skims, text: HeldText) -> Skim:
        if text.skim is None:
            spans = [Span(*span) for span in text.shelf.row_spans.tolist()]
            skim = Skim.of(embedder, self._store.texts(text.record.number, spans))
            with self._lock:
                text.skim = skim
        return text.skim

    def _vectors(self, text: HeldText) -> CandidateVectors:
        spans, number = text.shelf.row_spans, text.record.number

        def texts(wanted: Sequence[int]) -> Sequence[str]:
            return self._store.texts(number, [Span(*spans[row].tolist()) for row in wanted])

        return CandidateVectors.of(self._embedder, texts)

    @contextmanager
    def _admitted(self, keys: Sequence[bytes], texts: Sequence[tuple[PromptPart, ...]]) -> Iterator[None]:
        """Room for all texts of a prompt, promised before any of them is indexed: of two that do not fit together one
        is refused at once, and the other ends. What others index already is not counted again."""
        wanted = {key: needed(sum(len(part.text) for part in text)) for key, text in zip(keys, texts, strict=True)}
        with self._lock:
            missing = {key: size for key, size in wanted.items() if key not in self._held and key not in self._promised}
            in_use = sum(held.num_bytes for key, held in self._held.items() if self._wanted[key] or key in wanted)
            in_use += sum(self._promised.values())
            # Alone it may be larger than the bound: what a prompt takes is known when it is indexed.
            is_alone = not any(count and key not in wanted for key, count in self._wanted.items())
            if not is_alone and in_use + sum(missing.values()) > self._max_bytes:
                raise PromptMemoryFull(sum(missing.values()), in_use, self._max_bytes)
            self._promised |= missing
            self._wanted.update(wanted.keys())
            idle = self._over()
        try:
            self._drop(idle)
            yield
        finally:
            with self._lock:
                for key in wanted:
                    self._wanted[key] -= 1
                    if not self._wanted[key]:
                        del self._wanted[key]
                        self._promised.pop(key, None)  # where it could not be indexed
                        self._making.pop(key, None)
                idle = self._over()
            self._drop(idle)

    def _indexed_once(self, key: bytes, parts: tuple[PromptPart, ...]) -> HeldText:
        """The text, indexed by whoever of those that want it comes first. It stays as long as any of them asks."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                held = self._held.get(key)
                if held is not None:
                    self._held.move_to_end(key)
                    return held
            held = self._indexed(parts)
            with self._lock:
                self._held[key] = held
                self._promised.pop(key, None)
            return held

    @property
    def _held_bytes(self) -> int:
        return sum(held.num_bytes for held in self._held.values())

    def _over(self) -> list[HeldText]:
        """Take out what nobody asks, oldest first, until what is held and what was promised fit. For the holder of the
        lock."""
        taken: list[HeldText] = []
        for key in list(self._held):
            if self._held_bytes + sum(self._promised.values()) <= self._max_bytes:
                break
            if not self._wanted[key]:
                taken.append(self._held.pop(key))
        self.num_evicted += len(taken)
        return taken

    def _drop(self, texts: Sequence[HeldText]) -> None:
        for held in texts:
            with self._store.database.lock:
                self._store.drop(held.record)
                self._store_bytes = self._store.memory.num_bytes

    def _indexed(self, parts: Sequence[PromptPart]) -> HeldText:
        text = GAP.join(part.text for part in parts)
        bases, chunks = [], list[Chunk]()
        base = 0
        for part in parts:
            bases.append(base)
            # Each by itself: what stands under a heading does so to the end of its message.
            chunks += [replace(one, span=Span(base + one.span.start, base + one.span.end)) for one in chunk(part.text)]
            base += len(part.text) + len(GAP)
        rows = vector_rows(text, chunks)
        facts, dropped = within_budget(recognise(text), self._max_facts)
        lexical = self._lexical(chunks, len(rows), len(text))
        with self._store.database.lock:
            before = self._store.memory.num_bytes
            number = self._store.put(text)
            self._contents.write_index(number, chunks, rows, facts, dropped)
            self._store_bytes = self._store.memory.num_bytes
            grown = self._store_bytes - before
        text_bytes = len(text.encode())
        shelf = Shelf(
            lexical=lexical,
            vectors=None,
            chunk_of=np.array([row.chunk for row in rows], dtype=np.int32),
            row_spans=np.array([(row.span.start, row.span.end) for row in rows], dtype=np.int32).reshape(len(rows), 2),
        )
        record = self._store.of_number(number)
        return HeldText(record, shelf, tuple(bases), text_bytes, max(0, grown - text_bytes) + shelf.num_bytes)

    def _lexical(self, chunks: Sequence[Chunk], num_rows: int, num_characters: int) -> LexicalIndex:
        texts = ((one.text, one.heading) for one in chunks)
        if num_rows <= SMALL_ROWS:
            return CountedIndex(texts)
        make_directory(self._directory)
        # An index opens its files at once and keeps them mapped; without names they go with it, however it ends.
        with tempfile.TemporaryDirectory(dir=self._directory) as files:
            return TantivyIndex.build(Path(files), texts, num_characters)


class _OwnShelves(Shelves):
    """Shelves that are at hand."""

    def __init__(self, shelves: dict[int, Shelf]) -> None:
        self._own = shelves

    @override
    def open(self, record: Listed) -> Shelf:
        """The shelf of a text."""
        return self._own[record.number]


def needed(num_characters: int) -> int:
    """Most bytes that a text of so many characters is taken to need until it is indexed and they are known."""
    return BYTES_PER_CHARACTER * num_characters


def _texts(parts: Sequence[PromptPart]) -> Iterator[tuple[PromptPart, ...]]:
    """The parts put together, each text as soon as it is long enough, so that it is the same when more parts follow."""
    together: list[PromptPart] = []
    length = 0
    for part in parts:
        if not part.text.strip():
            continue
        together.append(part)
        length += len(part.text)
        if length >= TEXT_CHARACTERS:
            yield tuple(together)
            together, length = [], 0
    if together:
        yield tuple(together)


def _key(tenant: str, parts: Sequence[PromptPart]) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for text in (tenant, *(part.text for part in parts)):
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()
