"""Which of several documents a question names, and whether it asks of each: then each has its share of the passages.

A document is named by the words of its file's name, or of its title, that no other document asked has in its own; where
a question compares and names fewer than two, it asks of all. Any other question is answered by rank alone, in whatever
documents the answer stands.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from retrieval.words import STOP_WORDS, words

Found = TypeVar("Found")

# Names that say nothing: a question that speaks of "the document" names none.
GENERIC = frozenset(
    """document documents doc docs file files text note notes upload untitled page pages scan copy final draft version
    pdf docx html txt md""".split()
)
_SILENT = STOP_WORDS | GENERIC
_SEVERAL = (
    r"(?:documents|contracts|agreements|files|texts|papers|reports|leases|offers|policies|versions|sources|of them)"
)
_COMPARES = re.compile(
    rf"\b(?:compar(?:e|es|ed|ing|ison)|contrast|differ(?:s|ence|ences|ent|ently)?|versus|vs|respectively|in common"
    rf"|(?:each|both|all|either|every one)(?: of)?(?: the| these| those)?(?: two| three| four| five| \d+)? {_SEVERAL}"
    r"|(?:each|every) (?:document|contract|agreement|file|text|paper|report|lease|offer|policy|version|source))\b",
    re.IGNORECASE,
)
_JOINTS = re.compile(r"[-._/:@+#&'’]")
_EXTENSION = re.compile(r"\.\w{1,5}$")
# A letter or figure that stands for itself; "a" and "I" are words.
_LETTERS = re.compile(r"(?<=[\w,;:] )([A-HJ-Z0-9])\b")
# Of more documents than a request may name none has a share for being among them.
MOST_SHARES = 64
# Of each document that has a share so many places at least are looked at.
_LEAST = 2


@dataclass(frozen=True, slots=True)
class AskedDocuments:
    """By their places among the documents asked: those that are ``named``, and those that each have a share."""

    named: frozenset[int] = frozenset()
    shares: frozenset[int] = frozenset()

    def most(self, max_passages: int) -> int:
        """Of so many passages those that a document comes first with."""
        if len(self.shares) == 1:  # the others may have to say something too
            return (max_passages + 1) // 2
        return max(1, max_passages // len(self.shares)) if self.shares else 0


class Names:
    """The names and titles of documents, made ready to be met with questions."""

    def __init__(self, names: Sequence[str], titles: Sequence[str]) -> None:
        self._files = [(place, name, name.casefold()) for place, name in enumerate(names) if "." in name]
        self._told_by = [_told_by([_EXTENSION.sub("", name) for name in names]), _told_by(titles)]
        self._num_documents = len(names)
        self.num_bytes = sum(map(sys.getsizeof, chain(*self._files, *chain(*self._told_by))))

    def asked(self, question: str) -> AskedDocuments:
        """What ``question`` asks of the documents, of which there may be any number."""
        if self._num_documents < 2:
            return AskedDocuments()
        folded = question.casefold()
        # Of thousands of names few are in the question at all, and a pattern takes long to make.
        whole = {place for place, name, sought in self._files if sought in folded and _stands_in(name, question)}
        asked = {*(word for word in words(question) if len(word) > 1), *_LETTERS.findall(question)}
        named = frozenset(whole.union(*(_named(told_by, asked) for told_by in self._told_by)))
        if len(named) < 2 and self._num_documents <= MOST_SHARES and _COMPARES.search(question):
            return AskedDocuments(named, frozenset(range(self._num_documents)))
        return AskedDocuments(named, named if len(named) <= MOST_SHARES else frozenset())


def asked_documents(question: str, names: Sequence[str], titles: Sequence[str]) -> AskedDocuments:
    """What ``question`` asks of documents with these names and titles."""
    return Names(names, titles).asked(question)


def first_of(
    found: Sequence[Found], depth: int, asked: AskedDocuments, document_of: Callable[[Found], int]
) -> list[Found]:
    """The first ``depth`` of what was found, best first, and of each document with a share its first ones as well."""
    left = dict.fromkeys(asked.shares, max(_LEAST, depth // max(1, len(asked.shares))))
    kept = []
    for rank, one in enumerate(found):
        document = document_of(one)
        if rank < depth or left.get(document, 0) > 0:
            kept.append(one)
        if document in left:
            left[document] -= 1
    return kept


def in_turn(
    ranked: Sequence[Found], each: int, shares: Collection[int], document_of: Callable[[Found], int]
) -> list[Found]:
    """First the best of every document in ``shares``, then the second best, up to ``each``; then the rest as ranked."""
    rounds: list[tuple[int, int]] = []
    seen: Counter[int] = Counter()
    for rank, one in enumerate(ranked):
        document = document_of(one)
        has_turn = document in shares and seen[document] < each
        rounds.append((seen[document] if has_turn else each, rank))
        seen[document] += 1
    return [ranked[rank] for _, rank in sorted(rounds)]


def _stands_in(name: str, question: str) -> bool:
    """Whether a file is named as it is called, extension and all."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", question, re.IGNORECASE) is not None


def _told_by(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """For each word that stands in one name alone whose it is, and how many such words that name has."""
    own = [_telling(name) for name in names]
    counts = Counter(word for name in own for word in name)
    telling = [[word for word in name if counts[word] == 1] for name in own]
    return {word: (place, len(name)) for place, name in enumerate(telling) for word in name}


def _named(told_by: Mapping[str, tuple[int, int]], asked: Collection[str]) -> set[int]:
    """The names of which each word that tells them from others is ``asked``."""
    met = Counter(told_by[word] for word in asked if word in told_by)
    return {place for (place, num_telling), count in met.items() if count == num_telling}


def _telling(name: str) -> frozenset[str]:
    """The words of a name that tell it from others; a letter by itself as a capital, so that "a" is none."""
    if not name:  # As the titles of most documents of a large store.
        return frozenset()
    parts = [part for word in words(name) for part in _JOINTS.split(word) if part]
    return frozenset(
        part.upper() if len(part) == 1 else part for part in parts if len(part) == 1 or part not in _SILENT
    )
