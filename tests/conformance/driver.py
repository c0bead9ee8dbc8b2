"""One test for both clients: calls that may have to be awaited, recorded by the name of the helper."""

import base64
import inspect
import json
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import openai
from openai.types import Completion, CreateEmbeddingResponse
from pydantic import TypeAdapter

KINDS = ("sync", "async")
Recorded = set[str]


def covers(*helpers: str) -> Callable[[Any], Any]:
    """Declare which helpers of the client a test has to call and see succeed; ``table`` reads it from the source."""
    return _declared("covers", helpers)


def refuses(*helpers: str) -> Callable[[Any], Any]:
    """Declare which helpers a test sees refused, in the envelope, with a word on what to do instead."""
    return _declared("refuses", helpers)


def _declared(name: str, helpers: tuple[str, ...]) -> Callable[[Any], Any]:
    def mark(test: Any) -> Any:
        setattr(test, name, frozenset(helpers))
        return test

    return mark


class _Strict:
    """Every object and every event must be what the client's own types say: the client itself does not look."""

    def _process_response_data(self, *, data: object, cast_to: Any, response: Any) -> Any:
        made = super()._process_response_data(data=data, cast_to=cast_to, response=response)  # type: ignore[misc]
        if data is not None and cast_to is not object:
            TypeAdapter(cast_to).validate_json(json.dumps(_as_typed(cast_to, data)), strict=True)
        return made


def _as_typed(cast_to: Any, data: Any) -> Any:
    """The two places where the types do not say what is on the wire of OpenAI itself."""
    if cast_to is Completion:
        # A chunk before the last has no reason to have finished.
        choices = [each | {"finish_reason": each["finish_reason"] or "stop"} for each in data["choices"]]
        return data | {"choices": choices}
    if cast_to is CreateEmbeddingResponse:
        # The client asks for base64 and decodes it after this.
        rows = [each | {"embedding": _decoded(each["embedding"])} for each in data["data"]]
        return data | {"data": rows}
    return data


def _decoded(vector: Any) -> Any:
    return list(array("f", base64.b64decode(vector, validate=True))) if isinstance(vector, str) else vector


class StrictOpenAI(_Strict, openai.OpenAI):
    """The synchronous client that believes nothing."""


class StrictAsyncOpenAI(_Strict, openai.AsyncOpenAI):
    """The asynchronous client that believes nothing."""


class Recorder:
    """A client whose helpers tell, by their dotted name, that they were called and did not fail."""

    def __init__(self, target: Any, recorded: Recorded, path: str = "") -> None:
        self._target, self._recorded, self._path = target, recorded, path

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        path = f"{self._path}.{name}" if self._path else name
        if inspect.ismethod(value) or inspect.isfunction(value):
            return self._recording(value, path)
        return Recorder(value, self._recorded, path) if "resources" in type(value).__module__ else value

    def _recording(self, method: Callable[..., Any], path: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if inspect.iscoroutine(result):
                return self._awaited(result, path)
            self._recorded.add(path)
            return result

        return call

    async def _awaited(self, result: Awaitable[Any], path: str) -> Any:
        value = await result
        self._recorded.add(path)
        return value


async def done(result: Any) -> Any:
    """The result of a call of either client."""
    return await result if inspect.isawaitable(result) else result


async def listed(pages: Any) -> list[Any]:
    """Everything of a list or a stream, all pages of it."""
    if not hasattr(pages, "__aiter__"):
        pages = await done(pages)
    if hasattr(pages, "__aiter__"):
        return [each async for each in pages]
    values: Iterable[Any] = pages
    return list(values)


@asynccontextmanager
async def opened(manager: Any) -> AsyncIterator[Any]:
    """The stream of a helper that is a context manager."""
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            yield stream
    else:
        with manager as stream:
            yield stream
