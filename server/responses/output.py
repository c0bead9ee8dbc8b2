"""What a response consists of, item by item as the model writes it, and the events that tell of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from model.engine.request import TokenLogprob
from server.answers.inquiry import AnswerText
from server.chat.tool_calls import CallArguments, CallBegins, CallReader, Piece
from server.responses.items import call_view, new_id
from server.responses.shape import token_views
from server.token_view import TokenView

# A kind of event, and its fields.
Told = tuple[str, dict[str, Any]]


@dataclass(slots=True)
class Message:
    """A text of the model; ``status`` is None while it is written."""

    index: int
    tokens: TokenView
    id: str = field(default_factory=lambda: new_id("msg"))
    status: str | None = None
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        """Where its text stands."""
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def part(self) -> dict[str, Any]:
        """The text with what belongs to it."""
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": list(self.annotations),
            "logprobs": token_views(self.tokens, self.logprobs),
        }

    def view(self, status: str) -> dict[str, Any]:
        """The item; ``status`` for one that is still written."""
        content = [] if status == "in_progress" else [self.part()]
        head = {"id": self.id, "type": "message", "role": "assistant", "status": self.status or status}
        return head | {"content": content}

    def ended(self) -> Iterator[Told]:
        """The events of its end but the last."""
        part = self.part()
        yield "response.output_text.done", {**self.place, "text": self.text, "logprobs": part["logprobs"]}
        yield "response.content_part.done", {**self.place, "part": part}


@dataclass(slots=True)
class Call:
    """A call of a function; ``status`` is None while it is written."""

    index: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: new_id("fc"))
    status: str | None = None
    arguments: str = ""

    @property
    def place(self) -> dict[str, Any]:
        """Where its arguments stand."""
        return {"item_id": self.id, "output_index": self.index}

    def view(self, status: str) -> dict[str, Any]:
        """The item; ``status`` for one that is still written."""
        return call_view(self.id, self.call_id, self.name, self.arguments, self.status or status)

    def ended(self) -> Iterator[Told]:
        """The events of its end but the last."""
        told = {**self.place, "name": self.name, "arguments": self.arguments}
        yield "response.function_call_arguments.done", told


class Output:
    """The items that the model writes. Each method gives the events of what it takes in."""

    def __init__(self, first_index: int, tokens: TokenView, has_functions: bool) -> None:
        self._first_index = first_index
        self._tokens = tokens
        self._reader = CallReader() if has_functions else None
        self._items: list[Message | Call] = []
        # Tokens that no item has yet; how long the text before them is, and how long the text that was told.
        self._logprobs: list[TokenLogprob] = []
        self._token_bytes = 0
        self._text_bytes = 0

    def begin(self) -> Iterator[Told]:
        """Before anything is written: a message, where there can be nothing else."""
        if self._reader is None:
            yield from self._open(Message(self._next_index, self._tokens))

    def add(self, text: AnswerText) -> Iterator[Told]:
        """A piece of what the model writes."""
        self._logprobs += text.logprobs
        yield from self._take([text.text] if self._reader is None else self._reader.push(text.text))

    def cite(self, annotation: dict[str, Any]) -> Iterator[Told]:
        """A citation in the message that is written."""
        message = self._message()
        at = len(message.annotations)
        message.annotations.append(annotation)
        told = {**message.place, "annotation_index": at, "annotation": annotation}
        yield "response.output_text.annotation.added", told

    def end(self, status: str) -> Iterator[Told]:
        """After the last piece: what was held back, and the end of the last item, which has this status."""
        if self._reader is not None:
            yield from self._take(self._reader.push("", is_last=True))
        if not self._items:
            yield from self._open(Message(self._next_index, self._tokens))
        yield from self._close(status)

    def view(self, status: str) -> list[dict[str, Any]]:
        """The items so far; one that is still written has this status."""
        return [item.view(status) for item in self._items]

    @property
    def _next_index(self) -> int:
        return self._first_index + len(self._items)

    def _message(self) -> Message:
        message = self._items[-1]
        assert isinstance(message, Message), "no text is written"
        return message

    def _take(self, pieces: Iterable[Piece]) -> Iterator[Told]:
        for piece in pieces:
            match piece:
                case str():
                    if not self._items or not isinstance(self._items[-1], Message):
                        yield from self._close("completed")
                        yield from self._open(Message(self._next_index, self._tokens))
                    message, logprobs = self._message(), self._tokens_of(piece)
                    message.text += piece
                    message.logprobs += logprobs
                    if piece or logprobs:
                        told = {**message.place, "delta": piece, "logprobs": token_views(self._tokens, logprobs)}
                        yield "response.output_text.delta", told
                case CallBegins():
                    # The tokens of a call are of no text.
                    self._logprobs, self._token_bytes = [], self._text_bytes
                    yield from self._close("completed")
                    yield from self._open(Call(self._next_index, piece.id, piece.name))
                case CallArguments():
                    call = self._items[-1]
                    assert isinstance(call, Call), "arguments of no call"
                    call.arguments += piece.text
                    yield "response.function_call_arguments.delta", {**call.place, "delta": piece.text}

    def _tokens_of(self, piece: str) -> list[TokenLogprob]:
        """The tokens that begin in the piece, which is the next of the text; all there are, where all is text."""
        if self._text_bytes == 0 and self._logprobs and self._tokens.text(self._logprobs[0].token_id)[:1] == " ":
            # Some tokenizers write a space before a text, which the text has not.
            self._token_bytes = 0 if piece.startswith(" ") else -1
        self._text_bytes += len(piece.encode())
        number = 0
        while number < len(self._logprobs) and (self._reader is None or self._token_bytes < self._text_bytes):
            self._token_bytes += self._tokens.num_bytes(self._logprobs[number].token_id)
            number += 1
        taken, self._logprobs = self._logprobs[:number], self._logprobs[number:]
        return taken

    def _open(self, item: Message | Call) -> Iterator[Told]:
        self._items.append(item)
        yield "response.output_item.added", {"output_index": item.index, "item": item.view("in_progress")}
        if isinstance(item, Message):
            yield "response.content_part.added", {**item.place, "part": item.part()}

    def _close(self, status: str) -> Iterator[Told]:
        if self._items and (item := self._items[-1]).status is None:
            item.status = status
            yield from item.ended()
            yield "response.output_item.done", {"output_index": item.index, "item": item.view(status)}
