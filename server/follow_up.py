"""A question that rests on the turns before it, as a query that stands alone.

No model rewrites it. A question without a name or number of its own that has a pronoun, begins with "and" or says
nearly nothing gets the names and numbers of the question and the answer before it, and of those before where that one
rested on others in its turn.
"""

import re
from collections.abc import Sequence

from retrieval.words import STOP_WORDS
from server.prompt import Turn

MAX_CARRIED_CHARACTERS = 300
PRONOUNS = frozenset(
    """it its he his him she her hers they them their theirs this that these those there then one ones latter former
    same other another second third""".split()
)
WORD = re.compile(r"[^\W_](?:[\w'’./&-]*[^\W_])?")
LEADS_IN = re.compile(r"^\W*(?:and|but|also|or|what about|how about|what else|why|so)\b", re.IGNORECASE)
# Names of one or more words, codes, numbers. The first word of a sentence is a name only if another follows it.
ENTITY = re.compile(
    r"[^\W\d_a-z][\w'’.&-]*(?:\s+(?:of|the|de|von|van|and)?\s*[^\W\d_a-z][\w'’&-]*)+|[^\W_][\w./&-]*\d[\w./&-]*|\d[\w.,/:-]*\d|"
    r"(?<=[a-z,;] )[^\W\d_a-z][\w'’&-]+"
)
ASKING = frozenset("who whom whose what which when where why how is are was were do does did can could in on".split())


def follows(turns: Sequence[Turn]) -> bool:
    """Whether the last turn rests on the ones before it."""
    said = turns[-1].content
    if not any(turn.role == "user" for turn in turns[:-1]):
        return False
    words = [word.casefold() for word in WORD.findall(said)]
    content = [word for word in words if word not in STOP_WORDS and word not in PRONOUNS and word not in ASKING]
    has_pronoun = any(word in PRONOUNS for word in words)
    if entities(said):
        return bool(LEADS_IN.match(said)) and len(content) <= 4
    return has_pronoun or bool(LEADS_IN.match(said)) or len(content) <= 1


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
