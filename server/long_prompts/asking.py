"""What a long prompt asks: the last paragraph of the last turn of the user; what of it is searched for the answer."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.prompt_part import PromptPart
from retrieval.sentences import sentence_spans
from server.answers.prompt import Turn
from server.chat.conversation import PartTokenizer

QUERY_TOKENS = 256
# No 256 tokens are longer in any text that people write; what is longer is looked for in this much of its end.
MOST_CHARACTERS = 8192
# Of an answer, for what a question after it rests on.
CARRIED_CHARACTERS = 2000
MESSAGE_PREFIX = "messages."

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n|\r\n[^\S\r\n]*\r\n|\r[^\S\r]*\r")
_WORD = re.compile(r"(?<!\S)\S")


@dataclass(frozen=True, slots=True)
class Asking:
    """``text`` stands in the content of turn number ``turn`` from ``start`` to ``end``; after it are blanks alone."""

    turn: int
    start: int
    end: int
    text: str


def asking_of(tokenizer: PartTokenizer, turns: Sequence[Turn]) -> Asking | None:
    """What is asked; None where the user's last turn says nothing, or there is none."""
    turn = next((place for place in range(len(turns) - 1, -1, -1) if turns[place].role == "user"), None)
    if turn is None:
        return None
    content = turns[turn].content
    start, end = last_paragraph(tokenizer, content)
    return Asking(turn, start, end, content[start:end]) if start < end else None


def prompt_parts(tokenizer: PartTokenizer, turns: Sequence[Turn], asking: Asking) -> list[PromptPart]:
    """All that was said but for what is asked, each message by the name of its place.

    What an earlier turn asked is a part of its own, as it was when it was asked last, so that what stands before it is
    the same text again; where it only asks it is left out, for it says nothing, and is what a question is most alike.
    """
    parts: list[PromptPart] = []
    for place, turn in enumerate(turns):
        name, content = f"{MESSAGE_PREFIX}{place}", turn.content
        cut = len(content)
        if place == asking.turn:
            cut = asking.start
            content = content[:cut]
        elif turn.role == "user":
            cut, end = last_paragraph(tokenizer, content)
            if _only_asks(content[cut:end]):
                content = content[:cut]
        parts += [PromptPart(name, at, text) for at, text in ((0, content[:cut]), (cut, content[cut:])) if text]
    return parts


def pasted_parts(
    tokenizer: PartTokenizer, turns: Sequence[Turn], asking: Asking, least_instructions: int
) -> list[PromptPart]:
    """What was brought along beside questions, to be searched beside documents: texts of the user before what each turn
    asks, and instructions or results of functions of ``least_instructions`` characters or more. An answer is no source
    of the next one, nor is a question."""
    parts: list[PromptPart] = []
    for place, turn in enumerate(turns):
        cut = 0
        if place == asking.turn:
            cut = asking.start
        elif turn.role == "user":
            cut, _ = last_paragraph(tokenizer, turn.content)
        elif turn.role != "assistant" and len(turn.content) >= least_instructions:
            cut = len(turn.content)
        if text := turn.content[:cut]:
            parts.append(PromptPart(f"{MESSAGE_PREFIX}{place}", 0, text))
    return parts


def recent_turns(tokenizer: PartTokenizer, turns: Sequence[Turn], asking: Asking) -> list[Turn]:
    """The conversation up to what is asked, without what was pasted into it: of each turn what it says at its end."""
    said = [
        Turn(turn.role, content[slice(*last_paragraph(tokenizer, content))] if turn.role == "user" else content)
        for turn in turns[: asking.turn]
        if (content := turn.content[-CARRIED_CHARACTERS:])
    ]
    return [*said, Turn("user", asking.text)]


def recent_asked(tokenizer: PartTokenizer, turns: Sequence[Turn]) -> Sequence[Turn]:
    """The conversation up to its last turn; where that is longer than anything that people ask, up to what it asks."""
    if len(turns[-1].content) <= MOST_CHARACTERS:
        return turns
    asking = asking_of(tokenizer, turns)
    return turns if asking is None else recent_turns(tokenizer, turns, asking)


def is_message(document_id: str) -> bool:
    """Whether this is the name of a message of the prompt, and of no document."""
    return document_id.startswith(MESSAGE_PREFIX)


def message_number(document_id: str) -> int:
    """The place of a message among those of the prompt, by its name."""
    return int(document_id.removeprefix(MESSAGE_PREFIX))


def last_paragraph(tokenizer: PartTokenizer, content: str) -> tuple[int, int]:
    """Where the last paragraph begins and ends; of one of more than ``QUERY_TOKENS`` tokens the last line, of a longer
    line as many whole sentences from its end as fit, of a longer sentence words."""
    end = len(content.rstrip())
    base = max(0, end - MOST_CHARACTERS)
    tail = content[base:end]

    def fits(start: int) -> bool:
        return len(tokenizer.encode_ids(tail[start:])) <= QUERY_TOKENS

    starts = [match.end() for match in _BLANK_LINE.finditer(tail)] or ([] if base else [0])
    line = tail.rfind("\n") + 1
    start = next((start for start in (*starts[-1:], line) if (start or not base) and fits(start)), None)
    if start is None:
        sentences = [line + span.start for span in sentence_spans(tail[line:])]
        words = [match.start() for match in _WORD.finditer(tail, line)]
        start = _first_that_fits(sentences, fits)
        start = _first_that_fits(words, fits) if start is None else start
    if start is None:  # Not every script has blanks, and what has none may still be asked.
        start = _first_that_fits(range(line, len(tail)), fits)
    start = len(tail) if start is None else start
    while start < len(tail) and tail[start].isspace():
        start += 1
    return base + start, end


def _only_asks(text: str) -> bool:
    sentences = [text[span.start : span.end].rstrip() for span in sentence_spans(text)]
    return bool(sentences) and all(sentence.endswith("?") for sentence in sentences)


def _first_that_fits(starts: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The earliest of ascending places from which the rest fits; the later, the better it fits."""
    place = bisect_left(starts, True, key=fits)
    return starts[place] if place < len(starts) else None
