"""Which sessions there are, and which of them somebody is using: plain bookkeeping in memory."""

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from model.policy import AttentionPolicy, PolicyName
from server.chat.conversation import History
from server.sessions.errors import UnknownSession
from server.sessions.manifest import Manifest
from server.sessions.refusals import SessionBusy

# The reading of a document is a session, under a name that no client can choose.
DOCUMENT_PREFIX = "document:"
# So is what remembers the conversation of a stored response. All that was said is in the store of responses, too.
RESPONSE_PREFIX = "response:"
WAIT_SECONDS = 0.02
LONGEST_WAIT_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class Session:
    """One session. ``history`` is None until it was read from the disk; ``used`` orders sessions by their last use, and
    ``status`` is where its state was when it was last looked for."""

    manifest: Manifest
    policy: AttentionPolicy
    history: History | None = None
    used: int = 0
    status: str = "tokens"

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.manifest.tenant

    @property
    def name(self) -> str:
        """Its name, one of a kind with its tenant."""
        return self.manifest.name

    @property
    def key(self) -> tuple[str, str]:
        """What its anchor in the engine is called."""
        return self.tenant, self.name

    @property
    def tree(self) -> tuple[str, AttentionPolicy]:
        """Where the engine keeps its checkpoints."""
        return self.tenant, self.policy

    @property
    def document_id(self) -> str | None:
        """The document whose reading it is; None for a session with a name of a client."""
        return self.name.removeprefix(DOCUMENT_PREFIX) if self.name.startswith(DOCUMENT_PREFIX) else None

    @property
    def saved_tokens(self) -> int:
        """Tokens after which the deepest saved state stands."""
        return self.manifest.checkpoints[-1].num_tokens if self.manifest.checkpoints else 0


@dataclass(slots=True)
class Hold:
    """The use of a name, by a client's request or for the server's own ``is_upkeep``."""

    busy: "dict[tuple[str, str], Hold]"
    key: tuple[str, str]
    is_upkeep: bool

    def release(self) -> None:
        """Let others use the name. Idempotent."""
        if self.busy.get(self.key) is self:
            del self.busy[self.key]


class Register:
    """All sessions by tenant and name. ``occupied`` is for the event loop, everything else for any thread."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._lock = threading.Lock()
        self._clock = 0
        self._busy: dict[tuple[str, str], Hold] = {}
        self._sessions = {
            (manifest.tenant, manifest.name): Session(
                manifest, policy_of(manifest.fingerprint), status="saved" if manifest.checkpoints else "tokens"
            )
            for manifest in manifests
        }

    def get(self, tenant: str, name: str) -> Session | None:
        """The session, if there is one."""
        with self._lock:
            return self._sessions.get((tenant, name))

    def known(self, tenant: str, name: str) -> Session:
        """The session. Raises ``UnknownSession``."""
        session = self.get(tenant, name)
        if session is None:
            raise UnknownSession(name)
        return session

    def put(self, session: Session) -> None:
        """Add a session, or replace the one of its name; it is now the one used last."""
        with self._lock:
            self._clock += 1
            session.used = self._clock
            self._sessions[session.key] = session

    def remove(self, tenant: str, name: str) -> None:
        """Take a session out; nothing if there is none."""
        with self._lock:
            self._sessions.pop((tenant, name), None)

    def all(self, tenant: str | None = None) -> list[Session]:
        """The sessions of a tenant, or of all, by name."""
        with self._lock:
            chosen = [each for each in self._sessions.values() if tenant is None or each.tenant == tenant]
        return sorted(chosen, key=lambda session: (session.name, session.tenant))

    def num_by_status(self) -> Mapping[str, int]:
        """How many sessions there are of each status, of statuses with any."""
        with self._lock:
            return Counter(session.status for session in self._sessions.values())

    def containing(self, tenant: str, document_id: str) -> list[Session]:
        """The tenant's sessions with a document in them, but for the document's own."""
        return [
            each
            for each in self.all(tenant)
            if document_id in each.manifest.documents and each.document_id != document_id
        ]

    @contextmanager
    def occupied(self, tenant: str, name: str, is_upkeep: bool = False) -> Iterator[Hold]:
        """Have the name, whether or not there is such a session, to oneself. Raises ``SessionBusy``."""
        key = (tenant, name)
        if key in self._busy:
            raise SessionBusy(name)
        hold = self._busy[key] = Hold(self._busy, key, is_upkeep)
        try:
            yield hold
        finally:
            hold.release()

    @asynccontextmanager
    async def taken(
        self, tenant: str, name: str, patience: bool = False, is_upkeep: bool = False
    ) -> AsyncIterator[Hold]:
        """As ``occupied``, but the server's own use of the name is waited for; with ``patience``, which makes it such a
        use itself, that of clients, too.

        Raises ``SessionBusy`` where a client has it, or where that takes too long.
        """
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        while (hold := self._busy.get((tenant, name))) is not None and (hold.is_upkeep or patience):
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(WAIT_SECONDS)
        with self.occupied(tenant, name, is_upkeep=is_upkeep or patience) as own:
            yield own


def policy_of(fingerprint: Mapping[str, str]) -> AttentionPolicy:
    """The policy in a fingerprint: its name, then sinks, window and select where these mean something."""
    text = fingerprint.get("policy", "")
    numbers = [int(digits) for digits in re.findall(r"\d+", text)]
    name = next((each for each in PolicyName if text.startswith(each.value)), PolicyName.FULL)
    return AttentionPolicy(name) if name is PolicyName.FULL else AttentionPolicy(name, *numbers[:3])
