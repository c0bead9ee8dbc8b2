"""Named sessions of tenants: turns that are durable before their end is told, saved states, forks, deletion.

A session is a token history with a name. Its tokens are on the disk when a turn ends; its state is when it was saved,
and until then in the engine, or is read again. A request has a session to itself.
"""

import asyncio
import logging
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import anyio.to_thread

from model.errors import EngineDraining, EngineStopped, ModelError
from model.policy import AttentionPolicy
from server.bills.bill import TIERS, SessionStats
from server.chat.conversation import History, PartTokenizer
from server.engine_thread.bridge import EngineThread
from server.logs import log_event
from server.sessions.errors import SessionError, SessionExists, UnknownSession
from server.sessions.manifest import SavedCheckpoint
from server.sessions.readings import Readings
from server.sessions.refusals import SessionBusy, SessionNotSaved, SessionOfDocument, SessionPolicy, SessionReading
from server.sessions.register import DOCUMENT_PREFIX, Hold, Register, Session
from server.sessions.states import SessionView, States
from server.sessions.vault import Vault
from server.sessions.writer import Writer

logger = logging.getLogger(__name__)

# Beyond this share of the host's budget for states, sessions that were not used for longest are moved to the disk.
FULL_SHARE = 0.75


class Book:
    """All named sessions. Coroutines belong to the event loop; ``stats`` is for any thread.

    ``policy`` is the engine's own; ``find_document(tenant, document_id)`` raises ``UnknownDocument``. Every coroutine
    raises ``SessionBusy`` where another request has the session, ``UnknownSession`` where there is none,
    ``SessionDamaged``, and what the vault raises.
    """

    def __init__(
        self,
        vault: Vault,
        bridge: EngineThread,
        policy: AttentionPolicy,
        register: Register,
        states: States,
        writer: Writer,
        find_document: Callable[[str, str], object],
    ) -> None:
        self._find_document = find_document
        self._vault = vault
        self._bridge = bridge
        self._policy = policy
        self._register = register
        self._states = states
        self._writer = writer
        self._relief: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Find out where the states of all sessions are now, which ``stats`` then tells."""
        await self._states.views(self._register.all())

    def stats(self) -> SessionStats:
        """Sessions by the tier that each was last seen in, and bytes on the disk."""
        counts = {**dict.fromkeys(TIERS, 0), **self._register.num_by_status()}
        return SessionStats(counts, self._vault.disk_bytes, self._vault.max_bytes)

    @asynccontextmanager
    async def turn(self, tenant: str, name: str, policy: AttentionPolicy | None) -> AsyncIterator["SessionTurn"]:
        """A conversation's next turn, with the session to itself; the session need not exist.

        Raises on entry also ``SessionOfDocument``, ``SessionPolicy`` and ``SessionFingerprint``.
        """
        if name.startswith(DOCUMENT_PREFIX):
            raise SessionOfDocument(name)
        async with self._register.taken(tenant, name) as hold:
            session = self._register.get(tenant, name)
            if session is None:
                self._writer.check_whole(tenant, name)
                own = policy or self._policy
                fingerprint = await self._states.fingerprint(own)
                yield SessionTurn(self, hold, tenant, name, own, History(array("i")), fingerprint)
                return
            if policy is not None and policy != session.policy:
                raise SessionPolicy(name, str(session.policy), str(policy))
            fingerprint = await self._states.take_up(session)
            history = await self._states.history(session)
            documents = session.manifest.documents
            yield SessionTurn(self, hold, tenant, name, session.policy, history, fingerprint, documents)

    async def preview(self, tenant: str, name: str, policy: AttentionPolicy | None) -> "SessionPreview":
        """What the conversation's next turn would begin with; no state is moved for it. Raises what ``turn`` raises."""
        if name.startswith(DOCUMENT_PREFIX):
            raise SessionOfDocument(name)
        # As the server's own use: a client's turn waits for it, where it would be refused beside another client's.
        async with self._register.taken(tenant, name, is_upkeep=True):
            session = self._register.get(tenant, name)
            if session is None:
                self._writer.check_whole(tenant, name)
                return SessionPreview(policy or self._policy, History(array("i")))
            if policy is not None and policy != session.policy:
                raise SessionPolicy(name, str(session.policy), str(policy))
            await self._states.check_fingerprint(session)
            history = await self._states.history(session)
            return SessionPreview(session.policy, history, await self._states.returning(session, history))

    async def page(self, tenant: str, after: str | None, limit: int) -> list[SessionView]:
        """At most ``limit`` sessions by name, those after the name ``after``."""
        sessions = [each for each in self._register.all(tenant) if after is None or each.name > after]
        return await self._states.views(sessions[:limit])

    async def get(self, tenant: str, name: str) -> SessionView:
        """One session."""
        return await self._view(self._known(tenant, name))

    async def save(self, tenant: str, name: str) -> SessionView:
        """Write the state after the whole history to the disk; what was not read yet is read for it."""
        async with self._register.taken(tenant, name):
            session = self._known(tenant, name)
            await self._writer.save(session)
            return await self._view(session)

    async def restore(self, tenant: str, name: str) -> SessionView:
        """Bring the saved state to the host, and go back to the history it was saved with.

        Raises also ``SessionNotSaved``, ``SessionFingerprint`` and ``HostBudgetExceeded``.
        """
        async with self._register.taken(tenant, name):
            session = self._known(tenant, name)
            if session.manifest.saved_version is None:
                raise SessionNotSaved(name)
            fingerprint = await self._states.check_fingerprint(session)
            history = await self._states.history(session)
            if not session.manifest.checkpoints:  # too short for a state: its tokens are all there is to it
                return await self._view(session)
            snapshots = await self._states.load(session)
            saved = history if session.manifest.is_saved else history.until(session.saved_tokens)
            await self._states.admit(session, saved, snapshots)
            if len(saved.ids) < len(history.ids):
                documents = session.manifest.documents
                await self._writer.commit(tenant, name, session.policy, saved, fingerprint, documents)
                await self._states.release(session)
            return await self._view(session)

    async def fork(self, tenant: str, name: str, to: str) -> SessionView:
        """A second session that shares history and state. Raises also ``SessionExists`` and ``SessionReading``."""
        if name == to:
            # Its own name is taken, unless nobody has it.
            async with self._register.taken(tenant, name):
                raise SessionExists(self._known(tenant, name).name)
        async with self._register.taken(tenant, name), self._register.taken(tenant, to):
            source = self._known(tenant, name)
            if source.document_id is not None and not source.manifest.prelude_tokens:
                raise SessionReading(name)
            self._writer.check_whole(tenant, to)
            return await self._view(await self._writer.fork(source, to))

    async def delete(self, tenant: str, name: str) -> None:
        """Remove the session: its files, damaged ones too, and what the engine keeps of its text."""
        async with self._register.taken(tenant, name):
            await self._writer.delete(tenant, name)

    async def trim(self, prefix: str, most: int, disk_share: float) -> None:
        """Delete sessions whose names begin with ``prefix``, of those that nobody uses the ones not used for longest
        first, until there are at most ``most`` and all sessions take at most that share of the disk's budget.

        Raises what the vault raises.
        """
        sessions = [each for each in self._register.all() if each.name.startswith(prefix)]
        sessions.sort(key=lambda each: (each.used, each.manifest.updated_at))
        num_left, max_bytes = len(sessions), disk_share * self._vault.max_bytes
        for session in sessions:
            if num_left <= most and self._vault.disk_bytes <= max_bytes:
                return
            with suppress(SessionBusy, UnknownSession), self._register.occupied(*session.key, is_upkeep=True):
                await self._writer.delete(session.tenant, session.name)
                num_left -= 1

    async def end_turn(self, turn: "SessionTurn", history: History, documents: Sequence[str]) -> None:
        """As ``SessionTurn.commit``, which calls it."""
        async with AsyncExitStack() as holds:
            # A document that is deleted meanwhile must not live on in what was answered from it.
            for document_id in sorted(set(documents)):
                reading = DOCUMENT_PREFIX + document_id
                await holds.enter_async_context(self._register.taken(turn.tenant, reading, patience=True))
                await anyio.to_thread.run_sync(self._find_document, turn.tenant, document_id)
            every = tuple(dict.fromkeys((*turn.documents, *documents)))
            await self._writer.commit(turn.tenant, turn.name, turn.policy, history, turn.fingerprint, every)
        stats = self._bridge.stats()
        is_full = stats.checkpoint_bytes > FULL_SHARE * stats.checkpoint_budget_bytes
        if is_full and (self._relief is None or self._relief.done()):
            self._relief = asyncio.create_task(self._relieve())

    async def _relieve(self) -> None:
        """Save sessions that were not used for longest, until what exceeds the budget's share may be given up."""
        stats = self._bridge.stats()
        excess = stats.checkpoint_bytes - FULL_SHARE * stats.checkpoint_budget_bytes
        for session in sorted(self._register.all(), key=lambda each: each.used):
            if excess <= 0:
                return
            if session.history is None:
                continue
            try:
                with suppress(SessionBusy), self._register.occupied(*session.key, is_upkeep=True):
                    if self._register.get(*session.key) is not session:
                        continue  # it was deleted meanwhile
                    excess -= await self._make_safe(session)
            except (EngineDraining, EngineStopped):
                return
            except (SessionError, ModelError) as error:
                logger.warning("sessions cannot be moved to the disk to make room: %s", error)
                return

    async def _make_safe(self, session: Session) -> int:
        """Save the session unless it is; bytes of host memory that may now be given up for others."""
        view = await self._view(session)
        if view.status not in ("resident", "host"):
            return 0
        if not session.manifest.is_saved:
            await self._writer.save(session)
            log_event(logger, "session saved to make room", num_tokens=session.manifest.num_tokens)
        return view.ssm_state_bytes + view.conv_state_bytes + view.kv_bytes

    def _known(self, tenant: str, name: str) -> Session:
        if self._register.get(tenant, name) is None:
            self._writer.check_whole(tenant, name)
        return self._register.known(tenant, name)

    async def _view(self, session: Session) -> SessionView:
        return (await self._states.views([session]))[0]


@dataclass(frozen=True, slots=True)
class SessionPreview:
    """What a turn would begin with; ``returning`` are the saved states that would come back from the disk for it."""

    policy: AttentionPolicy
    history: History
    returning: tuple[SavedCheckpoint, ...] = ()


class SessionTurn:
    """One turn of a session: what came before, and the end, which makes it durable and lets the next one begin."""

    def __init__(
        self,
        book: Book,
        hold: Hold,
        tenant: str,
        name: str,
        policy: AttentionPolicy,
        history: History,
        fingerprint: Mapping[str, str],
        documents: Sequence[str] = (),
    ) -> None:
        self.tenant = tenant
        self.name = name
        self.policy = policy
        self.history = history
        self.fingerprint = fingerprint
        self._book = book
        self._hold = hold
        self.documents = documents

    async def commit(self, history: History, documents: Sequence[str] = ()) -> None:
        """Make ``history`` the session's; ``documents`` are those that the turn was answered from.

        Durable on return; then the name is free. Raises what the vault raises, and ``UnknownDocument`` for one that
        was deleted meanwhile; then the former history stays.
        """
        await self._book.end_turn(self, history, documents)
        self._hold.release()


def open_book(
    vault: Vault,
    bridge: EngineThread,
    tokenizer: PartTokenizer,
    policy: AttentionPolicy,
    find_document: Callable[[str, str], object],
) -> tuple[Book, Readings]:
    """The sessions in the vault, and those of them that are readings of documents."""
    register = Register(vault.manifests())
    states = States(vault, bridge, tokenizer)
    writer = Writer(vault, register, states)
    book = Book(vault, bridge, policy, register, states, writer, find_document)
    return book, Readings(vault, register, states, writer, policy, find_document)
