"""Between the engine's checkpoints and the disk: whether a session's state fits this server, and where it is."""

import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread

from model.engine.request import GenerationRequest, Keep, SamplingParams
from model.errors import ArchiveFull, HostBudgetExceeded
from model.policy import AttentionPolicy
from server.chat.conversation import History, PartTokenizer
from server.engine_thread.bridge import EngineThread
from server.engine_thread.stepped import Holding, SteppedEngine
from server.sessions.errors import SegmentDamaged, SessionDamaged
from server.sessions.manifest import Manifest, SavedCheckpoint
from server.sessions.refusals import SessionFingerprint
from server.sessions.register import Session
from server.sessions.vault import Vault

if TYPE_CHECKING:
    from model.cache.snapshot import Snapshot

logger = logging.getLogger(__name__)

# Checkpoints that a save writes: the deepest, and those before it, to which a changed end goes back.
MOST_SAVED = 16


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session and its nearest state: after ``state_tokens`` of its tokens, in the tier ``status``, with these bytes.

    With status ``tokens`` there is no state, only the history, which will be read again.
    """

    manifest: Manifest
    status: str
    state_tokens: int
    ssm_state_bytes: int
    conv_state_bytes: int
    kv_bytes: int
    kv_archive_bytes: int = 0


class States:
    """The states of sessions. A method that takes a session expects its caller to hold the session's name."""

    def __init__(self, vault: Vault, bridge: EngineThread, tokenizer: PartTokenizer) -> None:
        self._vault = vault
        self._bridge = bridge
        self._tokenizer = tokenizer

    async def fingerprint(self, policy: AttentionPolicy) -> Mapping[str, str]:
        """What states depend on now."""
        return await self._bridge.call(lambda engine: engine.fingerprint(policy).to_dict())

    async def views(self, sessions: Sequence[Session]) -> list[SessionView]:
        """The sessions as they are now."""
        # What was not read from the disk in this process, the engine has not seen.
        seen = [(each, each.history) for each in sessions if each.history is not None]

        def look(engine: SteppedEngine) -> list[Holding]:
            return [engine.holding(each.tenant, each.policy, history.ids) for each, history in seen]

        found = await self._bridge.call(look) if seen else []
        holdings = {each.key: holding for (each, _), holding in zip(seen, found, strict=True)}
        return [_view(each, holdings.get(each.key)) for each in sessions]

    async def history(self, session: Session) -> History:
        """The session's history, read from the disk the first time. Raises ``SessionDamaged``."""
        if session.history is None:
            manifest = session.manifest

            def read() -> History:
                ids = self._vault.load_tokens(manifest)
                return History.of_ids(self._tokenizer, ids, manifest.prelude_tokens)

            try:
                session.history = await anyio.to_thread.run_sync(read)
            except SegmentDamaged as error:
                remedy = "delete the session and send the conversation again"
                raise _Damaged(error, f"the history of session {session.name!r} is damaged", remedy) from error
        return session.history

    async def take_up(self, session: Session) -> Mapping[str, str]:
        """Have history and state at hand: what was saved and is nowhere nearer comes back to the host.

        Returns the fingerprint that holds now. Raises ``SessionFingerprint`` and ``SessionDamaged``.
        """
        fingerprint = await self.check_fingerprint(session)
        history = await self.history(session)
        if await self.returning(session, history):
            try:
                await self.admit(session, history, await self.load(session))
            except (ArchiveFull, HostBudgetExceeded) as full:
                logger.warning("a session's state stays on the disk and its tokens are read again: %s", full)
        return fingerprint

    async def returning(self, session: Session, history: History) -> tuple[SavedCheckpoint, ...]:
        """The saved states that are to come back from the disk, if any are."""
        held = await self._bridge.call(lambda engine: engine.holding(session.tenant, session.policy, history.ids))
        if held.num_tokens >= session.saved_tokens:
            return ()
        return tuple(session.manifest.checkpoints)

    async def check_fingerprint(self, session: Session) -> Mapping[str, str]:
        """The fingerprint that holds now. Raises ``SessionFingerprint`` where the session cannot be used under it.

        Where no state was saved, only the token ids must mean the same.
        """
        now, before = await self.fingerprint(session.policy), session.manifest.fingerprint
        parts = [part for part, value in now.items() if before.get(part) != value]
        if parts and (session.manifest.checkpoints or "tokenizer" in parts):
            raise SessionFingerprint(session.name, before, now, parts)
        return now

    async def load(self, session: Session) -> "tuple[Snapshot, ...]":
        """The saved state, verified. Raises ``SessionDamaged``."""
        manifest = session.manifest
        try:
            return await anyio.to_thread.run_sync(self._vault.load_snapshots, manifest)
        except SegmentDamaged as error:
            remedy = (
                f"its {manifest.num_tokens} tokens are whole: POST /v1/sessions/{session.name}/save reads them again"
            )
            raise _Damaged(error, f"the saved state of session {session.name!r} is damaged", remedy) from error

    async def admit(self, session: Session, history: History, snapshots: "Sequence[Snapshot]") -> None:
        """Bring a saved state of ``history`` to the host. Raises ``HostBudgetExceeded`` or ``ArchiveFull``; what
        fits is there then."""

        def bring(engine: SteppedEngine) -> None:
            engine.checkpoints.admit(session.tree, history.ids, snapshots)
            engine.checkpoints.anchor(session.key, session.tree, history.ids)
            engine.checkpoints.release(session.key)

        await self._bridge.call(bring)

    async def anchor(self, session: Session, history: History) -> None:
        """Hold on to the session's state in the engine."""

        def hold(engine: SteppedEngine) -> Holding:
            engine.checkpoints.anchor(session.key, session.tree, history.ids)
            return engine.holding(session.tenant, session.policy, history.ids)

        _view(session, await self._bridge.call(hold))

    async def release(self, session: Session) -> None:
        """The session's state is on the disk, and may be given up in the engine."""
        await self._bridge.call(lambda engine: engine.checkpoints.release(session.key))

    async def forget(self, session: Session, with_document: bool) -> None:
        """Let go of the session's state in the engine, and of all that begins like its text and nobody else needs.

        The document before a conversation is not its text, unless ``with_document``.
        """
        history = session.history
        # What was never read from the disk in this process, the engine has not seen.
        num_general = 0 if history is None else self._num_general(session, history.ids, with_document)

        def drop(engine: SteppedEngine) -> None:
            engine.checkpoints.unanchor(session.key)
            if history is not None:
                engine.forget(session.tenant, session.policy, history.ids, num_general)

        await self._bridge.call(drop)

    async def snapshots(self, session: Session, history: History) -> "list[Snapshot]":
        """The state after the whole history and some states before; what was not read yet is read for it."""
        held = await self._bridge.call(lambda engine: engine.holding(session.tenant, session.policy, history.ids))
        if held.num_tokens < len(history.ids):
            request = GenerationRequest(
                f"save.{id(session)}.{session.manifest.version}",
                history.ids,
                SamplingParams(max_tokens=0),
                policy=session.policy,
                tenant=session.tenant,
                keep=Keep(tail=True),
                is_background=True,
                select_from=len(history.ids) if session.document_id is not None else history.prelude_tokens,
            )
            async with self._bridge.generate(request) as events:
                async for _ in events:
                    pass

        def copy(engine: SteppedEngine) -> "list[Snapshot]":
            path = engine.checkpoints.path(session.tree, history.ids)
            return [engine.checkpoints.snapshot(each) for each in path[-MOST_SAVED:]]

        return await self._bridge.call(copy)

    def _num_general(self, session: Session, ids: "array[int]", with_document: bool) -> int:
        """How many tokens at the beginning of the session's text are not its own: the template's, or a document's."""
        if session.document_id is None and session.manifest.prelude_tokens and not with_document:
            return session.manifest.prelude_tokens
        written = (place for place, each in enumerate(ids) if self._tokenizer.control_token(each) is None)
        return next(written, len(ids))


class _Damaged(SessionDamaged):
    """A damaged file, with the session it is of and what can be done."""

    def __init__(self, cause: SessionDamaged, what: str, remedy: str) -> None:
        super().__init__(cause.path, cause.reason)
        self._message = f"{what}: {cause}; {remedy}"

    def __str__(self) -> str:
        return self._message


def _view(session: Session, held: Holding | None) -> SessionView:
    manifest = session.manifest
    saved = manifest.checkpoints[-1] if manifest.checkpoints else None
    if held is not None and held.num_tokens and held.num_tokens >= session.saved_tokens:
        session.status = held.tier
        return SessionView(
            manifest,
            held.tier,
            held.num_tokens,
            held.ssm_state_bytes,
            held.conv_state_bytes,
            held.kv_bytes,
            held.kv_archive_bytes,
        )
    session.status = "tokens" if saved is None else "saved"
    if saved is None:
        return SessionView(manifest, "tokens", 0, 0, 0, 0)
    sizes = saved.ssm_bytes, saved.conv_bytes, saved.kv_bytes, saved.kv_archive_bytes
    return SessionView(manifest, "saved", saved.num_tokens, *sizes)
