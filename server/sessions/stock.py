"""The files of all sessions as one whole: what stands there, and changes that happen altogether or not at all."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from retrieval.durability import make_directory
from server.sessions.errors import SessionChanged, UnknownSession, storage_errors
from server.sessions.ledger import Ledger
from server.sessions.manifest import Manifest
from server.sessions.manifest_files import DamagedManifest, ManifestFiles, StoredManifest
from server.sessions.packing import Sealed
from server.sessions.segments import SegmentRef, Segments


class Stock:
    """Manifests by key, the segments they refer to, and the count of both.

    Changes are made inside ``changing()``. Where one fails and cannot be undone either, the stock is in doubt, and
    reads the disk anew when the last change under way has ended. ``lock`` may be taken again by who holds it.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.segments = Segments(directory / "segments")
        self.ledger = Ledger(max_bytes)
        self.stored: dict[str, StoredManifest] = {}
        self.damaged: tuple[DamagedManifest, ...] = ()
        self.lock = threading.Condition()
        self._directory = directory
        self._files = ManifestFiles(directory / "manifests")
        self._num_changing = 0
        self._is_certain = False
        with self.known():
            pass

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One of the changes under way, begun without doubt. Failures of the disk get their names."""
        with storage_errors(self._directory):
            with self.lock:
                while self._num_changing and self._is_in_doubt():
                    self.lock.wait()
                if self._is_in_doubt():
                    self._recover()
                self._num_changing += 1
            try:
                yield
            finally:
                with self.lock:
                    self._num_changing -= 1
                    self.lock.notify_all()

    @contextmanager
    def known(self) -> Iterator[None]:
        """Hold the lock over what is in memory; in doubt the disk is read first, unless changes are under way."""
        with storage_errors(self._directory), self.lock:
            if self._is_in_doubt() and not self._num_changing:
                self._recover()
            yield

    def publish(self, manifest: Manifest, before: StoredManifest | None, sealed: Sealed) -> None:
        """Put ``manifest`` in the place of ``before``, with the segments of ``sealed`` that are not there yet.

        Raises:
            SessionStorageFull, OSError: nothing was changed.
            UnknownSession, SessionChanged: ``before`` is not what stands there any more; nothing was changed.
        """
        num_bytes = len(manifest.encode())
        with ExitStack() as undo:
            with self.lock:
                to_write = self.ledger.hold(manifest.segments.values(), num_bytes)
            undo.callback(self._give_back, manifest, num_bytes, to_write)
            # A session may refer to a damaged segment whose content nobody has at hand; it stays damaged.
            written = [sealed[name] for name in to_write if name in sealed]
            self.segments.write(written)
            with self.lock:
                self._expect(manifest, before)
                self._files.write(manifest, before.manifest if before else None)
                undo.pop_all()
                self.ledger.settle(segment.ref for segment in written)
                self.stored[manifest.key] = StoredManifest(manifest, num_bytes)
                if before:
                    self._drop(self.ledger.release(before.manifest.segments, before.num_bytes))

    def withdraw(self, stored: StoredManifest | None, damaged: Sequence[DamagedManifest]) -> tuple[int, set[Path]]:
        """Remove manifests, then the segments that nobody refers to any more.

        The caller holds the lock. Returned are the bytes this freed, and the folders to synchronise without the lock.

        Raises:
            OSError: what is still in ``stored`` and ``damaged`` stands as it was; the rest goes before the next change.
        """
        used_bytes = self.ledger.used_bytes
        folders: set[Path] = set()
        if stored:
            self._files.remove(stored.manifest)
            del self.stored[stored.manifest.key]
            folders |= self._remove(stored.manifest.segments, stored.num_bytes)
        for each in damaged:
            with self._in_doubt_if_it_fails():
                self._files.remove_damaged(each)
            self.damaged = tuple(other for other in self.damaged if other is not each)
            folders |= self._remove(each.segment_names, each.num_bytes)
        return used_bytes - self.ledger.used_bytes, folders

    def check(self) -> None:
        """Assert conservation: on the disk are the files that are referred to, whole and no others, as counted."""
        with self.lock:
            while self._num_changing:
                self.lock.wait()
        with self.known():
            scan = self._files.scan()
            sizes, temporary = self.segments.scan()
            assert not temporary and not scan.temporary, f"temporary files {[*temporary, *scan.temporary]}"
            assert scan.stored == self.stored, "the manifests on the disk are not those in memory"
            assert [each.path for each in scan.damaged] == [each.path for each in self.damaged]
            refs = [ref for each in self.stored.values() for ref in each.manifest.segments.values()]
            wrong = {ref.name for ref in refs if sizes.get(ref.name) != ref.num_bytes}
            assert not wrong, f"segments missing or of another size: {sorted(wrong)}"
            references = Counter(ref.name for ref in refs)
            references.update(name for each in self.damaged for name in each.segment_names)
            assert references == {name: entry.num_references for name, entry in self.ledger.entries.items()}
            assert sizes == {name: entry.num_bytes for name, entry in self.ledger.entries.items()}
            assert all(entry.is_whole for entry in self.ledger.entries.values()), "segments found damaged"
            assert self.ledger.segment_bytes == sum(sizes.values())
            files = [self._files.path(key) for key in self.stored] + [each.path for each in self.damaged]
            assert self.ledger.manifest_bytes == sum(path.stat().st_size for path in files)

    def _expect(self, manifest: Manifest, before: StoredManifest | None) -> None:
        now = self.stored.get(manifest.key)
        if now is before:
            return
        if now is None:
            raise UnknownSession(manifest.name)
        raise SessionChanged(manifest.name, before.manifest.version if before else 0, now.manifest.version)

    def _give_back(self, manifest: Manifest, num_bytes: int, to_write: Iterable[str]) -> None:
        with self.lock:
            self._drop(self.ledger.release(manifest.segments, num_bytes))
            if any(name in self.ledger.entries for name in to_write):
                self._is_certain = False  # Others refer to it too, and what stands under its name is not known.

    def _drop(self, garbage: Iterable[str]) -> None:
        """Remove segments that nobody refers to; what cannot be removed now will be before the next change."""
        if self._is_in_doubt():
            return  # The manifest that stands on the disk may be one that refers to them.
        try:
            self.segments.remove(garbage)
        except OSError:
            self._is_certain = False

    def _remove(self, names: Iterable[str], manifest_bytes: int) -> set[Path]:
        """As ``_drop`` for the segments of a manifest that is gone, but here it is promised that they go too."""
        with self._in_doubt_if_it_fails():
            return self.segments.remove(self.ledger.release(names, manifest_bytes))

    @contextmanager
    def _in_doubt_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._is_certain = False
            raise

    def _is_in_doubt(self) -> bool:
        return not self._is_certain or not self._files.is_certain or self.segments.has_leftovers

    def _recover(self) -> None:
        """Read everything on the disk anew, and sweep what no manifest refers to."""
        self._is_certain = False
        for name in ("segments", "manifests"):
            make_directory(self._directory / name)
        self._files.set_aside()
        scan = self._files.scan()
        sizes, temporary = self.segments.scan()
        ledger = Ledger(self.ledger.max_bytes)
        for stored in scan.stored.values():
            ledger.manifest_bytes += stored.num_bytes
            for ref in stored.manifest.segments.values():
                ledger.found(ref, sizes)
        damaged = [replace(each, segment_names=each.segment_names & sizes.keys()) for each in scan.damaged]
        for each in damaged:
            ledger.manifest_bytes += each.num_bytes
            for name in each.segment_names:
                ledger.found(SegmentRef(name, sizes[name]), sizes)
        for path in (*temporary, *scan.temporary):
            path.unlink(missing_ok=True)
        self.segments.remove(sizes.keys() - ledger.entries.keys())
        self.ledger, self.stored, self.damaged = ledger, scan.stored, tuple(damaged)
        self._is_certain = self._files.is_certain = True
        self.segments.has_leftovers = False
