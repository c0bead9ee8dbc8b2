"""The durable half of sessions: histories and states on the disk, whole after any crash, within a budget.

    vault = Vault(directory, max_bytes)
    manifest = vault.commit_turn(tenant, name, token_ids, expected_version=0, fingerprint=parts)    # 0: a new session
    manifest = vault.save(tenant, name, snapshots, manifest.version)
    vault.load_tokens(manifest), vault.load_snapshots(manifest), vault.load_snapshot(manifest, manifest.checkpoints[-1])
    vault.get(tenant, name), vault.manifests(tenant), vault.containing(tenant, document_id)
    vault.fork(tenant, name, to), vault.delete(tenant, name), vault.delete_containing(tenant, document_id)
    vault.disk_bytes, vault.max_bytes, vault.counts(), vault.damaged, vault.check()

Every change writes new segments first, then replaces the manifest in one step, then removes what nobody refers to any
more. So at every moment the manifests on the disk refer to whole segments only.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.durability import sync_directory
from server.sessions.errors import SegmentDamaged, SessionChanged, SessionExists, UnknownSession, storage_errors
from server.sessions.manifest import Manifest, SavedCheckpoint, key_of
from server.sessions.manifest_files import DamagedManifest, StoredManifest
from server.sessions.packing import Packer, Unpacker, num_shared, open_tokens, seal_tokens
from server.sessions.stock import Stock

if TYPE_CHECKING:
    from model.cache.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class VaultCounts:
    """What is on the disk. Of the sessions, ``num_saved`` have state saved, of their version or an earlier one."""

    num_sessions: int
    num_saved: int
    num_damaged: int
    num_segments: int
    segment_bytes: int
    manifest_bytes: int


class Vault:
    """Sessions below ``directory``, at most ``max_bytes`` of files at any moment, those included being written.

    One vault serves all threads of the process that holds the data directory. Opening sweeps what looks unfinished,
    so the lock on the data directory must be held before. Saving does not hold up the turns of other sessions.

    What was returned is durable. Every method that writes may raise these, and then nothing was changed:
        SessionStorageFull: the budget or the disk has no room.
        SessionStorageDenied, SessionStorageFailed: the operating system refuses for another reason.
    Only where undoing fails as well is the outcome that of a crash: the vault reads the disk anew before its next
    call, and finds the session as it was or as it was to be.
    """

    def __init__(self, directory: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """Open what is there. ``clock`` tells seconds since 1970.

        A damaged manifest is kept under a name that ends in ``.damaged``, with the segments it names, and is told of
        in ``damaged``. Nobody is served from it: its session is unknown until a turn makes it anew.

        Raises:
            ManifestTooNew: a later version of this program wrote here; nothing was touched.
        """
        self._directory = directory
        self._clock = clock
        self._stock = Stock(directory, max_bytes)

    @property
    def damaged(self) -> tuple[DamagedManifest, ...]:
        """Manifests that cannot be used."""
        with self._stock.known():
            return self._stock.damaged

    @property
    def max_bytes(self) -> int:
        """The budget."""
        return self._stock.ledger.max_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files, as counted, those included that are being written."""
        with self._stock.known():
            return self._stock.ledger.used_bytes

    def counts(self) -> VaultCounts:
        """What is on the disk, as counted."""
        stock = self._stock
        with stock.known():
            return VaultCounts(
                num_sessions=len(stock.stored),
                num_saved=sum(each.manifest.saved_version is not None for each in stock.stored.values()),
                num_damaged=len(stock.damaged),
                num_segments=len(stock.ledger.entries),
                segment_bytes=stock.ledger.segment_bytes,
                manifest_bytes=stock.ledger.manifest_bytes,
            )

    def manifests(self, tenant: str | None = None) -> tuple[Manifest, ...]:
        """The sessions of a tenant, or of all, by tenant and name."""
        with self._stock.known():
            every = [each.manifest for each in self._stock.stored.values()]
        wanted = [each for each in every if tenant is None or each.tenant == tenant]
        return tuple(sorted(wanted, key=lambda manifest: (manifest.tenant, manifest.name)))

    def get(self, tenant: str, name: str) -> Manifest | None:
        """The session as it is now."""
        with self._stock.known():
            stored = self._stock.stored.get(key_of(tenant, name))
        return stored.manifest if stored else None

    def containing(self, tenant: str, document_id: str) -> tuple[Manifest, ...]:
        """The sessions of a tenant that contain a document."""
        return tuple(each for each in self.manifests(tenant) if document_id in each.documents)

    def commit_turn(
        self,
        tenant: str,
        name: str,
        token_ids: Sequence[int],
        *,
        expected_version: int,
        fingerprint: Mapping[str, str],
        documents: Sequence[str] = (),
        prelude_tokens: int = 0,
    ) -> Manifest:
        """Make ``token_ids`` the whole history of the session, one version on. Only runs that changed are written.

        Saved checkpoints stay as far as the history is the same, if the fingerprint is.

        Raises:
            UnknownSession, SessionChanged: it is not at ``expected_version``; 0 stands for one that is not there.
        """
        with self._stock.changing():
            before = self._at_version(tenant, name, expected_version)
            runs, sealed = seal_tokens(token_ids)
            now = self._clock()
            turn = Manifest(
                tenant=tenant,
                name=name,
                version=expected_version + 1,
                created_at=before.manifest.created_at if before else now,
                updated_at=now,
                fingerprint=dict(fingerprint),
                num_tokens=len(token_ids),
                token_runs=runs,
                documents=tuple(documents),
                prelude_tokens=prelude_tokens,
                checkpoints=(),
                saved_version=None,
            )
            if before and before.manifest.checkpoints and turn.fingerprint == before.manifest.fingerprint:
                turn = self._with_kept_checkpoints(turn, before.manifest, token_ids)
            self._stock.publish(turn, before, sealed)
            return turn

    def save(self, tenant: str, name: str, snapshots: Sequence["Snapshot"], expected_version: int) -> Manifest:
        """Make ``snapshots`` of the session's history, shallow to deep, its saved state, one version on.

        Raises:
            UnknownSession, SessionChanged: the session is not at ``expected_version``.
        """
        with self._stock.changing():
            before = self._at_version(tenant, name, expected_version)
            if before is None:
                raise UnknownSession(name)
            packer = Packer()
            saved = replace(
                before.manifest,
                version=expected_version + 1,
                updated_at=self._clock(),
                checkpoints=tuple(packer.pack(snapshot) for snapshot in snapshots),
                saved_version=expected_version + 1,
            )
            self._stock.publish(saved, before, packer.sealed)
            return saved

    def fork(self, tenant: str, name: str, to: str) -> Manifest:
        """A second session with the same history and state, which are shared: only a manifest is written.

        Raises:
            UnknownSession: there is nothing to fork.
            SessionExists: the new name is taken.
        """
        with self._stock.changing(), self._stock.lock:  # Meanwhile nobody may remove what is to be shared.
            source = self.get(tenant, name)
            if source is None:
                raise UnknownSession(name)
            if self.get(tenant, to):
                raise SessionExists(to)
            now = self._clock()
            fork = replace(source, name=to, created_at=now, updated_at=now)
            self._stock.publish(fork, None, {})
            return fork

    def delete(self, tenant: str, name: str) -> int:
        """Remove a session and what is damaged of it, so that nothing of it stays on the disk. The bytes it freed.

        Raises:
            UnknownSession: there is none.
            SessionStorageDenied, SessionStorageFailed: it still stands as it was; or it is gone, and only segments
                could not be removed, which go before the next call.
        """
        key = key_of(tenant, name)
        with self._stock.changing():
            with self._stock.lock:
                stored = self._stock.stored.get(key)
                damaged = [each for each in self._stock.damaged if each.key == key]
                if stored is None and not damaged:
                    raise UnknownSession(name)
                freed_bytes, folders = self._stock.withdraw(stored, damaged)
            for folder in folders:
                sync_directory(folder)
            return freed_bytes

    def delete_containing(self, tenant: str, document_id: str) -> tuple[str, ...]:
        """Remove the tenant's sessions with a document, and damaged ones that mention it. The names of the former."""
        names: list[str] = []
        for manifest in self.containing(tenant, document_id):
            with suppress(UnknownSession):  # Somebody else removed it first.
                self.delete(tenant, manifest.name)
                names.append(manifest.name)
        with self._stock.changing():
            with self._stock.lock:
                mentioning = [each for each in self._stock.damaged if document_id.encode() in each.path.read_bytes()]
                _, folders = self._stock.withdraw(None, mentioning)
            for folder in folders:
                sync_directory(folder)
        return tuple(names)

    def load_tokens(self, manifest: Manifest) -> "array[int]":
        """The history. Raises SegmentDamaged; UnknownSession or SessionChanged if it is not on the disk any more."""
        token_ids = array("i")
        with self._reading(manifest):
            for run in manifest.token_runs:
                token_ids.extend(open_tokens(self._stock.segments, run))
        return token_ids

    def load_snapshots(self, manifest: Manifest) -> tuple["Snapshot", ...]:
        """The saved state, shallow to deep. Raises as ``load_tokens`` does."""
        unpacker = Unpacker(self._stock.segments)
        with self._reading(manifest):
            return tuple(unpacker.unpack(checkpoint) for checkpoint in manifest.checkpoints)

    def load_snapshot(self, manifest: Manifest, checkpoint: SavedCheckpoint) -> "Snapshot":
        """One of the manifest's checkpoints. Raises as ``load_tokens`` does."""
        with self._reading(manifest):
            return Unpacker(self._stock.segments).unpack(checkpoint)

    def check(self) -> None:
        """Assert conservation: on the disk are the files that are referred to, whole and no others, as counted."""
        self._stock.check()

    def _at_version(self, tenant: str, name: str, expected: int) -> StoredManifest | None:
        with self._stock.lock:
            stored = self._stock.stored.get(key_of(tenant, name))
        if stored is None and expected:
            raise UnknownSession(name)
        found = stored.manifest.version if stored else 0
        if found != expected:
            raise SessionChanged(name, expected, found)
        return stored

    def _with_kept_checkpoints(self, turn: Manifest, before: Manifest, token_ids: Sequence[int]) -> Manifest:
        """``turn`` with those of ``before``'s checkpoints whose tokens the new history begins with."""
        shared = 0
        for old, new in zip(before.token_runs, turn.token_runs, strict=False):
            if old == new:
                shared += old.num_tokens
                continue
            with suppress(SegmentDamaged), self._reading(before):  # What cannot be compared counts as changed.
                shared += num_shared(
                    open_tokens(self._stock.segments, old), token_ids[shared : shared + new.num_tokens]
                )
            break
        kept = tuple(each for each in before.checkpoints if each.num_tokens <= shared)
        return replace(turn, checkpoints=kept, saved_version=before.saved_version if kept else None)

    @contextmanager
    def _reading(self, manifest: Manifest) -> Iterator[None]:
        """Tell damage, which is noted so that the same content is written again, from a session that has moved on."""
        try:
            with storage_errors(self._directory):
                yield
        except SegmentDamaged as error:
            with self._stock.lock:
                now = self._stock.stored.get(manifest.key)
                if now is None:
                    raise UnknownSession(manifest.name) from error
                if now.manifest != manifest:  # A turn, a deletion or a new session of the name came in between.
                    raise SessionChanged(manifest.name, manifest.version, now.manifest.version) from error
                self._stock.ledger.doubt(error.path.stem)
            raise
