"""What somebody shall, must or may not do, by grammar: a subject that can owe, a word of duty, a verb of doing.

The same words also say what is inferred ("must have been"), what comes about ("shall survive", "shall be deemed"), what
somebody may claim ("shall be entitled to") and, in older prose, what is to come ("we shall see"). Only the first are
duties. How likely one is, the score says: parties of a contract that shall do something first, passives and single
words of weaker texts last.
"""

import re
from collections.abc import Iterator

from retrieval.hits import Hit, Survey
from retrieval.passage import FactKind, Span
from retrieval.register import ENOUGH
from retrieval.words import STOP_WORDS

_DUTY = re.compile(
    r"(?P<modal>shall|must|MUST|SHALL|(?:may|will|can)\snot|MAY\sNOT|will(?=\s(?!be\b))|"
    r"(?:is|are)\s(?:required|obliged|obligated|bound)\sto|"
    r"(?:agrees?|undertakes?|covenants?)\s(?:not\s)?to)\b"
)
_NOT_DOING = re.compile(
    r"(?:,[^,]{0,60},)?\s(?:(?:not|also|only|still|neither|either|always|so|and\smay|hereafter|thereafter|immediately|automatically|further|in\sno\sevent|at\sall\stimes)\s)*"
    r"(?:be\s(?:(?:automatically|otherwise|conclusively|fully|further|further|jointly|solely|null|presumptively)\s)*"
    r"(?:required|obliged|obligated|deemed|construed|considered|interpreted|entitled|governed|effective|valid|void|binding|enforceable|sufficient|"
    r"applicable|subject|liable|regarded|treated|understood|read|cumulative|severable|permitted|allowed|eligible|free|"
    r"able|available|limited|affected|precluded|prejudiced|impaired|invalid|without|in\s(?:full\s)?force|as\s(?:set|follows)|"
    r"unreasonably|equal|the\s|an?\s(?:waiver|breach|default))|"
    r"become|remain(?!\s(?:responsible|silent))|stay\sin|bear\sinterest|incorporate|suffer|incur|receive|benefit|own|retain|survive|supersede|prevail|constitute|mean|refer|have|inure|apply|terminate|commence|expire|"
    r"includes?|consist|lapse|exist|accrue|control|begin|continue|end|vest|arise|cease|occur|come|follow|"
    r"affect|limit|invalidate|prevent|prejudice|relieve|operate|extend|take\seffect|take\splace|result|entitle|seem|suffice|"
    r"need|want|know|see|find|like|think)\b"
)
# "Agrees to the terms" names no deed; "in no event shall X be required" frees from one.
_NO_DEED = re.compile(r"\s(?:the|an?|all|any|this|that|these|those|such|its|their|his|her|be\sbound|each)\b")
_FREED = re.compile(
    r"\s[\w'’]+(?:\s[\w'’]+){0,5}\s(?:be\s(?:required|obliged|obligated|liable|entitled|deemed)|have\sany)\b"
)
_CONDITION = re.compile(r"\b(?:if|event|unless|until|once|when|whether|extent)\b[^.;:]{0,50}\Z", re.IGNORECASE)
_BEFORE_AGREEING = re.compile(r"\b(?:would|could|might|may|to|will|did|had|has|have|not)\s\Z", re.IGNORECASE)
_STANDING = re.compile(
    r"\s(?:\w+ly\s)?(?:not\s)?be\s(?:\w+ly\s)?(?:responsible|in\scharge|accountable|bound|present|at\sleast|at\smost)\b"
)
_NOT_RESPONSIBLE = re.compile(r"\snot\sbe\s(?:responsible|bound|accountable)\b")
_QUOTED = "\"'“”’`"
_QUOTE_AFTER = re.compile(f"(?: NOT)?[{_QUOTED}]")
# What a text brings about is no deed.
_TEXTS = frozenset(
    """agreement agreements amendment article clause contract exhibit license licence provision provisions schedule
    section terms waiver warranty warranties obligation obligations rights title""".split()
)
_INFERRED = re.compile(r"\s(?:\w+ly\s)?(?:have\s(?:been|had|\w+ed)\b|surely\b|seem\b|appear\b|mean\b)")
_PASSIVE = re.compile(r"\s(?:(?:not|also|only|then|first|always|\w+ly)\s)*be\s(?:\w+ly\s)?(?P<done>\w+)")
_PARTICIPLE = re.compile(
    r"(?!un)\w+(?:ed|en|wn|ought|aught)|made|paid|sent|held|kept|put|set|done|met|left|lost|told|sold|built|borne|read|"
    r"shut|cut|found|begun|drawn"
)
_BE = re.compile(r"\s(?:not\s)?be\b")
_ROLES = frozenset(
    """
    agent applicant assignee auditor author authority authorities bank board borrower buyer candidate carrier
    client clients company consultant contractor contractors controller corporation council court courts customer
    customers debtor director directors distributor employee employees employer employers franchisee franchisor
    government guarantor holder holders insurer landlord lender lenders lessee lessor licensee licensees licensor
    manager manufacturer manufacturers member members minister officer officers operator operators owner owners
    participant participants parties party person persons president processor provider purchaser recipient
    registrar representative representatives secretary seller sellers senate shareholder shareholders state states
    student students subcontractor subcontractors supplier suppliers tenant tenants trustee trustees user users vendor
    vendors you congress commission committee publisher institution bidder winner winners
    implementation implementations client server servers tool tools backend backends frontend frontends installer
    installers
    """.split()
)
_NO_SUBJECT = frozenset(
    """i we thou ye he she they it one who which that this these those there what nothing none neither nor here
    everything something all""".split()
)
_CONTENT = re.compile(r"[^\W_][\w'’-]*")
_NUMBERING = re.compile(
    r"\s*(?:[-*•]\s+)?(?:(?:Section|Article|Clause)\s)?(?:\(?(?:\d{1,3}(?:\.\d{1,3})*|[a-z]{1,2}|[ivx]{1,5}|[A-Z])[.):]?\)?\s+(?=[A-Z(\"“]))+"
)
_CLAUSE_START = re.compile(
    r"(?:[;:]\s|,\s(?:and|but|or|then|which|who)\s|\)\s(?=[A-Z])|\bthat\s(?=[a-z]*\s?[A-Z])|[.]\s+(?=[A-Z]))"
)
_SUBORDINATE = re.compile(
    r"\b(?:if|when|where|unless|until|after|before|because|although|while|whether|as|than)\b", re.IGNORECASE
)
_MAX_SUBJECT_WORDS = 14
_MIN_SCORE = 0.35
_THICK = 6.0
_VERY_THICK = 8.0


class ObligationRecogniser:
    """Clauses that say what somebody shall, must or may not do, where the text around is that of a contract, a
    statute or a specification."""

    name = "obligation"
    kind = FactKind.OBLIGATION

    def find(self, survey: Survey) -> Iterator[Hit]:
        """The clause of each, whose keys are its subject with one to three words of what is to be done."""
        text = survey.text
        duties = [match for match in _DUTY.finditer(text) if not text[match.start() - 1 : match.start()].isalnum()]
        if not duties:
            return
        register = survey.register
        last_end = 0
        for match in duties:
            if match.start() < last_end:
                continue
            weight = register.weight(match.start())
            if weight < ENOUGH:
                continue
            sentence = survey.sentences.around(Span(*match.span()))
            subject = _subject(text, sentence, match.start())
            if subject is None:
                continue
            start, who = subject
            score = _score(text, match, who, sentence.end, weight)
            if score < _MIN_SCORE:
                continue
            doing = [word for word in _CONTENT.findall(text[match.end() : sentence.end]) if _is_content(word)][:3]
            named = [word for word in who if _is_content(word) and not word.isdigit()][-3:]
            if not doing or not named:
                continue
            last_end = sentence.end
            names = [" ".join([*named, *doing[:count]]) for count in range(1, len(doing) + 1)]
            yield Hit(Span(start, sentence.end), score, None, sentence, tuple(names))


def _subject(text: str, sentence: Span, modal: int) -> tuple[int, list[str]] | None:
    """Where the clause begins and the words of its subject; None if no noun stands there."""
    start = sentence.start
    for border in _CLAUSE_START.finditer(text, sentence.start, modal):
        start = border.end()
    for begin in dict.fromkeys((start, sentence.start)):
        numbering = _NUMBERING.match(text, begin, modal)
        low = numbering.end() if numbering else begin
        # An aside before the subject ends with its last comma.
        comma = text.rfind(", ", low, modal)
        close = text.rfind(",", comma + 1, modal) if comma >= 0 else -1
        words = _CONTENT.findall(text[max(low, comma + 1) : modal])
        if comma >= 0 and (close > comma or not words):
            words = _CONTENT.findall(text[low:modal])
        if words and len(words) <= _MAX_SUBJECT_WORDS and words[-1].casefold() not in _NO_SUBJECT:
            return None if words[0].casefold() == "nothing" else (low, words)
    return None


def _score(text: str, match: re.Match[str], subject: list[str], end: int, weight: float) -> float:
    """0 for what is no duty."""
    modal = match["modal"]
    after = " " + " ".join(text[match.end() : min(end, match.end() + 160)].split())
    if text[match.end() : match.end() + 1] in _QUOTED:
        after = after[1:]
    if _QUOTE_AFTER.match(after) and text[match.start() - 1] in _QUOTED:
        return 0.0
    if _FREED.match(after) or _INFERRED.match(after) or _is_no_deed(modal, after):
        return 0.0
    head = subject[-1]
    # Who stands under a capital is a party, for its name is a defined term or its own.
    owes = any(word.casefold() in _ROLES for word in subject[-4:]) or (head[0].isupper() and _is_content(head))
    if modal.isupper():
        return 0.0 if _NO_DEED.match(after.casefold()) else 0.75
    if head.casefold() in _TEXTS or _is_object(subject):
        return 0.0
    if modal[-2:] != "to" and _NO_DEED.match(after):
        return 0.0  # "shall any author be liable"
    if modal[-2:] == "to" and modal[:2] not in ("is", "ar"):
        if _CONDITION.search(text, max(0, match.start() - 60), match.start()):
            return 0.0
        if _NO_DEED.match(after) or _BEFORE_AGREEING.search(text, max(0, match.start() - 12), match.start()):
            return 0.0
    if modal in ("will", "will not", "can not"):
        # A will is mostly a future: only contracts are full of duties that are written so.
        return 0.5 if owes and weight >= _VERY_THICK and not _BE.match(after) else 0.0
    if modal == "may not":
        return 0.65 if owes or weight >= _VERY_THICK else 0.0
    if _BE.match(after):
        done = _PASSIVE.match(after)
        if _STANDING.match(after):
            return 0.6
        if done is None or _PARTICIPLE.fullmatch(done["done"]) is None:
            return 0.0
        if modal == "must" and weight < _THICK:
            return 0.0
        return 0.6
    if modal == "must" and weight < _THICK:
        return 0.0  # what speakers demand
    return 0.8 if owes else 0.5


def _is_object(subject: list[str]) -> bool:
    """``checks that installers must make``: what stands before the last clause is what is done, not who does it."""
    for place in range(max(1, len(subject) - 4), len(subject) - 1):
        if subject[place].casefold() in ("that", "which", "whom"):
            return subject[place + 1].casefold() not in ("is", "are", "was", "were", "has", "have", "do", "does")
    return False


def _is_no_deed(modal: str, after: str) -> bool:
    """Specifications say in capitals what must be valid as well; where all is in capitals they say nothing."""
    if modal.isupper():
        return after[:12].isupper() and _NOT_DOING.match(after.casefold()) is not None
    return _NOT_DOING.match(after) is not None or _NOT_RESPONSIBLE.match(after) is not None


def _is_content(word: str) -> bool:
    return word.casefold() not in STOP_WORDS
