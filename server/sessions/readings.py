"""Sessions that are the reading of a document: made while the model reads, forked by conversations, gone with it."""

from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio.to_thread

from model.policy import AttentionPolicy
from server.chat.conversation import History
from server.sessions.errors import SessionDamaged
from server.sessions.refusals import DocumentInUse
from server.sessions.register import DOCUMENT_PREFIX, RESPONSE_PREFIX, Register
from server.sessions.states import States
from server.sessions.upkeep import to_its_end
from server.sessions.vault import Vault
from server.sessions.writer import Writer


class Readings:
    """The sessions named ``document:{id}``. Coroutines belong to the event loop.

    ``policy`` is the engine's own. ``find_document(tenant, document_id)`` raises where there is no such document (any
    more).
    """

    def __init__(
        self,
        vault: Vault,
        register: Register,
        states: States,
        writer: Writer,
        policy: AttentionPolicy,
        find_document: Callable[[str, str], object],
    ) -> None:
        self._vault = vault
        self._register = register
        self._states = states
        self._writer = writer
        self._policy = policy
        self._find_document = find_document

    async def put_document(
        self,
        tenant: str,
        document_id: str,
        token_ids: Sequence[int],
        *,
        is_complete: bool,
        policy: AttentionPolicy | None = None,
    ) -> None:
        """Note how far the model has read a document: ``token_ids`` are all it has read, durable on return.

        The first call makes the document's session, each one moves its anchor to the deepest checkpoint; waits while
        somebody saves or forks it. Only once ``is_complete`` it can be forked. Raises what ``find_document`` raises,
        so that a document that was deleted meanwhile stays so.
        """
        name = DOCUMENT_PREFIX + document_id
        ids = token_ids if isinstance(token_ids, array) else array("i", token_ids)
        async with self._register.taken(tenant, name, patience=True):
            await anyio.to_thread.run_sync(self._find_document, tenant, document_id)
            session = self._register.get(tenant, name)
            own = policy or (session.policy if session else self._policy)
            fingerprint = await self._states.fingerprint(own)
            history = History(ids, (), len(ids) if is_complete else 0)
            await self._writer.commit(tenant, name, own, history, fingerprint, (document_id,))

    async def open_document(self, tenant: str, document_id: str) -> "array[int] | None":
        """What was read of a document, to be read on, with the saved part of its state at hand.

        None where nothing was read, where it was read by another model or in another way than now, and where what was
        written is damaged. Waits while somebody saves or forks it, like everything here.
        """
        name = DOCUMENT_PREFIX + document_id
        async with self._register.taken(tenant, name, patience=True):
            session = self._register.get(tenant, name)
            if session is None or await self._states.fingerprint(session.policy) != dict(session.manifest.fingerprint):
                return None
            with suppress(SessionDamaged):
                await self._states.take_up(session)
            return None if session.history is None else session.history.ids

    async def whole_document(self, tenant: str, document_id: str) -> "array[int] | None":
        """What was read of a document that was read to its end, with its state at hand; else None, as above."""
        return await self.open_document(tenant, document_id) if self.is_read(tenant, document_id) else None

    async def save(self, tenant: str, name: str) -> None:
        """Write the state of a document's session to the disk. Raises ``UnknownSession``."""
        async with self._register.taken(tenant, name, patience=True):
            await self._writer.save(self._register.known(tenant, name))

    def is_read(self, tenant: str, document_id: str) -> bool:
        """Whether the whole document was read, in this process or before."""
        session = self._register.get(tenant, DOCUMENT_PREFIX + document_id)
        return session is not None and session.manifest.prelude_tokens > 0

    def sessions_with(self, tenant: str, document_id: str) -> tuple[str, ...]:
        """Names of the sessions that contain the document, but for its own."""
        return tuple(each.name for each in self._register.containing(tenant, document_id))

    @asynccontextmanager
    async def without_document(self, tenant: str, document_id: str, cascade: bool) -> AsyncIterator[None]:
        """Nothing of the document is in any session from here on; inside, no session can take it up again.

        Waits while the reading is being saved. Raises ``DocumentInUse`` naming the sessions that contain it unless they
        are to go too (``cascade``), as those of stored responses always do, and ``SessionBusy`` where one of them is in
        use.
        """
        own = DOCUMENT_PREFIX + document_id
        async with self._register.taken(tenant, own, patience=True):
            names = self.sessions_with(tenant, document_id)
            named = tuple(name for name in names if not name.startswith(RESPONSE_PREFIX))
            if named and not cascade:
                raise DocumentInUse(document_id, named)
            # All of them are free, or none is deleted.
            async with AsyncExitStack() as holds:
                for name in names:
                    await holds.enter_async_context(self._register.taken(tenant, name))
                if self._register.get(tenant, own) is not None:
                    await self._writer.delete(tenant, own)
                for name in names:
                    await self._writer.delete(tenant, name, with_document=True)

            async def sweep() -> None:
                # Damaged manifests may mention it, too.
                await anyio.to_thread.run_sync(self._vault.delete_containing, tenant, document_id)

            await to_its_end(sweep())
            yield
