"""Where a text reads like a contract, a statute or a specification: by the words such texts are made of."""

import bisect
import re

# Every alternative begins with a letter that is fixed: the search jumps to those. The first group is hardly ever found
# elsewhere; of the second a speech or a history has some as well.
_WORD = re.compile(
    r"(?:(hereby|Hereby|hereunder|herein|Herein|hereof|hereto|Hereto|thereof|thereunder|Licen[sc]e[er]|"
    r"Agreement\b(?!s? (?:of|with|on) [A-Z])|Section\s\d|Clause\s\d|clause\s\d|Article\s[\dIVX]|§|pursuant|Pursuant|"
    r"RFC\s?\d|provided,?\sthat|Provided\sthat|indemnif|Indemnif|Part(?:y|ies)\s(?:shall|may|agree|hereto)|"
    r"M(?:UST|AY)\b|SHALL\b|REQUIRED\b|aforesaid|foregoing)|"
    r"(agreement|Contract|licen[sc]e|party|parties|Party|Parties|specification|Specification|liabilit|Liabilit|"
    r"terminat|Terminat|confidential|Confidential|warrant|Warrant))"
)
_NEAR_CHARACTERS = 2000
_STRONG = 1.0
_WEAK = 0.25
ENOUGH = 3.0


class Register:
    """The words of law of one text, to be asked how thick they stand."""

    def __init__(self, text: str) -> None:
        self._places: list[int] = []
        self._sums: list[float] = [0.0]
        for match in _WORD.finditer(text):
            self._places.append(match.start())
            self._sums.append(self._sums[-1] + (_STRONG if match[1] else _WEAK))

    def weight(self, place: int) -> float:
        """How much of law stands within 2000 characters of ``place``."""
        low = bisect.bisect_left(self._places, place - _NEAR_CHARACTERS)
        high = bisect.bisect_left(self._places, place + _NEAR_CHARACTERS)
        return self._sums[high] - self._sums[low]

    def is_legal(self, place: int) -> bool:
        """Whether the text around ``place`` reads like a contract, a statute or a specification."""
        return self.weight(place) >= ENOUGH
