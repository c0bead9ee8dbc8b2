"""What in a text must be recalled exactly: identifiers, amounts, dates, names, terms, duties, keys with their values.

A recogniser is anything with a name, a kind and a ``find``; ``RECOGNISERS`` is the registry. Patterns carry a
score, and a validator may raise, lower or refuse it (the manner of Presidio's recognisers). Every pattern is
linear: it begins at a place where no match can have begun before, and repeats are bounded or possessive.
"""

import re
from collections.abc import Sequence

from retrieval.amounts import AMOUNT_FORMS, amount_score
from retrieval.checks import (
    amount_fits,
    capitals_fit,
    capitals_score,
    code_fits,
    code_score,
    date_score,
    duration_fits,
    duration_score,
    email_score,
    iban_score,
    isbn_fits,
    isbn_score,
    network_score,
)
from retrieval.clauses import TermRecogniser
from retrieval.contacts import EMAIL, EMAIL_ANCHOR, URL, URL_ANCHOR, address_end
from retrieval.dates import DATE_FORMS
from retrieval.durations import COUNTED_DURATION, ISO_DURATION, LETTERED_DURATION, SPELLED_DURATION, UNIT_NAME
from retrieval.hits import Hit, PatternRecogniser, Recogniser, Survey
from retrieval.keys import MAX_KEY_CHARACTERS, fold
from retrieval.names import NameRecogniser
from retrieval.obligations import ObligationRecogniser
from retrieval.pairs import PairRecogniser
from retrieval.passage import Fact, FactKind
from retrieval.phones import PhoneRecogniser
from retrieval.tables import RowRecogniser

# To be raised with every change by which the same text has other facts, or other keys: documents that are stored then
# have theirs found anew.
RECOGNISERS_REVISION = 4

_WORDY = "0-9A-Za-z\u00c0-\u024f\uff10-\uff19\uff21-\uff3a\uff41-\uff5a_"
_CODE = re.compile(
    rf"(?<![{_WORDY}./:@+&-])(?=[{_WORDY}])(?:[^\W\d]|[_./:@+&-]){{0,40}}+\d"
    rf"(?:[{_WORDY}]|[./:@+&-](?=[{_WORDY}])){{0,160}}+"
)
_CAPITALS = re.compile(r"(?<![\w-])[A-Z]{2,12}(?:[-_][A-Z0-9]{2,12}){1,6}(?![\w-])")
_JOINED_CAPITALS = re.compile(r"[A-Z][-_][A-Z]")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?:/\d{1,3})?(?![\w:])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_ISBN = re.compile(r"(?<![\w-])(?:97[89][- ]?)?\d(?:[- ]?\d){8}[- ]?[\dXx](?![\w-])")

RECOGNISERS: tuple[Recogniser, ...] = (
    PatternRecogniser("date", FactKind.DATE, DATE_FORMS, date_score),
    PatternRecogniser(
        "duration",
        FactKind.DURATION,
        (LETTERED_DURATION, COUNTED_DURATION, ISO_DURATION),
        duration_score,
        fits=duration_fits,
    ),
    PatternRecogniser("duration", FactKind.DURATION, (SPELLED_DURATION,), duration_score, UNIT_NAME),
    PatternRecogniser("amount", FactKind.AMOUNT, AMOUNT_FORMS, amount_score, fits=amount_fits),
    PatternRecogniser("url", FactKind.IDENTIFIER, (URL,), lambda _: 0.95, URL_ANCHOR, address_end),
    PatternRecogniser("email", FactKind.IDENTIFIER, (EMAIL,), email_score, EMAIL_ANCHOR),
    PatternRecogniser("network", FactKind.IDENTIFIER, (_IPV6,), network_score),
    PatternRecogniser("iban", FactKind.IDENTIFIER, (_IBAN,), iban_score),
    PatternRecogniser("isbn", FactKind.IDENTIFIER, (_ISBN,), isbn_score, fits=isbn_fits),
    PhoneRecogniser(),
    PatternRecogniser("code", FactKind.IDENTIFIER, (_CODE,), code_score, fits=code_fits),
    PatternRecogniser(
        "capitals", FactKind.IDENTIFIER, (_CAPITALS,), capitals_score, _JOINED_CAPITALS, fits=capitals_fit
    ),
    NameRecogniser(FactKind.ORGANISATION),
    NameRecogniser(FactKind.PERSON),
    TermRecogniser(),
    ObligationRecogniser(),
    PairRecogniser(),
    RowRecogniser(),
)


def recognise(text: str, recognisers: Sequence[Recogniser] = RECOGNISERS) -> list[Fact]:
    """Return the facts of ``text`` in reading order.

    Of hits that overlap the best scored, then the longest, stays; values that stand under a key are kept beside what
    is recognised inside them. ``keys`` are those of the value, or of what it stands under; ``evidence`` is the
    row, pair, line or sentence around it.
    """
    under_key: list[tuple[Hit, Recogniser]] = []
    standing: list[tuple[Hit, Recogniser]] = []
    survey = Survey(text)
    for recogniser in recognisers:
        for hit in recogniser.find(survey):
            (standing if hit.stands_alone else under_key).append((hit, recogniser))
    chosen = _without_overlaps(standing) + _once_each(under_key)
    chosen.sort(key=lambda found: (found[0].value.start, found[0].value.end))
    return [_fact(survey, hit, recogniser) for hit, recogniser in chosen]


def _fact(survey: Survey, hit: Hit, recogniser: Recogniser) -> Fact:
    text = survey.text
    named = hit.key or hit.value
    keys = () if hit.names else fold(text[named.start : min(named.end, named.start + MAX_KEY_CHARACTERS)])
    for name in hit.names:
        keys = (*keys, *fold(name))
    return Fact(
        kind=recogniser.kind,
        span=hit.value,
        text=text[hit.value.start : hit.value.end],
        keys=tuple(dict.fromkeys(keys)),
        evidence=hit.evidence or survey.sentences.around(hit.value),
        source=recogniser.name,
        score=round(hit.score, 3),
    )


def _without_overlaps(hits: list[tuple[Hit, Recogniser]]) -> list[tuple[Hit, Recogniser]]:
    kept: list[tuple[Hit, Recogniser]] = []
    for found in sorted(hits, key=lambda found: (found[0].value.start, -found[0].value.end)):
        if kept and found[0].value.start < kept[-1][0].value.end:
            if _worth(found[0]) > _worth(kept[-1][0]):
                kept[-1] = found
        else:
            kept.append(found)
    return kept


def _worth(hit: Hit) -> tuple[float, int]:
    return hit.score, len(hit.value)


def _once_each(hits: list[tuple[Hit, Recogniser]]) -> list[tuple[Hit, Recogniser]]:
    """A quoted pair may also be the line it stands on."""
    return list({(hit.value, hit.key, hit.names): (hit, recogniser) for hit, recogniser in hits}.values())
