"""Work goes on to its end when whoever waits for it is cancelled, by whatever means."""

import asyncio
from collections.abc import Callable

import anyio
import pytest

from server.sessions.upkeep import to_its_end


async def cancelled_by_asyncio(waiting: Callable[[], object]) -> None:
    task = asyncio.ensure_future(waiting())  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancelled_by_anyio(waiting: Callable[[], object]) -> None:
    with anyio.move_on_after(0.01) as scope:
        await waiting()  # type: ignore[misc]
    assert scope.cancelled_caught


@pytest.mark.parametrize("cancelled", [cancelled_by_asyncio, cancelled_by_anyio])
@pytest.mark.parametrize("fails", [False, True])
async def test_work_is_done_before_the_cancelled_caller_goes(cancelled: Callable[..., object], fails: bool) -> None:
    steps: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        steps.append("done")
        if fails:
            raise ValueError("nobody is left to be told")

    async def waiting() -> None:
        try:
            await to_its_end(work())
        finally:
            steps.append("left")

    await cancelled(waiting)  # type: ignore[misc]
    assert steps == ["done", "left"]


async def test_who_waits_to_the_end_gets_what_it_was_about() -> None:
    async def fail() -> int:
        raise ValueError("mine")

    async def seven() -> int:
        return 7

    assert await to_its_end(seven()) == 7
    with pytest.raises(ValueError, match="mine"):
        await to_its_end(fail())
