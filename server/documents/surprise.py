"""What surprises the model in a document: words that tell more bits than is usual for their length.

What the model could not foretell is what a compact state cannot hold. Each piece of a reading is judged by itself,
against what its own words usually cost: nothing but the piece need be held, and a reading that is taken up again finds
the same. Of the rules that were tried on real texts this one met names, numbers and codes most often.
"""

import logging
import math
import re
import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.tokenizer import SPACE_MARK
from retrieval.keys import MAX_KEY_CHARACTERS
from retrieval.passage import Span
from retrieval.surprises import Surprise
from server.answers.prompt import ChatTokenizer

logger = logging.getLogger(__name__)

# So many of the words of a piece are surprising, of those that tell so many bits more than is usual.
SHARE = 0.02
LEAST_BITS = 12.0

# Dashes between words part them; hyphens do not.
_WORD = re.compile(r"(?:(?!--|[—…])\S)+")
_EDGES = ".,;:!?\"'“”‘’«»()[]{}<>*_`|#-–—…/\\"
_GAP = re.compile(r"[^\S\r\n]+")
_HEAD_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a document's text begins in its prompt: at the token ``num_tokens``, of whose text and that of the tokens
    after it ``num_characters`` come before; less than none where the template cut off the beginning. ``content`` is
    what a template leaves of the text in any case: all but the blanks at its ends."""

    num_tokens: int
    num_characters: int
    content: Span

    @staticmethod
    def of(tokenizer: ChatTokenizer, text: str) -> "Placement | None":
        """That of ``text`` as the first message; None where the prompt does not say it as it is."""
        num_tokens, content = 0, text.strip()
        for part in tokenizer.chat_parts([{"role": "user", "content": text}], add_generation_prompt=False):
            if isinstance(part, int) or not content or (at := part.find(content)) < 0:
                num_tokens += 1 if isinstance(part, int) else len(tokenizer.encode_ids(part))
                continue
            ids = tokenizer.encode_ids(part)[:_HEAD_TOKENS]
            head = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="ignore")
            span = Span(len(text) - len(text.lstrip()), len(text.rstrip()))
            at, part = at - span.start, _spaced(part)
            if part.startswith(head):
                return Placement(num_tokens, at, span)
            # Llama-style tokenizers put a space before a text.
            return Placement(num_tokens, at + 1, span) if head[:1] == " " and part.startswith(head[1:]) else None
        return None


class SurpriseFinder:
    """Goes through the tokens of one document, piece by piece, and says what is surprising in each.

    ``text`` gives the code points of a range of the document. A word that a border of two pieces goes through is
    judged in neither.
    """

    def __init__(self, tokenizer: ChatTokenizer, placement: Placement, text: Callable[[int, int], str]) -> None:
        self._tokenizer = tokenizer
        self._placement = placement
        self._text = text
        self._num_tokens = 0
        self._position = -placement.num_characters
        self._is_lost = False

    def skip(self, ids: Sequence[int]) -> None:
        """Pass over the next tokens."""
        self._places(ids)

    def find(self, ids: Sequence[int], bits: Sequence[float]) -> list[Surprise]:
        """What is surprising in the next tokens, whose surprisals are ``bits``, in reading order.

        Nothing from where the tokens are not the text (another normal form, say): no place in it would be true.
        """
        assert len(ids) == len(bits), f"{len(bits)} surprisals of {len(ids)} tokens"
        begin = self._position
        places, said = self._places(ids)
        content = self._placement.content
        low, high = max(content.start, begin), min(content.end, self._position)
        if low >= high:
            return []
        # One more on each side tells whether a word is whole.
        first = max(0, low - 1)
        around = self._text(first, high + 1)
        body, said = around[low - first : high - first], said[low - begin :]
        if _spaced(body[: len(said)]) != said[: len(body)] and not self._is_lost:
            logger.warning("what a document's tokens say is not its text: surprises are not looked for from here on")
            self._is_lost = True
        if self._is_lost:
            return []
        words = []
        for match in _WORD.finditer(around):
            is_cut = match.start() < low - first or match.end() > high - first
            if not is_cut and (word := _trimmed(match[0], first + match.start())) is not None:
                words.append(word)
        told = _bits_of(words, places, bits)
        return surprising(words, told, lambda gap: around[gap.start - first : gap.end - first])

    def _places(self, ids: Sequence[int]) -> tuple[list[Span | None], str]:
        """Of each of the next tokens the characters that it says, or says a part of, None for those outside of the
        text; and what all of them say together."""
        places: list[Span | None] = []
        said: list[bytes] = []
        for token_id in ids:
            self._num_tokens += 1
            if self._num_tokens <= self._placement.num_tokens:
                places.append(None)
                continue
            raw = self._tokenizer.token_bytes(token_id)
            said.append(raw)
            # In UTF-8 all bytes of a character but the first are 10xxxxxx.
            start = self._position - (bool(raw) and raw[0] & 0xC0 == 0x80)
            self._position += sum(byte & 0xC0 != 0x80 for byte in raw)
            places.append(Span(start, self._position) if start >= 0 and raw else None)
        return places, b"".join(said).decode(errors="ignore")


def surprising(words: Sequence[Span], bits: Sequence[float], between: Callable[[Span], str]) -> list[Surprise]:
    """Of the ``words`` of a piece, which told so many ``bits``, the surprising ones; neighbours together.

    ``between`` gives the text between two words.
    """
    if not words:
        return []
    usual = statistics.median(told / len(word) for word, told in zip(words, bits, strict=True))
    excess = [told - usual * len(word) for word, told in zip(words, bits, strict=True)]
    ranked = sorted((place for place, more in enumerate(excess) if more >= LEAST_BITS), key=lambda at: -excess[at])
    chosen = sorted(ranked[: math.ceil(SHARE * len(words))])
    runs = [[place] for place in chosen[:1]]
    for last, place in pairwise(chosen):
        is_next = place == last + 1 and words[place].end - words[runs[-1][0]].start <= MAX_KEY_CHARACTERS
        if is_next and _GAP.fullmatch(between(Span(words[last].end, words[place].start))):
            runs[-1].append(place)
        else:
            runs.append([place])
    return [
        Surprise(Span(words[run[0]].start, words[run[-1]].end), round(sum(excess[place] for place in run), 1))
        for run in runs
    ]


def _spaced(text: str) -> str:
    """The text with spaces where it has the mark that tokens write for one, as decoding has it."""
    return text.replace(SPACE_MARK, " ")


def _trimmed(word: str, start: int) -> Span | None:
    """The word without signs at its ends; None where nothing is left, and where it is too long to be a key."""
    end = start + len(word.rstrip(_EDGES))
    start += len(word) - len(word.lstrip(_EDGES))
    return Span(start, end) if start < end <= start + MAX_KEY_CHARACTERS else None


def _bits_of(words: Sequence[Span], places: Sequence[Span | None], bits: Sequence[float]) -> list[float]:
    """The bits that the tokens of each word told together; a token of two words counts for both."""
    tokens = [(place, told) for place, told in zip(places, bits, strict=True) if place is not None]
    ends = [place.end for place, _ in tokens]
    totals = []
    for word in words:
        at, total = bisect_right(ends, word.start), 0.0
        while at < len(tokens) and tokens[at][0].start < word.end:
            total += tokens[at][1]
            at += 1
        totals.append(total)
    return totals
