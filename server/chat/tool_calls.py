"""Calls of functions in what a model writes: ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``.

The form of Hermes and Qwen, whose chat templates write and teach it. A grammar keeps the model to it once a call has
begun, so what is read here is whole, unless the answer was cut.
"""

import re
import secrets
from dataclasses import dataclass

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*"arguments"\s*:\s*')


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A call of the function ``name``, the ``index``-th of the reply."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of its arguments, JSON text."""

    index: int
    text: str


Piece = str | CallBegins | CallArguments


class CallReader:
    """Takes a reply's text apart as it comes: text before any call, and calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._state = "text"
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str, is_last: bool = False) -> list[Piece]:
        """What became certain with this piece; the last brings what was held back."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        if is_last and self._state == "text" and self._held:
            pieces.append(self._held)
            self._held = ""
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """Take one part off what is held; whether there may be another."""
        if self._state == "text":
            before, opening, rest = self._held.partition(OPENING)
            if opening:
                # White space between text and call belongs to neither.
                if before.strip():
                    pieces.append(before.rstrip())
                self._held, self._state = rest, "head"
                return True
            keep = _held_back(before)
            shown = before[: len(before) - keep]
            if shown:
                pieces.append(shown)
            self._held = before[len(shown) :]
            return False
        if self._state == "head":
            head = HEAD.match(self._held)
            if head is None or head.end() == len(self._held):
                return False
            pieces.append(CallBegins(self.num_calls, f"call_{secrets.token_urlsafe(18)}", head[1]))
            self._held, self._state = self._held[head.end() :], "arguments"
            self._depth, self._in_string, self._escaped = 0, False, False
            return True
        if self._state == "arguments":
            end = self._end_of_arguments()
            if end:
                pieces.append(CallArguments(self.num_calls, self._held[:end]))
            self._held = self._held[end:]
            if self._state == "arguments":
                return False
            self.num_calls += 1
            return True
        _, closing, rest = self._held.partition(CLOSING)
        if closing:
            self._held, self._state = rest, "text"
        return bool(closing)

    def _end_of_arguments(self) -> int:
        """How much of what is held belongs to the arguments, which are an object."""
        for place, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._state = "tail"
                    return place + 1
        return len(self._held)


def _held_back(text: str) -> int:
    """How many characters at the end may turn out to belong to a call: a beginning of its mark, white space before."""
    most = max((n for n in range(1, len(OPENING)) if text.endswith(OPENING[:n])), default=0)
    before = text[: len(text) - most]
    return most + len(before) - len(before.rstrip())
