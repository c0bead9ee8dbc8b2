"""Changes of sessions, each whole: on the disk, in the register and in the engine."""

from collections.abc import Mapping, Sequence

import anyio.to_thread

from model.policy import AttentionPolicy
from server.chat.conversation import History
from server.sessions.errors import SessionDamaged
from server.sessions.manifest import key_of
from server.sessions.register import Register, Session
from server.sessions.states import States
from server.sessions.upkeep import to_its_end
from server.sessions.vault import Vault


class Writer:
    """Every method expects its caller to hold the session's name, and goes on to its end when the caller leaves.

    Raises what the vault raises; then nothing was changed.
    """

    def __init__(self, vault: Vault, register: Register, states: States) -> None:
        self._vault = vault
        self._register = register
        self._states = states

    async def commit(
        self,
        tenant: str,
        name: str,
        policy: AttentionPolicy,
        history: History,
        fingerprint: Mapping[str, str],
        documents: Sequence[str],
    ) -> Session:
        """Make ``history`` that of the session, which need not exist; durable on return, its state held on to."""
        return await to_its_end(self._commit(tenant, name, policy, history, fingerprint, documents))

    async def save(self, session: Session) -> None:
        """Write the state after the whole history to the disk. A saved one that is damaged is read anew.

        Raises ``SessionFingerprint``, ``SessionDamaged`` where the tokens are, and what refuses their reading.
        """
        try:
            await self._states.take_up(session)
        except SessionDamaged:
            if session.history is None:
                raise
        history = await self._states.history(session)
        fingerprint = await self._states.check_fingerprint(session)
        if dict(fingerprint) != dict(session.manifest.fingerprint):
            documents = session.manifest.documents
            await self.commit(session.tenant, session.name, session.policy, history, fingerprint, documents)
        await self._states.anchor(session, history)
        snapshots = await self._states.snapshots(session, history)

        def write() -> None:
            version = session.manifest.version
            session.manifest = self._vault.save(session.tenant, session.name, snapshots, version)

        async def keep() -> None:
            await anyio.to_thread.run_sync(write)
            await self._states.release(session)

        await to_its_end(keep())

    async def fork(self, source: Session, to: str) -> Session:
        """A second session with the same history and state."""

        def write() -> Session:
            fork = Session(self._vault.fork(source.tenant, source.name, to), source.policy, source.history)
            self._register.put(fork)
            return fork

        async def copy() -> Session:
            fork = await anyio.to_thread.run_sync(write)
            if fork.history is not None:
                await self._states.anchor(fork, fork.history)
                if fork.manifest.is_saved:
                    await self._states.release(fork)
            return fork

        return await to_its_end(copy())

    async def delete(self, tenant: str, name: str, with_document: bool = False) -> None:
        """Remove the session's files, and what the engine keeps of its text; ``with_document`` also of the document
        before it. Raises ``UnknownSession``."""
        session = self._register.get(tenant, name)

        def remove() -> None:
            self._vault.delete(tenant, name)
            self._register.remove(tenant, name)

        async def drop() -> None:
            await anyio.to_thread.run_sync(remove)
            if session is not None:
                await self._states.forget(session, with_document)

        await to_its_end(drop())

    def check_whole(self, tenant: str, name: str) -> None:
        """Raise ``SessionDamaged`` where the name is that of a session whose manifest cannot be read."""
        key = key_of(tenant, name)
        for damaged in self._vault.damaged:
            if damaged.key == key:
                remedy = f"DELETE /v1/sessions/{name} removes what is left of it"
                raise SessionDamaged(damaged.path, f"{damaged.reason}; {remedy}")

    async def _commit(
        self,
        tenant: str,
        name: str,
        policy: AttentionPolicy,
        history: History,
        fingerprint: Mapping[str, str],
        documents: Sequence[str],
    ) -> Session:
        def write() -> Session:
            session = self._register.get(tenant, name)
            manifest = self._vault.commit_turn(
                tenant,
                name,
                history.ids,
                expected_version=session.manifest.version if session else 0,
                fingerprint=fingerprint,
                documents=documents,
                prelude_tokens=history.prelude_tokens,
            )
            if session is None or session.policy != policy:
                session = Session(manifest, policy)
            session.manifest, session.history = manifest, history
            self._register.put(session)
            return session

        session = await anyio.to_thread.run_sync(write)
        await self._states.anchor(session, history)
        return session
