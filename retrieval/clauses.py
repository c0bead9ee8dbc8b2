"""What contracts, statutes and specifications fix: terms they define, and what somebody shall, must or may not do."""

import bisect
import re
from collections.abc import Iterator

from retrieval.hits import Hit, Survey
from retrieval.passage import FactKind, Span
from retrieval.sentences import MAX_EVIDENCE_CHARACTERS, trim
from retrieval.words import STOP_WORDS

_MAX_TERM = 60
_NAMED_IN_BRACKETS = re.compile(
    r"\((?:(?:the|an?|each|together|collectively|individually|hereinafter|hereafter|referred|called|to|as|and|or|,)"
    rf"[ ,]{{1,2}}){{0,8}}[\"“](?P<first>[A-Z][^\"”\n]{{2,{_MAX_TERM}}})[\"”]"
    rf"(?: or [\"“](?P<second>[^\"”\n]{{2,{_MAX_TERM}}})[\"”])?\)"
)
_MEANS = re.compile(
    rf"[\"“]([^\"”\n]{{2,{_MAX_TERM}}})[\"”]\s+(?:(?:shall|will)\s)?"
    r"(?:means?|denotes?|refers?\sto|has\sthe\smeaning|have\sthe\smeanings?|is\sdefined\sas|designates)\b:?\s+"
)
_BEFORE_PARTY = re.compile(
    r".*(?:\b(?:between|among|by and between|with|and|or|that|of)\s|[:;)]\s*(?:and\s)?)", re.DOTALL
)
_ENTRY = re.compile(r"^[\s,;)]*(?:and|or|between|by|the)?\s*")

_DUTY = re.compile(
    r"(?:shall|must|MUST|SHALL|(?:may|will|can)\snot|MAY\sNOT|(?:is|are)\s(?:required|obliged|obligated)\sto|"
    r"(?:agrees?|undertakes?)\s(?:not\s)?to)\b"
)
# Words by which a contract, a statute or a specification is known; a novel has few of them close together. Every
# alternative begins with a letter that is fixed: the search jumps to those.
_LEGAL_WORD = re.compile(
    r"(?:agreement|Agreement|Contract|hereby|Hereby|herein|hereof|hereunder|Herein|thereof|Thereof|licen[sc]e[er]?|"
    r"Licen[sc]e[er]?|party|parties|Party|Parties|Article\s\d|Section\s\d|Clause\s\d|clause\s\d|§|"
    r"pursuant|Pursuant|RFC\s?\d|"
    r"specification|Specification|provided\sthat|Provided\sthat|liabilit|Liabilit|indemnif|Indemnif|terminat|Terminat|"
    r"confidential|Confidential|warrant|Warrant)"
)
_NEAR_CHARACTERS = 3000
_LEGAL_WORDS_NEAR = 4
_PRONOUNS = frozenset("i we you he she they it one who which that this these those there what thou ye".split())
_CONTENT = re.compile(r"[^\W_][\w'’-]*")
_CLAUSE_START = re.compile(r"(?:[;:]\s|,\s(?:and|but|or|then)\s|\)\s(?=[A-Z]))")
_MAX_SUBJECT_WORDS = 8


class TermRecogniser:
    """``"Term" means ...``: the definition under the term; ``... (the "Supplier")``: who or what is called so."""

    name = "term"
    kind = FactKind.TERM

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits whose key is the term."""
        text = survey.text
        for match in _MEANS.finditer(text):
            sentence = survey.sentences.around(Span(match.end() - 1, match.end()))
            end = max(sentence.end, match.end())
            value = trim(text, Span(match.end(), min(end, match.end() + MAX_EVIDENCE_CHARACTERS)))
            if len(value) and text[value.end - 1] in ".;":
                value = Span(value.start, value.end - 1)
            if len(value):
                evidence = Span(min(match.start(), sentence.start), max(sentence.end, value.end))
                yield Hit(value, 0.9, Span(*match.span(1)), evidence)
        legal: list[int] | None = None
        for match in _NAMED_IN_BRACKETS.finditer(text):
            legal = _legal_places(text) if legal is None else legal
            # Elsewhere such a bracket translates, or names a work.
            if not _is_legal(legal, match.start()):
                continue
            party = _party(text, survey, match.start())
            if party is None:
                continue
            evidence = Span(party.start, match.end())
            for group in ("first", "second"):
                if match[group] is not None:
                    yield Hit(party, 0.85, Span(*match.span(group)), evidence)


def _party(text: str, survey: Survey, end: int) -> Span | None:
    """What stands before a bracket that names it: from the last word that can begin it, in the same sentence."""
    sentence = survey.sentences.around(Span(max(0, end - 1), end))
    low = max(sentence.start, end - MAX_EVIDENCE_CHARACTERS // 2)
    before = _BEFORE_PARTY.match(text, low, end)
    start = before.end() if before else low
    entry = _ENTRY.match(text[start:end])
    value = trim(text, Span(min(end, start + (entry.end() if entry else 0)), end))
    if len(value) and text[value.end - 1] == ",":
        value = Span(value.start, value.end - 1)
    return value if len(value) > 1 else None


class ObligationRecogniser:
    """Sentences that say what somebody shall, must or may not do, where the text around is that of a contract, a
    statute or a specification."""

    name = "obligation"
    kind = FactKind.OBLIGATION

    def find(self, survey: Survey) -> Iterator[Hit]:
        """The clause of each, whose keys are its subject with one to three words of what is to be done."""
        text = survey.text
        duties = [match for match in _DUTY.finditer(text) if not text[match.start() - 1 : match.start()].isalnum()]
        if not duties:
            return
        legal = _legal_places(text)
        last_end = 0
        for match in duties:
            if match.start() < last_end or not _is_legal(legal, match.start()):
                continue
            sentence = survey.sentences.around(Span(*match.span()))
            start = sentence.start
            for border in _CLAUSE_START.finditer(text, sentence.start, match.start()):
                start = border.end()
            subject = _CONTENT.findall(text[start : match.start()])
            if not subject or len(subject) > _MAX_SUBJECT_WORDS or subject[-1].casefold() in _PRONOUNS:
                start = sentence.start
                subject = _CONTENT.findall(text[start : match.start()])
            if not subject or len(subject) > _MAX_SUBJECT_WORDS or subject[-1].casefold() in _PRONOUNS:
                continue
            doing = [word for word in _CONTENT.findall(text[match.end() : sentence.end]) if _is_content(word)][:3]
            who = [word for word in subject if _is_content(word)][-3:]
            if not doing or not who:
                continue
            last_end = sentence.end
            names = [" ".join([*who, *doing[:count]]) for count in range(1, len(doing) + 1)]
            yield Hit(Span(start, sentence.end), 0.6, None, sentence, tuple(names))


def _legal_places(text: str) -> list[int]:
    return [match.start() for match in _LEGAL_WORD.finditer(text)]


def _is_legal(legal: list[int], place: int) -> bool:
    """Whether the text around ``place`` reads like a contract, a statute or a specification."""
    low, high = place - _NEAR_CHARACTERS, place + _NEAR_CHARACTERS
    return bisect.bisect_left(legal, high) - bisect.bisect_left(legal, low) >= _LEGAL_WORDS_NEAR


def _is_content(word: str) -> bool:
    return word.casefold() not in STOP_WORDS
