"""Places in the texts of documents: where a quote stands, the sentence around a place, the titles above it."""

from collections.abc import Sequence

from retrieval.chunker import HEADING_SEPARATOR
from retrieval.contents import Contents
from retrieval.occurrences import occurrences
from retrieval.passage import Span
from retrieval.record import Listed
from retrieval.scope import Scope
from retrieval.sentences import Sentences, sentence_spans
from retrieval.store import Store

# Around a place, for the sentence it stands in.
_CONTEXT = 1000
# Beyond the end of any text.
_WHOLE = (Span(0, 1 << 40),)


class Texts:
    """Looks into texts as they are stored."""

    def __init__(self, store: Store, contents: Contents) -> None:
        self._store = store
        self._contents = contents

    def places(
        self, records: Sequence[Listed], text: str, limit: int, scope: Scope | None
    ) -> Sequence[tuple[str, Span]]:
        """See ``Library.locate``; of documents that have a text."""
        places: list[tuple[str, Span]] = []
        for record in records:
            for part in scope.parts.get(record.id, _WHOLE) if scope is not None else _WHOLE:
                there = self._store.text(record.number, part.start, part.end)
                found = occurrences(there, text, limit - len(places)) if len(places) < limit else []
                places += [(record.id, Span(part.start + span.start, part.start + span.end)) for span in found]
        return places

    def sections(self, record: Listed) -> Sequence[tuple[tuple[str, ...], Span]]:
        """See ``Library.sections``."""
        found: list[tuple[tuple[str, ...], Span]] = []
        for chunk in self._contents.chunks(record.number):
            path = tuple(chunk.heading.split(HEADING_SEPARATOR)) if chunk.heading else ()
            if found and found[-1][0] == path:
                found[-1] = (path, Span(found[-1][1].start, chunk.end))
            else:
                found.append((path, Span(chunk.start, chunk.end)))
        return found

    def sentence(self, record: Listed, span: Span) -> Span:
        """The sentence or row around ``span``, which lies in the text."""
        low = max(0, span.start - _CONTEXT)
        around = self._store.text(record.number, low, span.end + _CONTEXT)
        sentence = Sentences(around, sentence_spans(around)).around(Span(span.start - low, span.end - low))
        return Span(low + sentence.start, low + sentence.end)
