"""What contracts, statutes and specifications define: terms with what they mean, and names given in brackets."""

import re
from collections.abc import Iterator
from itertools import zip_longest

from retrieval.hits import Hit, Survey
from retrieval.passage import FactKind, Span
from retrieval.sentences import MAX_EVIDENCE_CHARACTERS, trim

_MAX_TERM = 60
_NAMED_IN_BRACKETS = re.compile(
    r"\((?:(?:the|an?|each|together|collectively|individually|hereinafter|hereafter|referred|called|to|as|and|or|,)"
    rf"[ ,]{{1,2}}){{0,8}}[\"“](?P<first>[A-Z][^\"”\n]{{2,{_MAX_TERM}}})[\"”]"
    rf"(?: or [\"“](?P<second>[^\"”\n]{{2,{_MAX_TERM}}})[\"”])?\)"
)
_MEANS = re.compile(
    rf"[\"“](?P<term>[^\"”\n]{{2,{_MAX_TERM}}})[\"”]\s+(?:(?:shall|will)\s)?"
    r"(?:means?|denotes?|refers?\sto|has\sthe\smeaning|have\sthe\smeanings?|is\sdefined\sas|designates)\b:?\s+"
)
_BOUND = re.compile(
    r"(?<![\w’'-])(?P<who>[A-Z][\w’'-]{0,40}(?: [A-Z][\w’'-]{0,40}){0,4}) "
    r"(?:shall|must|agrees?|undertakes?|warrants?)\b"
)
_ASKED = re.compile(r"\b(?:does|do|did|what|would|could|might)\b[^.;\n]{0,60}\Z", re.IGNORECASE)
# Where what is named may begin: a party after "between", after another name in brackets, in an enumeration.
_BORDER = re.compile(
    r"\b(?:[Bb]etween|BETWEEN|[Aa]mong|AMONG)\s+(?:and\s+)?|[;:]\s+(?:and\s)?|\(\w{1,4}\)\s|(?<=\s)\w\)\s|[)”\"],?\s+(?:and|or)\s|,\s+and\s"
)
_LEADING = re.compile(r"[\s,;).]*(?:(?:and|or|between|by|with|is|are|that|which)\s+)*")
_DETERMINER = re.compile(
    r"\b(?:the|an?|any|all|each|every|such|certain|its|their|his|her|this|these|those|that)\b", re.IGNORECASE
)
_ATTACHED = re.compile(r"\b(?:of|in|on|at|for|to|under|by|with|from|as|and|or)\s+\Z")
_INTRODUCES = re.compile(
    r",?\s*(?:\b(?:and|but|while|whereas|or)\s+)?(?:\bthe\s+)?(?:\b(?:term|word|prefix|suffix|name|phrase|expression)s?\s+)?\Z"
)
_QUOTE_ENDS = re.compile(r"[.!?][\"”]\)?(?=\s+[A-Z])")
_AS_OF = re.compile(r"\b(?:as\sof|dated|on)\s(?:the\s)?")
_CAPITALISED_BEFORE = re.compile(r"(?:[A-Z][\w.&'’-]*,?\s+(?:(?:of|and|&|the)\s+)?){1,8}\Z")
_WORD = re.compile(r"[^\W_][\w'’-]*")
_SMALL_WORD = re.compile(r"\b[a-z][\w'’-]{3,}")
_NEAR_CHARACTERS = 320
_GLOSS = re.compile(r"\"[^\"\n]{1,120}\"|“[^”\n]{1,120}”")
_BRACKET = re.compile(r"[()]")
_MAX_TITLE_WORDS = 7
_MAX_ACRONYM = 7
_WORDY = re.compile(r"[^\W\d_]{2}")


class TermRecogniser:
    """``"Term" means ...``: the definition under the term; ``... (the "Supplier")``: who or what is called so."""

    name = "term"
    kind = FactKind.TERM

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits whose key is the term."""
        text = survey.text
        yield from self._definitions(survey)
        low = 0
        titled = [match for match in _NAMED_IN_BRACKETS.finditer(text) if _is_title(match["first"])]
        brackets = [(match, survey.sentences.around(Span(*match.span())).start) for match in titled]
        # The shortest of contracts still says what one of its parties shall do.
        bound = _bound_terms(text) if brackets else set()
        parties = {sentence for match, sentence in brackets if match["first"] in bound}
        for match, sentence in brackets:
            # Elsewhere such a bracket translates, or names a work.
            if not survey.register.is_legal(match.start()) and sentence not in parties:
                continue
            found = _named(text, survey, low, match.start(), match["first"])
            if found is None:
                continue
            named, score = found
            low = match.end()
            evidence = Span(named.start, match.end())
            for group in ("first", "second"):
                if match[group] is not None:
                    yield Hit(named, score, Span(*match.span(group)), evidence)

    def _definitions(self, survey: Survey) -> Iterator[Hit]:
        text = survey.text
        found = list(_MEANS.finditer(text))
        for match, following in zip_longest(found, found[1:]):
            sentence = survey.sentences.around(Span(match.end() - 1, match.end()))
            if text[sentence.end - 1] == "?" or _ASKED.search(text, sentence.start, match.start()):
                continue
            end = min(max(sentence.end, match.end()), match.end() + MAX_EVIDENCE_CHARACTERS)
            # In a list without line ends the next definition begins in the same "sentence".
            end = min(end, following.start()) if following is not None else end
            if following is not None and end == following.start():
                introduced = _INTRODUCES.search(text, match.end(), end)
                end = introduced.start() if introduced else end
            quoted = _QUOTE_ENDS.search(text, match.end(), end)
            value = trim(text, Span(match.end(), _gloss_end(text, match.end(), quoted.end() if quoted else end)))
            if len(value) and text[value.end - 1] in ".;":
                value = Span(value.start, value.end - 1)
            if len(value):
                evidence = Span(min(match.start(), sentence.start), max(value.end, min(sentence.end, end)))
                score = 0.9 if survey.register.is_legal(match.start()) else 0.7
                yield Hit(value, score, Span(*match.span("term")), evidence)


def _gloss_end(text: str, start: int, end: int) -> int:
    """A gloss in quotation marks ends with them, and what stands in brackets with those."""
    gloss = _GLOSS.match(text, start, end)
    if gloss:
        return gloss.end()
    depth = 0
    for bracket in _BRACKET.finditer(text, start, end):
        depth += 1 if bracket[0] == "(" else -1
        if depth < 0:
            return bracket.start()
    return end


def _bound_terms(text: str) -> set[str]:
    """What the text says of that it shall do something: the capitalised words before, and each of their ends."""
    bound: set[str] = set()
    for match in _BOUND.finditer(text):
        words = match["who"].split()
        bound |= {" ".join(words[start:]) for start in range(len(words))}
    return bound


def _is_title(term: str) -> bool:
    """Defined terms have capitals; a quoted title or saying has small words as well, and goes on for longer."""
    return _SMALL_WORD.search(term) is None and len(_WORD.findall(term)) <= _MAX_TITLE_WORDS


def _named(text: str, survey: Survey, after: int, end: int, term: str) -> tuple[Span, float] | None:
    """What stands before a bracket that names it, in the same sentence and after ``after``.

    A noun phrase with the term's last word in it, as far as there is one; else from where a party is introduced; else
    from the article that no preposition joins to what is before it.
    """
    sentence = survey.sentences.around(Span(max(0, end - 1), end))
    first = max(sentence.start, end - _NEAR_CHARACTERS)
    leading = _LEADING.match(text, max(first, after), end)
    low = leading.end() if leading else max(first, after)
    if text[low:end].rstrip()[-1:] in ('"', "”"):
        return None  # another name of what is itself defined: "You" (or "Your")
    start = None
    if len(term) <= _MAX_ACRONYM and term.isupper():
        start = _with_initials(text, low, end, term)
    if term.casefold().endswith("date"):
        start = next((match.end() for match in reversed([*_AS_OF.finditer(text, low, end)])), None)
    if start is None:
        start = _with_word_of(text, low, end, term)
    if start is None and after > first:
        start = _with_word_of(text, first, end, term)
    if start is None:
        borders = [match.end() for match in _BORDER.finditer(text, low, end)]
        # "... (the "Supplier") and Acme Ltd": what is between has a word in it.
        if leading and _WORD.search(text, leading.start(), leading.end()):
            borders.insert(0, low)
        start = next((border for border in reversed(borders) if text[border : border + 1].isupper()), None)
    score = 0.85 if start is not None else 0.5
    if start is None:
        start = _article(text, low, end)
        # Acme Ltd, a company: the name comes before what it is.
        name = _CAPITALISED_BEFORE.search(text, low, start) if text[start - 2 : start].startswith(",") else None
        start, score = (name.start(), 0.85) if name else (start, score)
    value = trim(text, Span(min(start, end), end))
    if len(value) and text[value.end - 1] == ",":
        value = Span(value.start, value.end - 1)
    if len(_WORD.findall(text, value.start, value.end)) == 1 and text[value.start].islower():
        value = trim(text, Span(first, end))
    return (value, score) if _WORDY.search(text, value.start, value.end) else None


def _with_initials(text: str, low: int, end: int, acronym: str) -> int | None:
    """Where the nearest capitalised words begin whose initials the term is made of."""
    initials = ""
    for match in reversed([match for match in _WORD.finditer(text, low, end) if match[0][0].isupper()]):
        initials = match[0][0] + initials
        if initials.startswith(acronym):
            return match.start()
    return None


def _with_word_of(text: str, low: int, end: int, term: str) -> int | None:
    """The start of the noun phrase that has the last word of the term; None if none has."""
    words = _WORD.findall(term)
    if not words:
        return None
    if len(words) > 1:
        phrase = re.compile(r"\s+".join(map(re.escape, words)), re.IGNORECASE)
        if whole := [match.start() for match in phrase.finditer(text, low, end)]:
            return _phrase_start(text, low, whole[-1])
    last = words[-1].casefold()
    stem = last[:-1] if last.endswith("s") and len(last) > 3 else last
    places = [match.start() for match in _WORD.finditer(text, low, end) if _is_form_of(match[0].casefold(), stem)]
    if not places:
        return None
    return _phrase_start(text, low, places[-1])


def _phrase_start(text: str, low: int, place: int) -> int:
    """Where the noun phrase begins that the word at ``place`` stands in."""
    before = _CAPITALISED_BEFORE.search(text, max(low, place - 120), place)
    if before is not None and text[place].isupper():
        place = before.start()
        article = re.search(r"\b[Tt]he\s\Z|\b[Aa]n?\s\Z", text[max(low, place - 4) : place])
        return place - (len(article[0]) if article else 0)
    articles = [match.start() for match in _DETERMINER.finditer(text, max(low, place - 80), place)]
    if articles and not re.search(r"[,;:]", text[articles[-1] : place]):
        return articles[-1]
    return place


def _is_form_of(word: str, stem: str) -> bool:
    return word.startswith(stem) and word[len(stem) :] in ("", "s", "es")


def _article(text: str, low: int, end: int) -> int:
    for match in reversed(list(_DETERMINER.finditer(text, low, end))):
        if _ATTACHED.search(text, max(low, match.start() - 8), match.start()) is None:
            return match.start()
    return low
