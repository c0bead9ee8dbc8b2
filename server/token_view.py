"""Tokens and their log probabilities as clients see them, in each of the shapes that OpenAI and vLLM gave them."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from model.engine.request import TokenLogprob
from server.answers.prompt import ChatTokenizer

# JSON has no infinity; this stands for a token that cannot come, as it does at OpenAI.
LEAST_LOGPROB = -9999.0


class TokenView:
    """How one tokenizer's tokens are told."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """What the token adds to a text, U+FFFD for half a character; the name of a control token."""
        raw = self._tokenizer.token_bytes(token_id)
        return raw.decode("utf-8", "replace") if raw else self._tokenizer.control_token(token_id) or ""

    def name(self, token_id: int) -> str:
        """As ``text``, but half a character is spelled in bytes, as in ``bytes:\\xe2\\x82``: each has its own name."""
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode() if raw else self.text(token_id)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def num_bytes(self, token_id: int) -> int:
        """How many bytes the token adds to a text."""
        return len(self._tokenizer.token_bytes(token_id))

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A token of a chat; ``bytes`` is exact where the text of half a character is U+FFFD, null where there are
        none."""
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": self.text(token_id), "bytes": list(raw) if raw else None, "logprob": least(logprob)}

    def entries(self, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """The tokens of a chat, each with the most probable ones in its place."""
        return [
            self.entry(each.token_id, each.logprob) | {"top_logprobs": [self.entry(*top) for top in each.top]}
            for each in logprobs
        ]

    def ranked(self, said: TokenLogprob | None) -> dict[str, Any] | None:
        """A token of the prompt and the most probable ones in its place by id, as vLLM has them.

        ``rank`` counts from 1, and is null for a token that is not among the most probable ones.
        """
        if said is None:
            return None
        ranks: dict[int, tuple[float, int | None]] = {said.token_id: (said.logprob, None)}
        ranks |= {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(said.top, start=1)}
        return {
            str(token_id): {"logprob": least(logprob), "rank": rank, "decoded_token": self.text(token_id)}
            for token_id, (logprob, rank) in ranks.items()
        }


class TokenLines:
    """The four parallel lists of OpenAI's older completions, for the tokens of one text from its beginning on.

    ``offset`` is where in the text the next token begins; ``strips_space`` that the text has not the space which its
    first token begins with.
    """

    def __init__(self, tokenizer: ChatTokenizer, offset: int = 0, strips_space: bool = False) -> None:
        self._tokenizer = tokenizer
        self._view = TokenView(tokenizer)
        self._offset = offset
        self._strips_space = strips_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, said: Iterable[tuple[int, TokenLogprob | None]], num_top: int) -> dict[str, Any]:
        """The next tokens by id, with what is known of them; nothing is known of the first of a prompt."""
        lines: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, known in said:
            lines["tokens"].append(self._view.name(token_id))
            lines["token_logprobs"].append(None if known is None else least(known.logprob))
            lines["top_logprobs"].append(None if known is None or not num_top else self._top(known))
            lines["text_offset"].append(self._offset)
            self._offset += self._width(token_id)
        return {**lines, "top_logprobs": lines["top_logprobs"] if num_top else None}

    def _top(self, known: TokenLogprob) -> dict[str, float]:
        """The most probable tokens, and the one that was drawn."""
        top = {self._view.name(token_id): least(logprob) for token_id, logprob in known.top}
        return top | {self._view.name(known.token_id): least(known.logprob)}

    def _width(self, token_id: int) -> int:
        """How many characters the token makes whole."""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        if text and self._strips_space:
            self._strips_space = False
            text = text.removeprefix(" ")
        return len(text)


def least(logprob: float) -> float:
    """The log probability as JSON can have it."""
    return max(logprob, LEAST_LOGPROB)
