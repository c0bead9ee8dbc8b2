"""Evidence texts as one string of bytes, with the places where a quotation may begin and end. No torch."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from model.engine.request import EvidenceSpan
from model.engine.words import WordBorders


class EvidenceBytes:
    """UTF-8 of all texts one after another. Places are byte offsets in ``data``; ``starts`` ascend.

    With ``is_whole`` they begin and end with the texts, and nowhere else. Raises UnicodeEncodeError for a text that
    UTF-8 cannot carry.
    """

    def __init__(self, texts: Sequence[str], is_whole: bool = False) -> None:
        self._texts = texts
        encoded = [text.encode("utf-8") for text in texts]
        self.data = b"".join(encoded)
        self.starts: list[int] = []
        self._ends: list[int] = []
        self._is_end: set[int] = set()
        self._text_starts: list[int] = []
        # Last end within each text: beyond it no quotation goes.
        self._limits: list[int] = []
        place = 0
        for text, data in zip(texts, encoded, strict=True):
            self._text_starts.append(place)
            if not is_whole:
                self._add_borders(text, place)
            elif text:
                self.starts.append(place)
                self._ends.append(place + len(data))
                self._is_end.add(place + len(data))
            self._limits.append(self._ends[-1] if self._ends and self._ends[-1] > place else place)
            place += len(data)

    def limit(self, start: int) -> int:
        """Last end of any quotation in the text that has a character at ``start``."""
        return self._limits[bisect_right(self._text_starts, start) - 1]

    def end_before(self, place: int) -> int:
        """The last end at or before ``place``; 0 if there is none."""
        found = bisect_right(self._ends, place)
        return self._ends[found - 1] if found else 0

    def end_from(self, place: int) -> int:
        """The first end at or after ``place``."""
        return self._ends[bisect_left(self._ends, place)]

    def earliest_whole(self, starts: Sequence[int], length: int) -> int | None:
        """The first of ``starts`` after which a quotation of ``length`` bytes may end."""
        if length == 0:
            return None
        return next((start for start in starts if start + length in self._is_end), None)

    def span(self, start: int, end: int) -> EvidenceSpan:
        """The range in code points of its text."""
        index = bisect_right(self._text_starts, start) - 1
        base = self._text_starts[index]
        before = len(self.data[base:start].decode("utf-8"))
        return EvidenceSpan(index, before, before + len(self.data[start:end].decode("utf-8")))

    def quote(self, span: EvidenceSpan) -> str:
        """The text at a span."""
        return self._texts[span.evidence_index][span.start : span.end]

    def _add_borders(self, text: str, place: int) -> None:
        borders = WordBorders(text)
        for index in range(len(text) + 1):
            if borders.starts[index]:
                self.starts.append(place)
            if borders.ends[index]:
                self._ends.append(place)
                self._is_end.add(place)
            if index < len(text):
                place += 1 if text[index] < "\x80" else len(text[index].encode("utf-8"))
