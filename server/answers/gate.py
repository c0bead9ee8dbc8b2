"""Whether a turn of a chat with documents is searched for: not thanks, not what is about the conversation itself.

In doubt it is: a search takes milliseconds, and an answer from nothing is worth less than none. The rules are of words;
their words are English, so a turn in another language is searched for. Of a turn of which they say nothing the model
may be asked: see ``server.answers.doubt``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from retrieval.keys import query_keys
from retrieval.words import STOP_WORDS
from server.answers.follow_up import follows, standalone_query
from server.answers.prompt import Turn


class Reason(StrEnum):
    """Why documents were searched, or not: the labels of ``fano_retrieval_total``.

    ``KEY_HIT``: a key of the question stands in the documents. ``DOCUMENT_REFERENCE``: the turn speaks of the document.
    ``FOLLOW_UP``: it rests on turns before it. ``QUESTION``: it asks. ``UNCLEAR``: nothing says that it does not ask.
    ``UNCERTAIN``: nothing does, and the model would not know. ``SMALL_TALK`` and ``CONVERSATION`` (about what was said)
    are skipped, and what the model is ``CERTAIN`` of without documents, and where there are ``NO_DOCUMENTS``.
    ``LONG_PROMPT``: the prompt is longer than the window, and was searched itself.
    """

    KEY_HIT = "key_hit"
    DOCUMENT_REFERENCE = "document_reference"
    FOLLOW_UP = "follow_up"
    QUESTION = "question"
    UNCLEAR = "unclear"
    UNCERTAIN = "uncertain"
    SMALL_TALK = "small_talk"
    CONVERSATION = "conversation"
    CERTAIN = "certain"
    NO_DOCUMENTS = "no_documents"
    LONG_PROMPT = "long_prompt"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to search and why; ``query`` is the question as it stands without the turns before it."""

    is_searched: bool
    reason: Reason
    query: str


WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SMALL_TALK = frozenset(
    """hi hello hey thanks thank thx cheers ok okay yes no yep nope sure great good nice perfect cool fine wonderful
    excellent bye goodbye morning evening afternoon welcome lol haha please sorry understood got right alright well
    awesome super much lot lots very so really that's it's that helpful help""".split()
)
REFERENCE = re.compile(
    r"\b(?:documents?|contract|agreement|manual|transcript|report|paper|article|file|attachment|text|book|policy|"
    r"(?:section|clause|page|chapter|paragraph|appendix|annex|article|table|figure)\s+\d|according to|passages?)\b",
    re.IGNORECASE,
)
# Of what was said: "shorten that", "repeat your last answer", "say it in one sentence", "what did I ask?".
ABOUT_SAID = re.compile(
    r"^\W*(?:(?:can|could|would|will) you |please |now |and )*"
    r"(?:(?:shorten|rephrase|reword|repeat|simplify|translate|summari[sz]e|rewrite|paraphrase|say|put|write|format|make|"
    r"expand|elaborate)\b.{0,20}\b(?:that|this|it|your (?:last |previous )?(?:answer|reply|response))\b"
    r"|what (?:did|was|were) (?:i|you|my|your)\b.{0,40}\b(?:ask|say|said|asked|question|answer|reply)\w*"
    r"|(?:go on|continue|stop)\W*$)",
    re.IGNORECASE,
)
ASKS = re.compile(
    r"\?|^\W*(?:who|whom|whose|what|which|when|where|why|how|is|are|was|were|do|does|did|has|have|can|could|should|"
    r"list|name|find|tell|give|show|quote|explain|describe)\b",
    re.IGNORECASE,
)


def decide(turns: Sequence[Turn]) -> Decision:
    """What to do with the last turn. That a key leads somewhere is known only after the search."""
    said = turns[-1].content
    query = standalone_query(turns)
    if is_small_talk(said):
        return Decision(False, Reason.SMALL_TALK, query)
    has_code = any(any(char.isdigit() for char in key.raw) for key in query_keys(said))
    has_earlier_answer = any(turn.role == "assistant" for turn in turns[:-1])
    if has_earlier_answer and not has_code and ABOUT_SAID.search(said) and not REFERENCE.search(said):
        return Decision(False, Reason.CONVERSATION, query)
    return Decision(True, reason_to_search(turns), query)


def reason_to_search(turns: Sequence[Turn]) -> Reason:
    """The reason by the words of a turn that is searched for."""
    said = turns[-1].content
    if REFERENCE.search(said):
        return Reason.DOCUMENT_REFERENCE
    if follows(turns):
        return Reason.FOLLOW_UP
    return Reason.QUESTION if ASKS.search(said) else Reason.UNCLEAR


def is_small_talk(said: str) -> bool:
    """Whether there are only words of greeting, thanks and assent, at least one of them none of the commonest."""
    words = [word.casefold() for word in WORD.findall(said)]
    if any(word not in SMALL_TALK and word not in STOP_WORDS for word in words):
        return False
    return "?" not in said and any(word in SMALL_TALK for word in words)
