"""Token ids of a whole conversation, of which a session has had most before.

Byte-pair encoding is not canonical: a model writes the same text with other tokens than the tokenizer would choose. So
what a session has read or written keeps its ids for as long as its text is the same. A history therefore remembers
the parts that the chat template made: control tokens, and a digest of each text between them. Of a conversation that
goes on, only the new parts are encoded.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

DIGEST_BYTES = 16


class PartTokenizer(Protocol):
    """What conversations need of ``model.tokenizer.Tokenizer``."""

    bos_id: int | None
    eos_ids: frozenset[int]

    def chat_parts(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> Sequence[int | str]:
        """Control tokens and the texts between them, ready for the assistant's turn if that is wanted."""

    def encode_ids(self, text: str) -> list[int]:
        """Ids of a text. Raises ``InvalidRequest`` for half a surrogate pair."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids."""

    def control_token(self, token_id: int) -> str | None:
        """The name of a control token; None for any other."""


@dataclass(frozen=True, slots=True)
class Part:
    """A control token by its id, or a text by its digest; ``end`` is the number of tokens up to its end."""

    key: int | bytes
    end: int


@dataclass(frozen=True, slots=True)
class History:
    """What a session has read and written. The first ``prelude_tokens`` are a document, before the conversation."""

    ids: "array[int]"
    parts: tuple[Part, ...] = ()
    prelude_tokens: int = 0

    @staticmethod
    def of_ids(tokenizer: PartTokenizer, ids: "array[int]", prelude_tokens: int = 0) -> "History":
        """The history that was stored as ``ids``. Decodes all of it."""
        parts: list[Part] = []
        start = prelude_tokens
        for place in range(prelude_tokens, len(ids)):
            if tokenizer.control_token(ids[place]) is not None:
                if start < place:
                    parts.append(Part(digest(tokenizer.decode(ids[start:place])), place))
                parts.append(Part(ids[place], place + 1))
                start = place + 1
        if start < len(ids):
            parts.append(Part(digest(tokenizer.decode(ids[start:])), len(ids)))
        return History(ids, tuple(parts), prelude_tokens)

    def until(self, num_tokens: int) -> "History":
        """The history as it was after ``num_tokens``; a text that ends later is forgotten as a text."""
        parts = tuple(part for part in self.parts if part.end <= num_tokens)
        return History(self.ids[:num_tokens], parts, min(self.prelude_tokens, num_tokens))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt. ``num_kept`` of its tokens are the history's; ``borders`` are numbers of tokens at which messages end.

    ``open_text`` is the text at the end, which an answer goes on with; empty after a control token.
    """

    ids: "array[int]"
    parts: tuple[Part, ...]
    num_kept: int
    borders: tuple[int, ...]
    open_text: str
    prelude_tokens: int

    def answered(self, tokenizer: PartTokenizer, drawn_ids: Sequence[int]) -> History:
        """The history once the model has added ``drawn_ids``, the token that ended its turn included."""
        said = list(drawn_ids)
        ending = [said.pop()] if said and said[-1] in tokenizer.eos_ids else []
        ids = self.ids + array("i", said)
        parts = list(self.parts)
        if said:
            if self.open_text:
                parts.pop()
            parts.append(Part(digest(self.open_text + tokenizer.decode(said)), len(ids)))
        if ending:
            ids.extend(ending)
            parts.append(Part(ending[0], len(ids)))
        return History(ids, tuple(parts), self.prelude_tokens)


def converse(
    tokenizer: PartTokenizer,
    messages: Sequence[Mapping[str, object]],
    history: History | None = None,
    tools: Sequence[Mapping[str, object]] = (),
) -> Conversation:
    """The conversation as a prompt; up to the first part that differs, with the ids of ``history``.

    Beside comparing texts, the work is that of encoding what is new. Raises what ``chat_parts`` and ``encode`` raise.
    """
    known = history or History(array("i"))
    written = list(tokenizer.chat_parts(messages, tools=tools) if tools else tokenizer.chat_parts(messages))
    if known.prelude_tokens and written and written[0] == tokenizer.bos_id and known.ids[0] == tokenizer.bos_id:
        del written[0]  # A text begins once.
    keys = [part if isinstance(part, int) else digest(part) for part in written]
    num_equal = 0
    for key, part in zip(keys, known.parts, strict=False):
        if key != part.key:
            break
        num_equal += 1
    parts = list(known.parts[:num_equal])
    num_kept = parts[-1].end if parts else known.prelude_tokens
    ids = known.ids[:num_kept]
    for key, text in zip(keys[num_equal:], written[num_equal:], strict=True):
        ids.extend([text] if isinstance(text, int) else tokenizer.encode_ids(text))
        parts.append(Part(key, len(ids)))
    borders = tuple(part.end for part in parts if part.key in tokenizer.eos_ids)
    if known.prelude_tokens:
        borders = (known.prelude_tokens, *borders)
    last = written[-1] if written else 0
    return Conversation(
        ids, tuple(parts), num_kept, borders, last if isinstance(last, str) else "", known.prelude_tokens
    )


def digest(text: str) -> bytes:
    """What stands for a text, so that a history need not hold it a second time."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
