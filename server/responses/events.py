"""An answer as the events of a response, in OpenAI's order, numbered from 0."""

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from model.engine.request import FinishReason
from server.answers.citations import Citation
from server.answers.inquiry import AnswerDone, AnswerProgress, AnswerText
from server.answers.prompt import ChatTokenizer
from server.answers.replies import Answer
from server.error_table import envelope, row_of
from server.rendering import progress_view
from server.responses.errors import ResponseNotStored
from server.responses.output import Output, Told
from server.responses.shape import FileSearch, ResponseShape, included
from server.token_view import TokenView

logger = logging.getLogger(__name__)

Event = dict[str, Any]


class ResponseEvents:
    """The events of one response: those of its search, of what the model writes, and the end.

    ``keep`` gets the whole response, with all that could be included, before its end is told. After an exception of
    ``events``, ``failed`` is the last event.
    """

    def __init__(
        self,
        shape: ResponseShape,
        answer: Answer,
        search: FileSearch,
        include: Sequence[str],
        tokenizer: ChatTokenizer,
        keep: Callable[[dict[str, Any]], Awaitable[None]],
        has_functions: bool = False,
    ) -> None:
        self._shape = shape
        self._answer = answer
        self._search = search
        self._include = include
        self._keep = keep
        self._number = 0
        self._written = Output(1 if search.is_used else 0, TokenView(tokenizer), has_functions)

    @property
    def response_id(self) -> str:
        """The id of the response."""
        return self._shape.id

    def opening(self) -> dict[str, Any]:
        """The response before anything is in it."""
        return self._shape.view("in_progress", [])

    async def events(self) -> AsyncIterator[Event]:
        """From ``response.created`` to ``response.completed`` or ``response.incomplete``.

        Raises what ended the answer, and what keeping the response raises.
        """
        yield self._event("response.created", response=self.opening())
        yield self._event("response.in_progress", response=self.opening())
        if self._search.is_used:
            for event in self._searching():
                yield event
        for event in self._told(self._written.begin()):
            yield event
        done: AnswerDone | None = None
        async for each in self._answer.events():
            told: Iterable[Told] = ()
            match each:
                case AnswerProgress():
                    # OpenAI has no event for it, and its clients keep fields that they do not know.
                    yield self._event(
                        "response.in_progress", response=self.opening(), prompt_progress=progress_view(each)
                    )
                case AnswerText():
                    told = self._written.add(each)
                case Citation():
                    told = self._written.cite(self._search.annotation(each, self._answer.sources))
                case AnswerDone():
                    done = each
            for event in self._told(told):
                yield event
        assert done is not None, "an answer ends with AnswerDone or an error"
        status = "incomplete" if done.finish_reason is FinishReason.LENGTH else "completed"
        completed_at = int(time.time()) if status == "completed" else None
        closing = list(self._written.end(status))
        response = self._shape.view(status, self._output(status), self._shape.usage(done), completed_at=completed_at)
        await self._keep(response)
        for event in self._told(closing):
            yield event
        yield self._event(f"response.{status}", response=included(response, self._include))

    async def failed(self, error: Exception) -> Event:
        """The last event after ``error``; what was said so far is kept with it."""
        row, told = row_of(error), envelope(error)["error"]
        shown = {
            "code": "rate_limit_exceeded" if row.status == 429 else "server_error",
            "message": told["message"],
            "param": told["param"],
            "type": told["code"],
        }
        response = self._shape.view("failed", self._output("incomplete") if self._number > 2 else [], error=shown)
        if not isinstance(error, ResponseNotStored):
            try:
                await self._keep(response)
            except (OSError, sqlite3.Error, ResponseNotStored):
                # The client is told of the first failure all the same.
                logger.exception("a failed response was not stored")
        return self._event("response.failed", response=included(response, self._include))

    async def cancelled(self) -> Event:
        """The last event of a response that somebody cancelled; what was said so far is kept."""
        response = self._shape.view("cancelled", self._output("incomplete") if self._number > 2 else [])
        try:
            await self._keep(response)
        except (OSError, sqlite3.Error, ResponseNotStored):
            # The next start of the server says that it failed.
            logger.exception("a cancelled response was not stored")
        return self._event("response.incomplete", response=included(response, self._include))

    def _searching(self) -> list[Event]:
        """The search was done before anything could be told."""
        place = {"item_id": self._search.id, "output_index": 0}
        found = self._search.view("completed", self._answer.sources)
        if "file_search_call.results" not in self._include:
            found["results"] = None
        return [
            self._item("added", 0, self._search.view("in_progress")),
            self._event("response.file_search_call.in_progress", **place),
            self._event("response.file_search_call.searching", **place),
            self._event("response.file_search_call.completed", **place),
            self._item("done", 0, found),
        ]

    def _output(self, status: str) -> list[dict[str, Any]]:
        calls = [self._search.view("completed", self._answer.sources)] if self._search.is_used else []
        return [*calls, *self._written.view(status)]

    def _told(self, told: Iterable[Told]) -> Iterator[Event]:
        for kind, fields in told:
            yield self._event(kind, **fields)

    def _item(self, what: str, output_index: int, item: dict[str, Any]) -> Event:
        return self._event(f"response.output_item.{what}", output_index=output_index, item=item)

    def _event(self, kind: str, **fields: object) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event
