"""Which parts of an answer stand verbatim in which source: the citations of a reply.

They come from comparing the answer with the text that was in the prompt, never from marks the model
is hoped to make. Words are compared as they are; only the kind of white space between them may differ
(a source breaks its lines), so ``quote`` is always ``document[start:end]``.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.passage import Passage
from server.answers.wording import Word, Wording, says_something, words


@dataclass(frozen=True, slots=True)
class Source:
    """A passage as it stands in the prompt, by its number there."""

    number: int
    passage: Passage


@dataclass(frozen=True, slots=True)
class Citation:
    """``quote == document[start:end]``, and it is ``answer[answer_start:answer_end]`` up to white space."""

    source: int
    document: str
    start: int
    end: int
    quote: str
    page: int | None
    answer_start: int
    answer_end: int


class Quoting:
    """The citations of an answer that arrives in pieces, each as soon as no further text can change it.

    They are the maximal matches between word borders, in the order of the answer, none overlapping another. A match
    counts when it has two content words, or a number, an identifier or a name. Among equally long matches the source
    of the best rank wins, and in it the first place. However the answer is cut into pieces, they are the same.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._texts = [_Text(source, words(source.passage.text)) for source in sources]
        self._wording = Wording()
        self._words: list[Word] = []
        self._place = 0

    def add(self, text: str, is_last: bool = False) -> list[Citation]:
        """The citations that ``text`` made certain; the rest of them if it ``is_last``."""
        self._words += self._wording.add(text, is_last)
        found: list[Citation] = []
        while self._place < len(self._words):
            match, is_open = _longest(self._words, self._place, self._texts)
            if is_open and not is_last:
                break
            if match is None or not says_something(self._words[match.first : match.last + 1]):
                self._place += 1
                continue
            found.append(_citation(self._words, match))
            self._place = match.last + 1
        return found


def cite(answer: str, sources: Sequence[Source]) -> list[Citation]:
    """All citations of a whole answer."""
    return Quoting(sources).add(answer, is_last=True)


class _Text:
    """A source's words, and where each of them stands."""

    def __init__(self, source: Source, words: list[Word]) -> None:
        self.source = source
        self.words = words
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(words):
            self.places[word.text].append(place)


@dataclass(frozen=True, slots=True)
class _Match:
    """Words ``first..last`` of the answer equal those of ``text`` from ``at`` on."""

    text: _Text
    at: int
    first: int
    last: int


def _longest(words: Sequence[Word], first: int, texts: Sequence[_Text]) -> tuple[_Match | None, bool]:
    """The longest match that begins with ``words[first]`` and neither begins nor ends with a comma or the like; and
    whether more words could make it longer."""
    if not words[first].may_border:
        return None, False
    best: _Match | None = None
    is_open = False
    for text in texts:
        for at in text.places.get(words[first].text, ()):
            last = first
            while _same(words, last + 1, text.words, at + last + 1 - first):
                last += 1
            is_open = is_open or (last + 1 == len(words) and at + last + 1 - first < len(text.words))
            while not words[last].may_border:
                last -= 1
            if best is None or last > best.last:
                best = _Match(text, at, first, last)
    return best, is_open


def _same(words: Sequence[Word], place: int, others: Sequence[Word], at: int) -> bool:
    if place >= len(words) or at >= len(others):
        return False
    return words[place].text == others[at].text and words[place].spaced == others[at].spaced


def _citation(words: Sequence[Word], match: _Match) -> Citation:
    passage = match.text.source.passage
    start = match.text.words[match.at].start
    end = match.text.words[match.at + match.last - match.first].end
    return Citation(
        source=match.text.source.number,
        document=passage.document_id,
        start=passage.span.start + start,
        end=passage.span.start + end,
        quote=passage.text[start:end],
        page=passage.page,
        answer_start=words[match.first].start,
        answer_end=words[match.last].end,
    )
