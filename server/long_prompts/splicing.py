"""A prompt with passages put into it that keeps the token ids of all that stands before them."""

from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from server.answers.prompt import ChatTokenizer
from server.chat.conversation import Conversation, PartTokenizer

# A border is looked for so far before the place at which something was put in.
MOST_CHARACTERS = 4096


def spliced(
    tokenizer: ChatTokenizer,
    conversation: Conversation,
    messages: Sequence[Mapping[str, object]],
    changed: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]] = (),
) -> "tuple[array[int], int]":
    """The ids of ``changed``, and how many of them, up to shortly before the change, are those of ``conversation``.

    ``conversation`` is what ``messages`` came to, without anything before them; ``changed`` are the same but for what
    one of them says. A text is cut at a blank between two words, where every tokenizer of words begins a token, and
    only what comes after it is encoded anew. Where that does not hold all of the changed text is.
    """
    before, after = (_written(tokenizer, each, tools) for each in (messages, changed))
    place = next(place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    old, new = before[place], after[place]
    assert isinstance(old, str) and isinstance(new, str), "a message says something else, no more"
    start = conversation.parts[place - 1].end if place else 0
    end = conversation.parts[place].end
    cut = _last_blank(old, _num_common(old, new))
    if cut is not None:
        first = cut + 1 if tokenizer.adds_leading_space else cut
        rest = array("i", tokenizer.encode_ids(old[first:]))
        num_kept = end - len(rest)
        if num_kept >= start and conversation.ids[num_kept:end] == rest:
            ids = conversation.ids[:num_kept]
            ids.extend(tokenizer.encode_ids(new[first:]))
            return _with_parts(tokenizer, ids, after[place + 1 :]), num_kept
    ids = conversation.ids[:start]
    ids.extend(tokenizer.encode_ids(new))
    ids = _with_parts(tokenizer, ids, after[place + 1 :])
    return ids, _num_same(conversation.ids, ids)


def _written(
    tokenizer: PartTokenizer, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]
) -> Sequence[int | str]:
    return tokenizer.chat_parts(messages, tools=tools) if tools else tokenizer.chat_parts(messages)


def _with_parts(tokenizer: PartTokenizer, ids: "array[int]", parts: Sequence[int | str]) -> "array[int]":
    for part in parts:
        ids.extend([part] if isinstance(part, int) else tokenizer.encode_ids(part))
    return ids


def _num_common(one: str, other: str) -> int:
    """How many characters the texts begin alike with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least


def _last_blank(text: str, end: int) -> int | None:
    """The last blank before ``end`` between two characters that are none; None where there is none nearby."""
    place = end - 1
    least = max(1, end - MOST_CHARACTERS)
    while place >= least:
        place = text.rfind(" ", least, place)
        if place < 0:
            return None
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
    return None


def _num_same(one: "array[int]", other: "array[int]") -> int:
    """How many ids both begin with."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(np.frombuffer(one, np.intc, length) != np.frombuffer(other, np.intc, length))
    return int(differs[0]) if len(differs) else length
