"""Passages that say the same: the better one is kept, and tells where else it stands.

What facts are made of has to be the same in both: words with a digit or a capital letter, and words that deny. Two
versions of a contract that differ in a sum, a name or a "not" are two passages, however alike the rest is.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from retrieval.passage import Copy, Passage
from retrieval.words import words

# The share of neighbouring words, three at a time, that two passages must have in common.
LIKENESS = 0.9
_SHINGLE_WORDS = 3
_DENIALS = frozenset("no not never none nor neither without except unless cannot nothing nobody".split())
_TOKEN = re.compile(r"\w+(?:[^\w\s]+\w+)*")


def collapsed(passages: Iterable[Passage], most: int) -> tuple[Passage, ...]:
    """At most ``most`` of ``passages``, which come best first; copies of a better one stand in its ``also``."""
    kept: list[Passage] = []
    for passage in passages:
        place = next((place for place, better in enumerate(kept) if says_the_same(better, passage)), None)
        if place is not None:
            copy = Copy(passage.document_id, passage.document_name, passage.span, passage.page)
            kept[place] = replace(kept[place], also=(*kept[place].also, copy))
        else:
            kept.append(passage)
        if len(kept) == most:
            break
    return tuple(kept)


def says_the_same(better: Passage, other: Passage) -> bool:
    """Whether ``other`` adds nothing to ``better``: nearly the same text, and the same under the keys asked for."""
    if better.document_id == other.document_id and better.cutting != other.cutting:
        return False  # Somebody wants it cut in both ways.
    if _particulars(better.text) != _particulars(other.text) or _told(better) != _told(other):
        return False
    one, two = _shingles(better.text), _shingles(other.text)
    return len(one & two) >= LIKENESS * len(one | two)


def _particulars(text: str) -> list[str]:
    return [
        token
        for token in _TOKEN.findall(text)
        if token != token.lower() or any(map(str.isdigit, token)) or token in _DENIALS or token.endswith(("n't", "n’t"))
    ]


def _told(passage: Passage) -> tuple[list[str] | None, set[tuple[str, str]]]:
    """The words of the evidence, and what stands under which key."""
    evidence = None
    if passage.evidence is not None:
        evidence = words(_cut(passage, passage.evidence.start, passage.evidence.end))
    return evidence, {(value.key, _cut(passage, value.span.start, value.span.end)) for value in passage.values}


def _cut(passage: Passage, start: int, end: int) -> str:
    return passage.text[start - passage.span.start : end - passage.span.start]


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[place : place + _SHINGLE_WORDS]) for place in range(max(1, len(found) - _SHINGLE_WORDS + 1))}
