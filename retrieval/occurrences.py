"""Where a quote stands in a text: as it is written, or else but for its blanks and line ends."""

import re
from bisect import bisect_right
from itertools import accumulate

from retrieval.passage import Span

_WORD = re.compile(r"\S+")


def occurrences(text: str, quote: str, limit: int) -> list[Span]:
    """At most ``limit`` places of ``quote`` in ``text``, in reading order; they do not overlap.

    Where it stands as written, only such places are given; else those that differ in blanks and line ends. Places
    that begin and end between words go before those inside of words: only if there are none are these given.
    """
    wanted = quote.strip()
    if not wanted or limit < 1:
        return []
    return _places(text, wanted, limit) or _places_but_for_blanks(text, wanted.split(), limit)


def _places(text: str, wanted: str, limit: int) -> list[Span]:
    inside: list[Span] = []
    whole: list[Span] = []
    position = text.find(wanted)
    while position >= 0 and len(whole) < limit:
        span = Span(position, position + len(wanted))
        if not (_cuts_word(text, span.start) or _cuts_word(text, span.end)):
            whole.append(span)
        elif len(inside) < limit:
            inside.append(span)
        position = text.find(wanted, span.end)
    return whole or inside


def _places_but_for_blanks(text: str, words: list[str], limit: int) -> list[Span]:
    """The text is searched with one blank for each run of them, so that the search stays linear."""
    found = _places(" ".join(text.split()), " ".join(words), limit)
    if not found:
        return []
    starts = [match.start() for match in _WORD.finditer(text)]
    collapsed = [0, *accumulate(len(match[0]) + 1 for match in _WORD.finditer(text))]

    def raw(position: int) -> int:
        word = bisect_right(collapsed, position) - 1
        return starts[word] + position - collapsed[word]

    return [Span(raw(span.start), raw(span.end - 1) + 1) for span in found]


def _cuts_word(text: str, position: int) -> bool:
    return 0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()
