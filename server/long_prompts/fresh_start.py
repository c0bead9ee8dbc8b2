"""Answers about a long prompt that start with no memory: what of the conversation stands beside their passages.

What was pasted is not there, only what was found in it; what was said is, the newest first, as far as it fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from server.answers.prompt import Turn
from server.chat.conversation import PartTokenizer
from server.long_prompts.asking import CARRIED_CHARACTERS, Asking, last_paragraph


def fresh_turns(
    tokenizer: PartTokenizer, turns: Sequence[Turn], asking: Asking, question: str, fits: Callable[[list[Turn]], bool]
) -> list[Turn] | None:
    """The turns with ``question``, which has the passages, as what is asked; None where they do not fit.

    Instructions and what came after the question are there in any case. Of what was said before it, the newest turns
    are: of a long one of the user what it asked, of a long answer its end.
    """
    instructions = [turn for turn in turns[: asking.turn] if turn.role == "system"]
    after = list(turns[asking.turn + 1 :])
    asked = replace(turns[asking.turn], content=question)
    if not fits([*instructions, asked, *after]):
        return None
    said = [_shortened(tokenizer, turn) for turn in turns[: asking.turn] if turn.role != "system"]
    # A conversation begins with the user, and a function's result stands after its call.
    starts = [place for place, turn in enumerate(said) if turn.role == "user"]
    kept = next((said[place:] for place in starts if fits([*instructions, *said[place:], asked, *after])), [])
    return [*instructions, *kept, asked, *after]


def _shortened(tokenizer: PartTokenizer, turn: Turn) -> Turn:
    if len(turn.content) <= CARRIED_CHARACTERS:
        return turn
    if turn.role != "user":
        return replace(turn, content=turn.content[-CARRIED_CHARACTERS:])
    return replace(turn, content=turn.content[slice(*last_paragraph(tokenizer, turn.content))])
