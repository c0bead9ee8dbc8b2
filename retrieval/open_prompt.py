"""A prompt that is indexed: what was found in it, in the places of its messages."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from retrieval.candidate_vectors import CandidateVectors
from retrieval.passage import Copy, Passage, SearchResult, Span, Value
from retrieval.prompt_part import PromptPart
from retrieval.record import Record
from retrieval.shelf_files import Shelf
from retrieval.skim import Skim

if TYPE_CHECKING:
    from retrieval.prompt_archive import PromptArchive


@dataclass(slots=True)
class HeldText:
    """A text that is indexed. ``bases`` are where in it its parts begin. ``vectors`` are those of all its rows and
    ``skim`` their word pieces, where they were wanted once."""

    record: Record
    shelf: Shelf
    bases: tuple[int, ...]
    text_bytes: int
    found_bytes: int
    vectors: CandidateVectors | None = None
    skim: Skim | None = None

    @property
    def index_bytes(self) -> int:
        """Of what was found in it, with its vectors if all of them stand."""
        made = (each.num_bytes for each in (self.vectors, self.skim) if each is not None)
        return self.found_bytes + sum(made)

    @property
    def num_bytes(self) -> int:
        """All that it takes."""
        return self.text_bytes + self.index_bytes


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """A prompt that is indexed, for as long as somebody asks it."""

    archive: "PromptArchive"
    texts: tuple[HeldText, ...]
    parts: tuple[tuple[PromptPart, ...], ...]

    @property
    def text_bytes(self) -> int:
        """Of the texts, in UTF-8."""
        return sum(text.text_bytes for text in self.texts)

    @property
    def index_bytes(self) -> int:
        """Of all that was found in them."""
        return sum(text.index_bytes for text in self.texts)

    def search(self, question: str, max_passages: int) -> SearchResult:
        """The passages that may hold the answer, best first: each in one part, by its name and with its places in the
        message."""
        found = self.archive.search(question, self.texts, max_passages)
        numbers = {text.record.document.id: place for place, text in enumerate(self.texts)}

        def placed(passage: Passage) -> Passage:
            place = numbers[passage.document_id]
            part, shift = self._part(place, passage.span.start)

            def moved(span: Span) -> Span:
                return Span(span.start + shift, span.end + shift)

            def value(one: Value) -> Value:
                return replace(one, span=moved(one.span), evidence=moved(one.evidence))

            return replace(
                passage,
                document_id=part.name,
                document_name=part.name,
                span=moved(passage.span),
                evidence=None if passage.evidence is None else moved(passage.evidence),
                nearest=None if passage.nearest is None else replace(passage.nearest, span=moved(passage.nearest.span)),
                values=tuple(map(value, passage.values)),
                also=tuple(self._copy(numbers[copy.document_id], copy) for copy in passage.also),
            )

        return replace(found, passages=tuple(map(placed, found.passages)))

    def _copy(self, place: int, copy: Copy) -> Copy:
        part, shift = self._part(place, copy.span.start)
        return Copy(part.name, part.name, Span(copy.span.start + shift, copy.span.end + shift), None)

    def _part(self, place: int, at: int) -> tuple[PromptPart, int]:
        """The part of a text that a place stands in, and what makes the place one of the message."""
        bases = self.texts[place].bases
        number = max(0, bisect_right(bases, at) - 1)
        part = self.parts[place][number]
        return part, part.start - bases[number]
