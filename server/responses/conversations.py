"""Conversations of stored responses: what was said before, and the session that remembers having read it.

A conversation is a tree: any response may be gone on from, more than once and at the same time. A session is one
branch of it. The response that goes on from the last of its session takes the session over; any other gets a fork.
Sessions are only memory: without one, all that was said is read again from the store, and the reply is the same.
"""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import anyio.to_thread

from model.errors import ModelError
from server.logs import log_event
from server.responses.errors import ResponseFailed, ResponseNotStored, ResponseUnderWay, UnknownResponse
from server.responses.store import ResponseStore, StoredResponse
from server.sessions.book import Book
from server.sessions.errors import SessionError, UnknownSession
from server.sessions.refusals import SessionBusy
from server.sessions.register import RESPONSE_PREFIX

logger = logging.getLogger(__name__)

MOST_SESSIONS = 1000
# Of the disk that sessions may take, so that those with names of clients always find room.
DISK_SHARE = 0.75
# As at OpenAI.
KEPT_SECONDS = 30 * 24 * 3600
SWEEP_SECONDS = 600.0


@dataclass(slots=True, eq=False)
class Claim:
    """The use of a session by one response."""

    session: str
    _key: tuple[str, str]
    _claims: "dict[tuple[str, str], Claim]"

    def release(self) -> None:
        """Let others use the session. Idempotent, also when somebody else has it by now."""
        if self._claims.get(self._key) is self:
            del self._claims[self._key]


class Conversations:
    """All stored responses and their sessions. For the event loop."""

    def __init__(self, store: ResponseStore, book: Book) -> None:
        self._store = store
        self._book = book
        self._claims: dict[tuple[str, str], Claim] = {}
        self._swept = float("-inf")

    def disk_bytes(self) -> int:
        """Bytes of all that is stored. From any thread."""
        return self._store.disk_bytes()

    def recover(self) -> None:
        """Say of responses in the background that the last process left unfinished that they failed. Blocks."""
        error = {"code": "server_error", "message": "the server was stopped while the response was made; ask again"}
        if count := self._store.end_broken_off(error):
            log_event(logger, "responses in the background had been broken off", count=count)

    async def get(self, tenant: str, response_id: str) -> StoredResponse:
        """A stored response. Raises ``UnknownResponse``."""
        return await anyio.to_thread.run_sync(self._store.get, tenant, response_id)

    async def before(self, tenant: str, previous_id: str | None) -> list[StoredResponse]:
        """The responses that a new one goes on from, the first one first.

        Raises ``UnknownResponse``, ``ResponseUnderWay`` and ``ResponseFailed``, about ``previous_response_id``.
        """
        if previous_id is None:
            return []
        try:
            chain = await anyio.to_thread.run_sync(self._store.chain, tenant, previous_id)
        except UnknownResponse:
            raise UnknownResponse(previous_id, "previous_response_id") from None
        if chain[-1].is_under_way:
            raise ResponseUnderWay(previous_id)
        if chain[-1].status in ("failed", "cancelled"):
            raise ResponseFailed(previous_id, chain[-1].status)
        return chain

    async def line(self, tenant: str, response_id: str) -> list[StoredResponse]:
        """A response after all those before it. Raises ``UnknownResponse``."""
        return await anyio.to_thread.run_sync(self._store.chain, tenant, response_id)

    @asynccontextmanager
    async def claimed(self, tenant: str, previous: StoredResponse | None) -> AsyncIterator[Claim]:
        """The session that is to have the next turn; nobody else gets it until it is released."""
        own = None if previous is None else previous.session
        async with AsyncExitStack() as stack:
            is_free = own is not None and (tenant, own) not in self._claims
            if previous is not None and own is not None and is_free:
                claim = stack.enter_context(self._claim(tenant, own))
                if await anyio.to_thread.run_sync(self._store.head, tenant, own) == previous.id:
                    yield claim
                    return
            name = self.new_session()
            try:
                await self._book.trim(RESPONSE_PREFIX, MOST_SESSIONS - 1, DISK_SHARE)
                if own is not None and is_free:
                    await self._book.fork(tenant, own, name)
            except (SessionError, ModelError) as error:
                # It begins without memory, as the first of a conversation does.
                logger.info("a conversation is read again: %s", error)
            await stack.aclose()  # Others may go on with the former session now.
            yield stack.enter_context(self._claim(tenant, name))

    def new_session(self) -> str:
        """A name for a session that remembers nothing."""
        return f"{RESPONSE_PREFIX}{secrets.token_urlsafe(18)}"

    async def keep(self, tenant: str, response: StoredResponse) -> None:
        """Store a response; durable on return. Raises ``ResponseNotStored``."""
        await anyio.to_thread.run_sync(self._store.put, tenant, response)

    async def delete(self, tenant: str, response_id: str) -> None:
        """Delete a response, and every session that remembers it unless others go on from it. Raises
        ``UnknownResponse``."""
        for name in await anyio.to_thread.run_sync(self._store.delete, tenant, response_id):
            # One that is in use belongs to a response that is just going on from the deleted one.
            with suppress(UnknownSession, SessionBusy):
                await self._book.delete(tenant, name)

    async def sweep(self) -> None:
        """Delete what was kept long enough, if it is time to look; a failure is logged, and tried again later."""
        if time.monotonic() < self._swept + SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        num_deleted = 0
        try:
            while expired := await anyio.to_thread.run_sync(self._store.expired, int(time.time()) - KEPT_SECONDS):
                for tenant, response_id in expired:
                    with suppress(UnknownResponse):
                        await self.delete(tenant, response_id)
                num_deleted += len(expired)
        except (SessionError, ResponseNotStored, OSError) as error:
            logger.warning("old responses cannot be deleted: %s", error)
        if num_deleted:
            log_event(logger, "old responses deleted", count=num_deleted)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    @contextmanager
    def _claim(self, tenant: str, name: str) -> Iterator[Claim]:
        key = (tenant, name)
        claim = self._claims[key] = Claim(name, key, self._claims)
        try:
            yield claim
        finally:
            claim.release()
