"""Values that stand under a key: ``key: value`` lines and quoted pairs."""

import re
from collections import Counter
from collections.abc import Iterator

from retrieval.hits import Hit, Survey
from retrieval.lines import LineKind
from retrieval.passage import FactKind, Span
from retrieval.sentences import trim

# A key that comes back more often than this is a label (speakers, "Note:"), not a key.
MAX_KEY_REPEATS = 8
MAX_VALUE_CHARACTERS = 400

_FILLED = re.compile(r"[^\W_]|[%$€£✓✗]")
_QUOTED_PAIR = re.compile(r'"([^"\n]{2,120})"\s{0,4}[:=]\s{0,4}(?:"([^"\n]{1,400})"|([-+]?\d[\w.+-]{0,40}))')


class PairRecogniser:
    """``key: value`` lines and quoted pairs (``"key": "value"``)."""

    name = "key_value"
    kind = FactKind.KEY_VALUE

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits whose key names something: it is short and seldom repeated."""
        text = survey.text
        found = list(self._pairs(survey))
        repeats = Counter(text[key.start : key.end].casefold() for key, _, _ in found)
        for key, value, evidence in found:
            count = repeats[text[key.start : key.end].casefold()]
            if count > MAX_KEY_REPEATS or len(value) > MAX_VALUE_CHARACTERS:
                continue
            # A form that is not filled in has brackets and lines there.
            if _FILLED.search(text, value.start, value.end) and not _is_formula(text, key, value):
                yield Hit(value, 0.8 / count**0.5, key, trim(text, evidence))

    def _pairs(self, survey: Survey) -> Iterator[tuple[Span, Span, Span]]:
        for line in survey.lines:
            if line.kind is LineKind.KEY_VALUE and line.key is not None and line.value is not None:
                yield line.key, line.value, line.span
        for match in _QUOTED_PAIR.finditer(survey.text):
            value = Span(*match.span(2 if match[2] is not None else 3))
            yield Span(*match.span(1)), value, Span(*match.span())


def _is_formula(text: str, key: Span, value: Span) -> bool:
    """In a sentence an equals sign belongs to a formula; a line of settings ends with its value."""
    return "=" in text[key.end : value.start] and text[value.end - 1] == "." and " " in text[value.start : value.end]
