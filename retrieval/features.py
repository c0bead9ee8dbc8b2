"""What speaks for a chunk as the place of an answer, as numbers: words, meaning, and the kind of answer asked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import chain, pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.lexical_index import LexicalHits, LexicalQuery, stems
from retrieval.words import words


class Asked(Enum):
    """What kind of answer a question wants, by its question words."""

    PERSON = "person"
    PLACE = "place"
    TIME = "time"
    NUMBER = "number"
    OTHER = "other"


_ASKED = (
    (
        Asked.TIME,
        re.compile(r"\b(?:when|(?:what|which|in what|in which) (?:year|date|day|month|century|decade))\b", re.I),
    ),
    (
        Asked.NUMBER,
        re.compile(
            r"\b(?:how (?:many|much|old|far|long|tall|large|big|often)"
            r"|(?:what|which) (?:percent|percentage|number|amount|price|population))\b",
            re.I,
        ),
    ),
    (Asked.PERSON, re.compile(r"\b(?:who|whom|whose)\b", re.I)),
    (
        Asked.PLACE,
        re.compile(r"\b(?:where|(?:what|which) (?:country|city|state|town|place|region|county|continent))\b", re.I),
    ),
)
_NUMBER = re.compile(
    r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|seventy|eighty"
    r"|ninety|hundred|thousand|million|billion|dozen|half|twice|once)\b",
    re.I,
)
_TIME = re.compile(
    r"\b(?:1\d{3}|20\d\d|january|february|march|april|may|june|july|august|september|october|november|december|monday"
    r"|tuesday|wednesday|thursday|friday|saturday|sunday|century|spring|summer|autumn|winter|morning|evening|night"
    r"|day|week|month|year)s?\b",
    re.I,
)
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’-]+")
_CAPITALISED = re.compile(r"[A-Z]")


@dataclass(frozen=True, slots=True)
class AskedWords:
    """A question as its words: stems with the share each has in what is asked, by how rare it is; ``rarities`` of those
    that stand anywhere, from 0 to 1 for what stands in one chunk of very many; ``known`` is the share of these."""

    shares: Mapping[str, float]
    rarities: Mapping[str, float]
    names: frozenset[str]
    known: float
    num_words: int
    asked: Asked
    text: str

    @classmethod
    def of(cls, question: str, query: LexicalQuery, lexical: LexicalHits) -> Self:
        """``lexical`` is what the search by the words of ``query`` gave."""
        total = sum(lexical.rarities.values()) or 1.0
        shares = {stem: weight / total for stem, weight in lexical.rarities.items()}
        rarities = {stem: lexical.rarities[stem] / lexical.unknown for stem in lexical.known}
        # The first word of a question is written large without being a name.
        marked = [word for word in question.split()[1:] if _CAPITALISED.match(word) or any(map(str.isdigit, word))]
        names = frozenset(stems(words(" ".join(marked)))) & shares.keys()
        asked = next((kind for kind, pattern in _ASKED if pattern.search(question)), Asked.OTHER)
        known = sum(shares[stem] for stem in lexical.known)
        return cls(shares, rarities, names, known, len(query.stemmed), asked, question)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that a search returned.

    ``rows`` are its stretches that have vectors, ``products`` their inner products with the question, None where the
    vectors do not stand yet. Scores and ranks (from 1; 0: not returned) are those of the search by words and by
    meaning. ``place`` is document and ordinal; ``keys`` holds one divided by the number of its places for each key of
    the question that stands here without leading here.
    """

    place: tuple[int, int]
    heading: str
    rows: Sequence[str]
    products: NDArray[np.float32] | None
    lexical_score: float
    lexical_rank: int
    dense_rank: int
    keys: Sequence[float] = ()


NAMES = (
    "lexical_relative",
    "lexical_absolute",
    "lexical_rank",
    "dense_best",
    "dense_gap",
    "dense_rank",
    "dense_second",
    "dense_mean",
    "has_dense",
    "coverage_chunk",
    "coverage_row",
    "coverage_gap",
    "coverage_near_row",
    "row_joint",
    "row_joint_gap",
    "names_chunk",
    "names_row",
    "has_names",
    "typed_row",
    "typed_chunk",
    "is_typed",
    "pairs",
    "heading",
    "near_dense",
    "near_coverage",
    "length",
    "num_rows",
    "is_table",
    "question_words",
    "question_known",
    "keys",
    "keys_rarest",
    "keys_gap",
    "rarest",
    "rarest_gap",
    "rarest_name",
    "names_under",
    "names_known",
)

# Words are seen again and again: the stemmer is asked once for most of them.
_MAX_KNOWN_STEMS = 100_000


def features(question: AskedWords, candidates: Sequence[Candidate]) -> NDArray[np.float32]:
    """One row [len(NAMES)] for each candidate; what is relative is so to the best of all ``candidates``."""
    if not candidates:
        return np.empty((0, len(NAMES)), np.float32)
    best_lexical = max(candidate.lexical_score for candidate in candidates) or 1.0
    table = np.zeros((len(candidates), len(NAMES)), np.float32)
    values = {name: table[:, column] for column, name in enumerate(NAMES)}
    shares = question.shares
    stems_asked = frozenset(shares)
    beginnings = [stem[: max(len(stem) - 1, 1)] if len(stem) > 3 else stem[:2] for stem in shares]
    beginnings += [stem[:1] for stem in shares if len(stem) == 3 and stem.endswith("ie")]  # dying, lying, tying, vying
    asked_pairs = _pairs(list(shares))
    for index, candidate in enumerate(candidates):
        tokens = [_stems(row) if _may_hold(row, beginnings) else [] for row in candidate.rows]
        # Only what the question asks for matters of the words of a row.
        sets = [stems_asked.intersection(row) for row in tokens]
        whole = frozenset().union(*sets)
        coverages = [_share(shares, row) if row else 0.0 for row in sets]
        products = candidate.products
        if products is not None:
            given = products.tolist()
            best = max(given)
            near = given.index(best)
            values["dense_best"][index] = best
            values["dense_second"][index] = sorted(given)[-2] if len(given) > 1 else 0.0
            values["dense_mean"][index] = sum(given) / len(given)
            values["has_dense"][index] = 1.0
            values["row_joint"][index] = max(
                product + 0.5 * coverage for product, coverage in zip(given, coverages, strict=True)
            )
        else:
            near = coverages.index(max(coverages))
            values["row_joint"][index] = 0.5 * max(coverages)
        values["lexical_relative"][index] = candidate.lexical_score / best_lexical
        values["lexical_absolute"][index] = candidate.lexical_score / (5.0 * max(question.num_words, 1))
        values["lexical_rank"][index] = 1.0 / candidate.lexical_rank if candidate.lexical_rank else 0.0
        values["dense_rank"][index] = 1.0 / candidate.dense_rank if candidate.dense_rank else 0.0
        values["coverage_chunk"][index] = _share(shares, whole)
        values["coverage_row"][index] = max(coverages)
        values["coverage_near_row"][index] = coverages[near]
        values["rarest"][index] = _rarest(question.rarities, whole)
        heading = frozenset(_stems(candidate.heading)) if candidate.heading else frozenset()
        values["heading"][index] = _share(shares, heading)
        if question.names:
            values["has_names"][index] = 1.0
            values["names_under"][index] = len(question.names & (whole | heading)) / len(question.names)
            values["rarest_name"][index] = _rarest(question.rarities, question.names & whole)
            values["names_chunk"][index] = len(question.names & whole) / len(question.names)
            values["names_row"][index] = max(len(question.names & row) for row in sets) / len(question.names)
        if question.asked is not Asked.OTHER:
            values["is_typed"][index] = 1.0
            values["typed_row"][index] = _holds(question, candidate.rows[near])
            values["typed_chunk"][index] = _holds(question, " ".join(candidate.rows))
        if asked_pairs:
            there = asked_pairs.intersection(chain.from_iterable(map(pairwise, tokens)))
            values["pairs"][index] = len(there) / len(asked_pairs)
        length = sum(map(len, candidate.rows))
        values["length"][index] = length / 600
        values["num_rows"][index] = len(candidate.rows) / 5
        values["is_table"][index] = min(1.0, sum(row.count("|") for row in candidate.rows) * 20 / max(length, 1))
        values["keys"][index] = len(candidate.keys) / 5
        values["keys_rarest"][index] = max(candidate.keys, default=0.0)
        values["keys_gap"][index] = sum(candidate.keys)
    values["dense_gap"][:] = values["dense_best"] - values["dense_best"].max()
    values["row_joint_gap"][:] = values["row_joint"] - values["row_joint"].max()
    values["coverage_gap"][:] = values["coverage_chunk"] - values["coverage_chunk"].max()
    values["keys_gap"][:] -= values["keys_gap"].max()
    values["rarest_gap"][:] = values["rarest"] - max(question.rarities.values(), default=0.0)
    if question.names:
        values["names_known"][:] = len(question.names & question.rarities.keys()) / len(question.names)
    values["question_words"][:] = question.num_words / 10
    values["question_known"][:] = question.known
    _neighbours(candidates, values)
    return table


def _neighbours(candidates: Sequence[Candidate], values: Mapping[str, NDArray[np.float32]]) -> None:
    """What the chunks before and after have, as far as a search returned them too."""
    index_of = {candidate.place: index for index, candidate in enumerate(candidates)}
    for index, candidate in enumerate(candidates):
        document, ordinal = candidate.place
        for place in ((document, ordinal - 1), (document, ordinal + 1)):
            beside = index_of.get(place)
            if beside is not None:
                for to, of in (("near_dense", "dense_best"), ("near_coverage", "coverage_chunk")):
                    values[to][index] = max(values[to][index], values[of][beside])


def _may_hold(row: str, beginnings: Sequence[str]) -> bool:
    """Whether a word of ``row`` can have a stem of which all but the last sign is one of ``beginnings``: a stem ends in
    a sign of its own (happy: happi, hoping: hope) at most. Spares most of the stemming. Accents fold away, so rows with
    any are always looked at."""
    if not row.isascii():
        return True
    row = row.lower()
    return any(beginning in row for beginning in beginnings)


def _stems(text: str) -> list[str]:
    return list(map(_stem, words(text)))


@lru_cache(maxsize=_MAX_KNOWN_STEMS)
def _stem(word: str) -> str:
    (stem,) = stems((word,)) or (word,)
    return stem


def _share(shares: Mapping[str, float], there: frozenset[str]) -> float:
    return sum(share for stem, share in shares.items() if stem in there)


def _rarest(rarities: Mapping[str, float], there: frozenset[str]) -> float:
    return max((rarity for stem, rarity in rarities.items() if stem in there), default=0.0)


def _pairs(row: Sequence[str]) -> set[tuple[str, str]]:
    return set(pairwise(row))


def _holds(question: AskedWords, text: str) -> float:
    """Whether the text has something of the kind asked for that is not in the question itself."""
    if question.asked is Asked.NUMBER:
        return float(_NUMBER.search(text) is not None)
    if question.asked is Asked.TIME:
        return float(_TIME.search(text) is not None)
    return float(any(match[0] not in question.text for match in _NAME.finditer(text)))
