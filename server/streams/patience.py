"""Streams that may be long in coming, as where a file of the request has to be read first.

What is refused soon has its own status, and nothing was sent. Then the stream begins, with comments until there is
something to tell, so that nobody between here and the client takes it for dead; what is refused from then on is its
last event.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TypeVar

from server.error_table import is_known

logger = logging.getLogger(__name__)

T = TypeVar("T")

# To cut a text of this length into tokens and to search it takes a second at most.
SOON_CHARACTERS = 400_000
# Ten times what it takes alone to count the tokens of longer ones: too many are refused before anything is sent.
COUNTED_A_SECOND = 400_000


def takes_long(num_characters: int) -> bool:
    """Whether a prompt of so many characters is one whose stream may be long in coming."""
    return num_characters > SOON_CHARACTERS


def patience_with(num_characters: int, keepalive_seconds: float) -> float:
    """Seconds within which such a prompt is counted, or searched, before its stream begins with comments."""
    return keepalive_seconds + num_characters / COUNTED_A_SECOND


@asynccontextmanager
async def patient_stream(
    admitted: AbstractAsyncContextManager[T],
    told: Callable[[T], AsyncIterator[bytes]],
    refused: Callable[[Exception], bytes],
    patience_seconds: float,
) -> AsyncIterator[AsyncGenerator[bytes]]:
    """The stream of what is ``admitted``, once that is or the patience is at its end; ``told`` tells it, and
    ``refused`` what kept it from being admitted later. Leaving ends what is under way.

    Raises on entry what refuses it until then.
    """
    # One at a time: who does not read holds up the answer, as without patience.
    events: asyncio.Queue[bytes | None] = asyncio.Queue(1)
    accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_late = False

    async def make() -> None:
        try:
            async with admitted as there:
                if not is_late:
                    accepted.set_result(None)
                async for each in told(there):
                    await events.put(each)
        except Exception as error:
            if not accepted.done() and not is_late:
                accepted.set_exception(error)
                return
            if not is_known(error):
                logger.exception("a stream failed")
            await events.put(refused(error))
        await events.put(None)

    making = asyncio.create_task(make())
    try:
        await asyncio.wait({accepted}, timeout=patience_seconds)
        is_late = not accepted.done()
        if not is_late:
            accepted.result()
        yield _read(events)
    finally:
        making.cancel()
        with suppress(asyncio.CancelledError):
            await making


async def _read(events: "asyncio.Queue[bytes | None]") -> AsyncGenerator[bytes]:
    while (each := await events.get()) is not None:
        yield each
