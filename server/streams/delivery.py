"""How an answer reaches the client: whole, or as a stream that says what went wrong on the way."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from typing import TypeVar

from starlette.requests import Request

from model.engine.request import TokenLogprob
from server.answers.inquiry import AnswerDone, AnswerText
from server.answers.replies import Answer
from server.error_table import envelope, is_known
from server.errors import ClientLeft
from server.streams.sse import event

logger = logging.getLogger(__name__)

T = TypeVar("T")


Logprobs = Mapping[int, Sequence[TokenLogprob]]


async def whole_answer(request: Request, answer: Answer) -> tuple[AnswerDone, Logprobs]:
    """The end of the answer, and what is known of its tokens by choice.

    Raises what ended it early; ``ClientLeft`` when nobody waits for it any more.
    """
    return await while_connected(request, _read(answer))


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves. The request's body must have been read."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def with_error_event(events: AsyncIterator[bytes], name: str | None) -> AsyncGenerator[bytes]:
    """The events; a failure among them becomes the last one, in the error envelope, for the status is sent."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        if not is_known(error):
            logger.exception("a stream failed")
        yield event(envelope(error), name)


async def _read(answer: Answer) -> tuple[AnswerDone, Logprobs]:
    logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
    async for each in answer.events():
        if isinstance(each, AnswerText):
            logprobs[each.choice].extend(each.logprobs)
        elif isinstance(each, AnswerDone):
            return each, logprobs
    raise AssertionError("an answer ends with AnswerDone or an error")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
