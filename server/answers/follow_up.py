"""A question that rests on the turns before it, as a query that stands alone.

No model rewrites it. A question that begins with "and", whose pronoun nothing in it can stand for, or that says nearly
nothing gets the names and numbers of the question and the answer before it, and of those before where that one
rested on others in its turn.
"""

import re
from collections.abc import Sequence

from retrieval.words import STOP_WORDS
from server.answers.prompt import Turn

MAX_CARRIED_CHARACTERS = 300
PRONOUNS = frozenset(
    """it its he his him she her hers they them their theirs this that these those there then one ones latter former
    same other another second third""".split()
)
SUBJECTS = frozenset("it he she they".split())
PERSONAL = frozenset("it its he his him she her hers they them their theirs".split())
AUXILIARIES = frozenset(
    "is are was were do does did has have had can could will would should may might must isn't wasn't didn't".split()
)
INTERROGATIVES = frozenset("who whom whose what which when where why how".split())
NUMBERS = frozenset("two three four five six seven eight nine ten".split())
# Words that point back, where they stand so that they cannot be anything else: "is there", "the man that", "this year"
# and "another name for" point at nothing.
POINTS_BACK = re.compile(
    r"\b(?:these(?! days)|this(?! (?:year|month|week|century|day|time)\b)|the (?:former|latter))\b"
    r"|\b(?:which|the|that|this|any|each) (?:ones?|others?|second|third|same)\W*$"
    r"|(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )(?<!\bbe )\bthere\b(?! (?:is|are|was|were|be|been|has|have)\b)"
    r"|\b(?:of|in|at|by|for|about|with|from|to|after|before|during|since|is|was|does|did|do|are|were) (?:that|those)\b"
    r"|\b(?:that|those|then)\W*$",
    re.IGNORECASE,
)
# "How was it determined that", "What is it called when": this one stands for what comes after it.
EMPTY_IT = re.compile(
    r"\bit(?: is| was)? (?:called|known|determined|possible|said|thought|believed|true|necessary)"
    r" (?:when|that|to|how|if)\b",
    re.IGNORECASE,
)
WORD = re.compile(r"[^\W_](?:[\w'’./&-]*[^\W_])?")
LEADS_IN = re.compile(r"^\W*(?:and|but|also|or|what about|how about|what else)\b", re.IGNORECASE)
# Names of one or more words, codes, numbers. The first word of a sentence is a name only if another follows it.
ENTITY = re.compile(
    r"[^\W\d_a-z][\w'’.&-]*(?:\s+(?:of|the|de|von|van|and)?\s*[^\W\d_a-z][\w'’&-]*)+|[^\W_][\w./&-]*\d[\w./&-]*|\d[\w.,/:-]*\d|"
    r"(?<=[a-z,;] )[^\W\d_a-z][\w'’&-]+"
)
# An object is not the subject of its own clause: "which state declined to sign it". Another clause may name it.
LACKS_OBJECT = re.compile(
    r"^\W*(?:(?:in|on|at|by|for|with|from|of|to) )?\w+(?! (?:that|who|which|when|if|because|while|and|or|where|but)\b)"
    r"(?: (?!(?:that|who|whom|which|when|if|because|while|and|or|where|but|it|they)\b)[\w'’-]+)*?"
    r" (?:(?:it|him|her|them)\W*$|(?:of|by|in|on|to|for|about|with|from|under|during|after|before) (?:it|him|them)\b)",
    re.IGNORECASE,
)
ASKING = frozenset("who whom whose what which when where why how is are was were do does did can could in on".split())


def follows(turns: Sequence[Turn]) -> bool:
    """Whether the last turn rests on the ones before it."""
    said = turns[-1].content
    if not any(turn.role == "user" for turn in turns[:-1]):
        return False
    words = [word.casefold() for word in WORD.findall(said)]
    content = [word for word in words if word not in STOP_WORDS and word not in PRONOUNS and word not in ASKING]
    if LEADS_IN.match(said):
        return not entities(said) or len(content) <= 4
    if EMPTY_IT.search(said):
        return False
    if entities(said):
        return _lacks_subject(words)
    if not content or (len(content) == 1 and len(words) <= 3 and AUXILIARIES.isdisjoint(words)):
        return True
    return (
        _lacks_subject(words)
        or _lacks_noun(words)
        or LACKS_OBJECT.search(said) is not None
        or POINTS_BACK.search(said) is not None
    )


def _lacks_subject(words: Sequence[str]) -> bool:
    """Whether what is done or is, is done by a pronoun, with no other clause before it: "which city did she leave"."""
    for place in range(1, len(words)):
        if words[place] in SUBJECTS and words[place - 1] in AUXILIARIES:
            asking = [at for at in range(place) if words[at] in INTERROGATIVES]
            before = words[: asking[-1]] if asking else words[: place - 1]
            return not _content(before)
    return False


def _lacks_noun(words: Sequence[str]) -> bool:
    """Whether a pronoun comes before any noun that it could stand for: "what is the name of his dog"."""
    place = next((at for at, word in enumerate(words) if word in PERSONAL), None)
    if place is None:
        return False
    auxiliary = next((at for at in range(place) if words[at] in AUXILIARIES), None)
    if auxiliary is None:
        return len(_content(words[:place])) <= 1  # "who wrote it": a verb
    if auxiliary == place - 1 and words[place] in SUBJECTS:
        return False  # for _lacks_subject to say
    own = _content(words[auxiliary + 1 : place])
    return not own or (len(own) == 1 and words[place - 1] in ("of", "for", "in", "by", "to", "with", "from"))


def _content(words: Sequence[str]) -> list[str]:
    passing = STOP_WORDS | PRONOUNS | ASKING | AUXILIARIES | NUMBERS
    return [word for word in words if word not in passing]


def standalone_query(turns: Sequence[Turn]) -> str:
    """The last turn, and before it what it needs of the turns before."""
    said = turns[-1].content
    if not follows(turns):
        return said
    carried = _carried(turns[:-1])
    return f"{carried} {said}" if carried else said


def entities(said: str) -> list[str]:
    """Names, codes and numbers, each once, in their order."""
    found: list[str] = []
    for match in ENTITY.finditer(said):
        words = match[0].split()
        while words and words[0].casefold() in ASKING | STOP_WORDS:
            del words[0]
        name = " ".join(words).rstrip(".,:/-")
        if name and name not in found:
            found.append(name)
    return found


def _carried(earlier: Sequence[Turn]) -> str:
    """What the question before was about: its names, else its content words; then those of its answer."""
    asked = max(place for place, turn in enumerate(earlier) if turn.role == "user")
    question = earlier[asked].content
    answers = [turn.content for turn in earlier[asked + 1 :] if turn.role == "assistant"]
    names = entities(question)
    if not names and follows(earlier[: asked + 1]):
        names = [_carried(earlier[:asked])]
    if not names:
        names = [word for word in WORD.findall(question) if word.casefold() not in STOP_WORDS | ASKING]
    for answer in answers:
        names += [name for name in entities(answer) if name not in names]
    return " ".join(names)[:MAX_CARRIED_CHARACTERS]
