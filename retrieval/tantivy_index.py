"""The lexical index by tantivy, in files of its own, behind the contract of ``retrieval.lexical_index``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import tantivy

from retrieval.durability import tree_bytes
from retrieval.lexical_index import EXACT, HEADING, STEMMED, LexicalQuery, Run, Term, stemmer
from retrieval.words import fold_accents, words

# tantivy's writer wants at least 15 MB; the postings of a text need less than four times its size.
MIN_HEAP_BYTES = 15_000_000
MAX_HEAP_BYTES = 512_000_000

_CHUNK = "chunk"
_UNSIGNED = tantivy.FieldType.Unsigned


class TantivyIndex:
    """For texts of any length. Making one takes some 25 ms and 18 files, however short the text is."""

    def __init__(self, index: tantivy.Index, num_bytes: int) -> None:
        self._schema = index.schema
        self._searcher = index.searcher()
        self._num_bytes = num_bytes

    @classmethod
    def build(cls, directory: Path | None, chunks: Iterable[tuple[str, str]], num_characters: int) -> Self:
        """Index (text, heading) of each chunk, in order, into the empty ``directory`` (None: in memory)."""
        index = _with_tokenizers(tantivy.Index(_schema(), path=str(directory) if directory else None))
        heap_bytes = min(max(4 * num_characters, MIN_HEAP_BYTES), MAX_HEAP_BYTES)
        # One thread writes one segment, in order: the index is the same each time it is built.
        writer = index.writer(heap_size=heap_bytes, num_threads=1)
        for ordinal, (text, heading) in enumerate(chunks):
            tokens = words(text)
            document = tantivy.Document()
            document.add_text(EXACT, " ".join(tokens))
            document.add_text(STEMMED, " ".join(fold_accents(token) for token in tokens))
            document.add_text(HEADING, " ".join(fold_accents(token) for token in words(heading)))
            document.add_unsigned(_CHUNK, ordinal)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return cls(index, tree_bytes(directory) if directory else 0)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The index that was built in ``directory``, whose files must have been verified."""
        return cls(_with_tokenizers(tantivy.Index.open(str(directory))), tree_bytes(directory))

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    @property
    def num_bytes(self) -> int:
        """See ``LexicalIndex.num_bytes``."""
        return self._num_bytes

    def frequency(self, term: Term, among: Sequence[Run] | None = None) -> int:
        """See ``LexicalIndex.frequency``."""
        if among is None:
            return int(self._searcher.doc_freq(*term))
        # The stubs of tantivy leave the number out.
        return int(self._searcher.search(self._within(among, self._term(term)), 1, count=True).count)  # type: ignore[attr-defined]

    def search(
        self, query: LexicalQuery, k: int, boosts: Mapping[Term, float], among: Sequence[Run] | None = None
    ) -> list[tuple[int, float]]:
        """See ``LexicalIndex.search``."""
        clauses = [
            (tantivy.Occur.Should, tantivy.Query.boost_query(self._term(term), weight * boosts.get(term, 1.0)))
            for term, weight in query.terms()
        ]
        if not clauses or among == []:
            return []
        wanted = tantivy.Query.boolean_query(clauses)
        if among is not None:
            wanted = self._within(among, wanted)
        hits = self._searcher.search(wanted, k, count=False).hits
        ordinals = self._searcher.fast_field_values(_CHUNK, [address for _, address in hits])
        found = [(int(ordinal or 0), float(score)) for ordinal, (score, _) in zip(ordinals, hits, strict=True)]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))

    def _term(self, term: Term) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, *term, index_option="freq")

    def _within(self, among: Sequence[Run], query: tantivy.Query) -> tantivy.Query:
        places = [
            (tantivy.Occur.Should, tantivy.Query.range_query(self._schema, _CHUNK, _UNSIGNED, first, last))
            for first, last in among
        ]
        # Where a chunk stands adds nothing to its score.
        inside = tantivy.Query.const_score_query(tantivy.Query.boolean_query(places), 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, inside)])


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(STEMMED, stored=False, tokenizer_name="stemmed", index_option="freq")
    builder.add_text_field(HEADING, stored=False, tokenizer_name="stemmed", index_option="freq")
    builder.add_text_field(EXACT, stored=False, tokenizer_name="exact", index_option="freq")
    builder.add_unsigned_field(_CHUNK, stored=False, indexed=False, fast=True)
    return builder.build()


def _with_tokenizers(index: tantivy.Index) -> tantivy.Index:
    index.register_tokenizer("exact", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())
    index.register_tokenizer("stemmed", stemmer())
    return index
