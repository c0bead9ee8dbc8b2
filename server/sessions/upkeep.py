"""Work that a client's leaving must not cut off half-way."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns or raises; a caller that is cancelled meanwhile is told so when the work is done."""
    working = asyncio.ensure_future(work)
    was_cancelled = False
    # The scope keeps anyio's cancellation away, the loop that of plain tasks.
    with anyio.CancelScope(shield=True):
        while not working.done():
            try:
                await asyncio.wait({working})
            except asyncio.CancelledError:
                was_cancelled = True
    working.exception()  # if it failed and the caller is gone, nobody is left to be told
    if was_cancelled:
        raise asyncio.CancelledError
    await anyio.lowlevel.checkpoint_if_cancelled()
    return working.result()
