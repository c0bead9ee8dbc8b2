"""Real prose of a wanted length in tokens, and sentences planted in it at wanted depths."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

# A blank after a full stop, before a capital: between two sentences of one paragraph, abbreviations of titles aside.
_SENTENCE_BORDER = re.compile(r"(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\b[A-Z])[.!?][\"”’']? (?=[A-Z“\"])")
# A stretch whose length in tokens is off by no more than this is taken as it is.
TOLERANCE = 0.02

CountTokens = Callable[[str], int]


class Haystack:
    """Books, joined in an order that each draw chooses anew, from which stretches are cut."""

    def __init__(self, books: Sequence[str], count_tokens: CountTokens) -> None:
        self._books = books
        self._count_tokens = count_tokens
        self._joined: dict[tuple[int, ...], str] = {}

    @classmethod
    def of(cls, directory: Path, count_tokens: CountTokens) -> "Haystack":
        """All text files of a directory."""
        files = sorted(directory.glob("*.txt"))
        if not files:
            raise SystemExit(f"{directory} has no .txt files; name a directory of books in plain text")
        return cls([file.read_text(encoding="utf-8") for file in files], count_tokens)

    def stretch(self, num_tokens: int, rng: random.Random) -> str:
        """About ``num_tokens`` tokens of consecutive prose; the books are gone through in a circle."""
        order = tuple(rng.sample(range(len(self._books)), len(self._books)))
        if order not in self._joined:
            self._joined = {order: "\n\n".join(self._books[book] for book in order)}
        text = self._joined[order]
        begin = next((match.end() for match in _SENTENCE_BORDER.finditer(text, rng.randrange(len(text)))), 0)
        turned = text[begin:] + "\n\n" + text[:begin]
        num_characters = min(4 * num_tokens, len(turned))
        while True:
            counted = self._count_tokens(turned[:num_characters])
            if abs(counted - num_tokens) <= TOLERANCE * num_tokens or num_characters == len(turned) > counted:
                break
            num_characters = min(num_characters * num_tokens // counted, len(turned))
        borders = [
            match.end() for match in _SENTENCE_BORDER.finditer(turned, max(0, num_characters - 3000), num_characters)
        ]
        return turned[: borders[-1] if borders else num_characters].strip()


def plant(haystack: str, sentences: Sequence[str], depths: Sequence[float]) -> tuple[str, list[int]]:
    """``haystack`` with each sentence at its depth (0 to 1, ascending), and where each one starts in the result.

    They stand between two sentences of a paragraph, at the beginning or at the end; those with the same border
    follow each other.
    """
    borders = [0, *(match.end() for match in _SENTENCE_BORDER.finditer(haystack)), len(haystack)]
    pieces: list[str] = []
    starts: list[int] = []
    length = last = 0
    for sentence, depth in zip(sentences, depths, strict=True):
        place = borders[round(depth * (len(borders) - 1))]
        assert place >= last, f"depths must ascend, {depth} does not"
        before = haystack[last:place]
        if place == len(haystack) and before:
            before += " "
        pieces += [before, sentence, " "]
        starts.append(length + len(before))
        length += len(before) + len(sentence) + 1
        last = place
    return "".join([*pieces, haystack[last:]]), starts
