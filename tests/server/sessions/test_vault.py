"""The vault: what was returned is on the disk, within the budget, shared where it may be, and gone when deleted."""

import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes_vault import (
    CALLS,
    OTHER_PARTS,
    PARTS,
    TENANT,
    WRITING_CALLS,
    Change,
    Disk,
    Model,
    files_below,
    on_disk,
    same_snapshot,
    same_snapshots,
    snapshot,
    tokens,
)

from server.error_table import row_of
from server.sessions import manifest as manifests
from server.sessions.errors import (
    ManifestTooNew,
    SegmentDamaged,
    SessionChanged,
    SessionError,
    SessionExists,
    SessionStorageDenied,
    SessionStorageFailed,
    SessionStorageFull,
    UnknownSession,
)
from server.sessions.manifest import RUN_TOKENS, Manifest
from server.sessions.vault import Vault

ROOMY = 1 << 30


@pytest.fixture(autouse=True)
def disk() -> Iterator[Disk]:
    with on_disk(Disk()) as disk:
        yield disk


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def vault(directory: Path) -> Vault:
    return Vault(directory, ROOMY)


def turn(vault: Vault, name: str = "s", count: int = 200, version: int = 0, seed: int = 0) -> Manifest:
    return vault.commit_turn(TENANT, name, tokens(count, seed), expected_version=version, fingerprint=PARTS)


def saved(vault: Vault, name: str = "s", *places: int) -> Manifest:
    manifest = turn(vault, name)
    return vault.save(TENANT, name, [snapshot(place) for place in places or (64, 200)], manifest.version)


def test_what_was_saved_is_there_after_reopening(directory: Path) -> None:
    seconds = iter([1000.0, 2000.0])
    vault = Vault(directory, ROOMY, clock=lambda: next(seconds))
    vault.commit_turn(
        TENANT, "s", tokens(200), expected_version=0, fingerprint=PARTS, documents=["doc_1"], prelude_tokens=64
    )
    vault.save(TENANT, "s", [snapshot(64), snapshot(200, 1)], 1)
    vault = Vault(directory, ROOMY)
    manifest = vault.get(TENANT, "s")
    assert (manifest.version, manifest.saved_version, manifest.is_saved) == (2, 2, True)
    assert (manifest.created_at, manifest.updated_at) == (1000.0, 2000.0)
    assert (manifest.documents, manifest.prelude_tokens, manifest.fingerprint) == (("doc_1",), 64, PARTS)
    assert vault.load_tokens(manifest) == tokens(200)
    assert same_snapshots(vault.load_snapshots(manifest), (snapshot(64), snapshot(200, 1)))
    assert same_snapshot(vault.load_snapshot(manifest, manifest.checkpoints[1]), snapshot(200, 1))
    assert vault.damaged == ()
    vault.check()


def test_names_and_tenants_are_apart_whatever_they_hold(vault: Vault, directory: Path) -> None:
    names = ["s", "../s", "S", "a/b", "x" * 300, "", ".", "\0", "naïve", "con", "😀"]
    for tenant in ("acme", "b", "../acme"):
        for name in names:
            vault.commit_turn(tenant, name, tokens(1), expected_version=0, fingerprint={"of": tenant + name})
    reopened = Vault(directory, ROOMY)
    for tenant in ("acme", "b", "../acme"):
        assert [manifest.name for manifest in reopened.manifests(tenant)] == sorted(names)
        for name in names:
            assert reopened.get(tenant, name).fingerprint == {"of": tenant + name}
    assert reopened.get("c", "s") is None and len(reopened.manifests()) == 33
    assert all(path.is_relative_to(directory) for path in files_below(directory.parent))


def test_files_are_for_this_user_alone(vault: Vault, directory: Path) -> None:
    saved(vault)
    for path in directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_turn_of_a_long_history_writes_its_last_run_alone(vault: Vault, disk: Disk) -> None:
    first = turn(vault, count=3 * RUN_TOKENS + 10)
    before = set(first.segments)
    second = turn(vault, count=3 * RUN_TOKENS + 30, version=1)
    assert len(before & set(second.segments)) == 3 and len(second.segments) == 4
    assert vault.counts().num_segments == 4
    assert vault.load_tokens(second) == tokens(3 * RUN_TOKENS + 30)
    vault.check()


def test_a_version_that_has_moved_on_is_refused(vault: Vault) -> None:
    with pytest.raises(UnknownSession):
        turn(vault, version=1)
    with pytest.raises(UnknownSession):
        vault.save(TENANT, "s", [], 0)
    turn(vault)
    for expected in (0, 2):
        with pytest.raises(SessionChanged, match=f"is at version 1, but the change was made for version {expected}"):
            turn(vault, version=expected)
        with pytest.raises(SessionChanged):
            vault.save(TENANT, "s", [snapshot(64)], expected)
    assert vault.get(TENANT, "s").version == 1


@pytest.mark.parametrize(
    ("count", "seed", "parts", "kept"),
    [
        (201, 0, PARTS, (64, 130, 200)),
        (200, 0, PARTS, (64, 130, 200)),
        (150, 0, PARTS, (64, 130)),
        (0, 0, PARTS, ()),
        (201, 1, PARTS, ()),
        (201, 0, OTHER_PARTS, ()),
    ],
)
def test_a_turn_keeps_the_checkpoints_of_what_it_has_in_common(
    vault: Vault, count: int, seed: int, parts: dict[str, str], kept: tuple[int, ...]
) -> None:
    saved(vault, "s", 64, 130, 200)
    manifest = vault.commit_turn(TENANT, "s", tokens(count, seed), expected_version=2, fingerprint=parts)
    assert tuple(checkpoint.num_tokens for checkpoint in manifest.checkpoints) == kept
    assert manifest.saved_version == (2 if kept else None) and not manifest.is_saved
    assert same_snapshots(vault.load_snapshots(manifest), tuple(map(snapshot, kept)))
    vault.check()


@pytest.mark.parametrize("place", [0, 63, 64, 65, 129, 130, 199])
def test_a_changed_token_drops_exactly_the_checkpoints_after_it(vault: Vault, place: int) -> None:
    saved(vault, "s", 64, 130, 200)
    changed = tokens(200)
    changed[place] += 1
    manifest = vault.commit_turn(TENANT, "s", changed, expected_version=2, fingerprint=PARTS)
    assert [each.num_tokens for each in manifest.checkpoints] == [each for each in (64, 130, 200) if each <= place]


def test_a_fork_shares_everything_and_outlives_its_source(vault: Vault) -> None:
    source = saved(vault)
    used = vault.disk_bytes
    fork = vault.fork(TENANT, "s", "t")
    assert vault.disk_bytes - used == len(fork.encode()) and fork.checksum == source.checksum
    vault.check()
    assert vault.delete(TENANT, "s") == len(source.encode())
    assert vault.load_tokens(fork) == tokens(200) and vault.get(TENANT, "s") is None
    assert same_snapshots(vault.load_snapshots(fork), (snapshot(64), snapshot(200)))
    vault.check()


def test_a_fork_needs_a_source_and_a_free_name(vault: Vault) -> None:
    with pytest.raises(UnknownSession):
        vault.fork(TENANT, "s", "t")
    turn(vault, "s")
    turn(vault, "t", seed=1)
    for taken in ("s", "t"):
        with pytest.raises(SessionExists, match=repr(taken)):
            vault.fork(TENANT, "s", taken)
    assert vault.load_tokens(vault.get(TENANT, "t")) == tokens(200, 1)


def test_nothing_of_a_deleted_session_stays(vault: Vault, directory: Path) -> None:
    saved(vault)
    used = vault.disk_bytes
    assert vault.delete(TENANT, "s") == used > 0
    assert files_below(directory) == [] and vault.disk_bytes == 0
    with pytest.raises(UnknownSession, match="'s'"):
        vault.delete(TENANT, "s")
    vault.check()


def test_sessions_go_with_the_document_they_contain(vault: Vault) -> None:
    for tenant, name, documents in [("a", "1", "xy"), ("a", "2", "y"), ("a", "3", ""), ("b", "4", "x")]:
        vault.commit_turn(tenant, name, tokens(9), expected_version=0, fingerprint=PARTS, documents=list(documents))
    assert [each.name for each in vault.containing("a", "x")] == ["1"]
    vault.fork("a", "1", "5")
    assert vault.delete_containing("a", "x") == ("1", "5")
    assert [each.name for each in vault.manifests()] == ["2", "3", "4"]
    assert vault.delete_containing("a", "x") == ()
    vault.check()


def test_counts_are_those_of_the_disk(vault: Vault, directory: Path) -> None:
    saved(vault, "s")
    turn(vault, "t")
    counts = vault.counts()
    assert (counts.num_sessions, counts.num_saved, counts.num_damaged) == (2, 1, 0)
    files = files_below(directory)
    assert counts.num_segments == len([path for path in files if path.suffix == ".safetensors"])
    assert counts.segment_bytes + counts.manifest_bytes == vault.disk_bytes == sum(p.stat().st_size for p in files)


def test_beyond_the_budget_nothing_is_changed(directory: Path) -> None:
    vault = Vault(directory, ROOMY)
    first = turn(vault, count=100)
    used = vault.disk_bytes
    files = {path: path.read_bytes() for path in files_below(directory)}
    vault = Vault(directory, used + 100)
    changes: list[Callable[[], object]] = [
        lambda: turn(vault, count=101, version=1),
        lambda: turn(vault, "t"),
        lambda: vault.save(TENANT, "s", [snapshot(100)], 1),
        lambda: vault.fork(TENANT, "s", "t"),
    ]
    for change in changes:
        with pytest.raises(SessionStorageFull, match=rf"take {used} of {used + 100} bytes, and \d+ more.*FANO_SESS"):
            change()
        assert {path: path.read_bytes() for path in files_below(directory)} == files
        vault.check()
    assert vault.get(TENANT, "s") == first
    vault.delete(TENANT, "s")
    with pytest.raises(SessionStorageFull):
        Vault(directory, 10).commit_turn(TENANT, "s", tokens(9), expected_version=0, fingerprint=PARTS)


def test_the_budget_is_used_to_the_last_byte(directory: Path, tmp_path: Path) -> None:
    needed = Vault(tmp_path / "other", ROOMY, clock=lambda: 1.0)
    turn(needed)
    for budget, is_enough in ((needed.disk_bytes - 1, False), (needed.disk_bytes, True)):
        vault = Vault(directory, budget, clock=lambda: 1.0)
        if is_enough:
            turn(vault)
            assert vault.disk_bytes == vault.max_bytes == budget
        else:
            with pytest.raises(SessionStorageFull):
                turn(vault)


def test_a_damaged_manifest_is_set_aside_and_told_of(vault: Vault, directory: Path) -> None:
    saved(vault, "good")
    segments = set(saved(vault, "bad", 70, 180).segments)
    (path,) = [path for path in directory.rglob("*.json") if b'"name":"bad"' in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(b'"num_tokens":200', b'"num_tokens":201'))
    for _ in range(2):
        vault = Vault(directory, ROOMY)
        (damaged,) = vault.damaged
        assert damaged.path == path.with_name(f"{path.name}.damaged") and "checksum differs" in damaged.reason
        assert damaged.segment_names == segments and not path.exists()
        assert vault.get(TENANT, "bad") is None and [each.name for each in vault.manifests()] == ["good"]
        vault.check()
    turn(vault, "bad")
    path.write_bytes(b"torn")
    vault = Vault(directory, ROOMY)
    assert len(vault.damaged) == vault.counts().num_damaged == 2
    vault.check()
    vault.delete(TENANT, "bad")
    assert vault.damaged == () and [each.name for each in vault.manifests()] == ["good"]
    vault.check()
    vault.delete(TENANT, "good")
    assert files_below(directory) == []


def test_a_damaged_manifest_goes_with_a_document_it_mentions(vault: Vault, directory: Path) -> None:
    vault.commit_turn(TENANT, "s", tokens(9), expected_version=0, fingerprint=PARTS, documents=["doc_9"])
    (path,) = directory.rglob("*.json")
    path.write_bytes(path.read_bytes()[:-5])
    vault = Vault(directory, ROOMY)
    assert len(vault.damaged) == 1
    vault.delete_containing(TENANT, "doc_8")
    assert len(vault.damaged) == 1
    assert vault.delete_containing(TENANT, "doc_9") == ()
    assert vault.damaged == () and files_below(directory) == []


def test_a_later_format_stops_the_opening_and_nothing_is_touched(
    vault: Vault, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(manifests, "FORMAT", 2)
        turn(vault, "later", seed=1)
    turn(vault)
    (directory / "segments" / "00").mkdir(exist_ok=True)
    (directory / "segments" / "00" / f"00{'a' * 62}.safetensors").write_bytes(b"of the later version")
    files = files_below(directory)
    with pytest.raises(ManifestTooNew, match="start the version that wrote it"):
        Vault(directory, ROOMY)
    assert files_below(directory) == files


def test_opening_sweeps_what_nobody_refers_to(vault: Vault, directory: Path) -> None:
    saved(vault)
    files = files_below(directory)
    folder = files[-1].parent
    (folder / f".{folder.name}.part").write_bytes(b"half")
    (directory / "manifests" / ".x.json.1.part").write_bytes(b"half")
    orphan = directory / "segments" / "ff" / f"ff{'0' * 62}.safetensors"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"orphan")
    Vault(directory, ROOMY).check()
    assert files_below(directory) == files


def test_what_was_found_damaged_is_written_again_by_who_has_it(vault: Vault, directory: Path) -> None:
    manifest = saved(vault)
    for path in sorted(directory.rglob("*.safetensors")):
        content = path.read_bytes()
        for damage in (lambda path: path.write_bytes(b"x" * path.stat().st_size), Path.unlink):
            damage(path)
            with pytest.raises(SegmentDamaged, match=path.name):
                vault.load_tokens(manifest)
                vault.load_snapshots(manifest)
            manifest = turn(vault, version=manifest.version)
            manifest = vault.save(TENANT, "s", [snapshot(64), snapshot(200)], manifest.version)
            assert path.read_bytes() == content and vault.load_tokens(manifest) == tokens(200)
            vault.check()
    path.unlink()
    vault = Vault(directory, ROOMY)
    vault.save(TENANT, "s", [snapshot(64), snapshot(200)], vault.get(TENANT, "s").version)
    vault.check()


def test_a_turn_goes_on_over_a_damaged_history(vault: Vault) -> None:
    manifest = saved(vault)
    (run,) = manifest.token_runs
    (path,) = vault._stock.segments._directory.rglob(f"{run.segment.name}*")
    path.write_bytes(b"")
    longer = turn(vault, count=300, version=2)
    assert longer.checkpoints == () and vault.load_tokens(longer) == tokens(300)
    vault.check()


def test_who_reads_what_has_moved_on_is_told_so(vault: Vault) -> None:
    old = saved(vault)
    new = turn(vault, version=2, count=300)
    assert same_snapshots(vault.load_snapshots(old), (snapshot(64), snapshot(200)))
    with pytest.raises(SessionChanged):
        vault.load_tokens(old)
    vault.delete(TENANT, "s")
    for manifest in (old, new):
        with pytest.raises(UnknownSession):
            vault.load_tokens(manifest)
    vault.check()


CHANGES: dict[str, Callable[[Model], Change]] = {
    "turn": lambda model: model.commit_turn("s", tokens(260)),
    "save": lambda model: model.save("s", (snapshot(100, 1),)),
    "fork": lambda model: model.fork("s", "t"),
    "delete": lambda model: model.delete("s"),
}


def each_failure(vault: Vault, disk: Disk, what: str, code: int) -> Iterator[tuple[Model, Model, SessionError | None]]:
    """Make the change while its first call fails, its second and so on: the models before and after it, the error.

    It ends with the first time that the change succeeds.
    """
    before = Model()
    for change in (before.commit_turn("s", tokens(200)), before.save("s", (snapshot(64), snapshot(200)))):
        change(vault)
    error: SessionError | None = None
    for number in range(60):
        after = before.copy()
        change = CHANGES[what](after)
        disk.num_calls, disk.fail_at, disk.code = 0, number, code
        try:
            change(vault)
            error = None
        except SessionError as raised:
            error = raised
        disk.fail_at = None
        yield before, after, error
        if error is None:
            assert number >= 4 and after.differences(vault) == []
            return
    pytest.fail("the change never succeeds")


@pytest.mark.parametrize("what", ["turn", "save", "fork"])
@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (errno.ENOSPC, SessionStorageFull, "No space left"),
        (errno.EDQUOT, SessionStorageFull, "quota"),
        (errno.EACCES, SessionStorageDenied, "Permission denied; let the server's user"),
        (errno.EROFS, SessionStorageDenied, "Read-only"),
        (errno.EIO, SessionStorageFailed, "check the disk"),
    ],
)
def test_whatever_call_fails_the_session_is_as_it_was(
    vault: Vault, directory: Path, disk: Disk, what: str, code: int, error: type[Exception], words: str
) -> None:
    files: dict[Path, bytes] = {}
    for before, _, raised in each_failure(vault, disk, what, code):
        if raised:
            assert type(raised) is error and words in str(raised)
            assert row_of(raised).status in (500, 507)
            now = {path: path.read_bytes() for path in files_below(directory)}
            files = files or now
            assert now == files
            assert before.differences(vault) == []
        vault.check()


@pytest.mark.parametrize("lasting", [WRITING_CALLS, CALLS])
@pytest.mark.parametrize("what", CHANGES)
def test_where_undoing_fails_too_the_outcome_is_that_of_a_crash(
    vault: Vault, disk: Disk, what: str, lasting: tuple[str, ...]
) -> None:
    disk.lasting = lasting
    for before, after, raised in each_failure(vault, disk, what, errno.ENOSPC):
        vault.check()
        if raised and before.differences(vault):
            assert after.differences(vault) == []
            break  # It has happened after all.


def test_a_deletion_that_fails_has_not_happened_or_goes_on(vault: Vault, directory: Path, disk: Disk) -> None:
    num_undone = 0
    for before, after, raised in each_failure(vault, disk, "delete", errno.EACCES):
        vault.check()
        if raised and before.differences(vault):
            assert after.differences(vault) == [] and files_below(directory) == []
            break
        num_undone += raised is not None
    assert num_undone == 3, "removing the manifest, opening and synchronising its folder"


def test_a_turn_does_not_fail_because_old_runs_cannot_be_removed(
    vault: Vault, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = turn(vault).segments
    real = os.unlink

    def unlink(path: os.PathLike[str], *rest: object) -> None:
        if old in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        assert turn(vault, version=1, count=300).version == 2
        assert [path for path in files_below(directory) if old in path.name]
        with pytest.raises(SessionStorageDenied):
            vault.delete(TENANT, "s")
    vault.check()
    assert vault.load_tokens(vault.get(TENANT, "s")) == tokens(300)


def test_a_temporary_file_that_cannot_be_removed_at_once_is_later(
    vault: Vault, directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def unlink(path: os.PathLike[str], *rest: object) -> None:
        if str(path).endswith(".part"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        real(path, *rest)

    disk.fail_at = disk.num_calls + 4  # The write of the segment: a folder was made and synchronised, a file opened.
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(SessionStorageFull):
            turn(vault)
        assert [path.suffix for path in files_below(directory)] == [".part"]
    vault.check()
    assert files_below(directory) == []


def test_what_a_fork_is_to_share_is_not_removed_meanwhile(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(vault)
    deleting = threading.Thread(target=vault.delete, args=(TENANT, "s"))
    real = vault._stock.publish

    def publish(*arguments: Any) -> None:
        deleting.start()
        deleting.join(0.1)
        real(*arguments)

    monkeypatch.setattr(vault._stock, "publish", publish)
    fork = vault.fork(TENANT, "s", "t")
    deleting.join()
    assert vault.get(TENANT, "s") is None
    assert same_snapshots(vault.load_snapshots(fork), (snapshot(64), snapshot(200)))
    vault.check()


def test_every_byte_is_synchronised_before_the_name_that_refers_to_it(
    vault: Vault, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order in which a power failure would need them: contents, names of segments, then the manifest."""
    synced: set[str] = set()
    open_names: set[str] = set()
    real_fsync, real_replace, real_mkdir, real_unlink = os.fsync, os.replace, os.mkdir, os.unlink

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.add(path)
        open_names.difference_update({name for name in open_names if str(Path(name).parent) == path})
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        assert str(source) in synced, f"{target} got its name before its bytes were on the disk"
        if Path(target).parent.name == "manifests":
            assert not open_names, f"the manifest refers to names that are not on the disk: {open_names}"
        real_replace(source, target)
        open_names.add(str(target))

    def mkdir(path: Path, *rest: int) -> None:
        real_mkdir(path, *rest)
        open_names.add(str(path))

    def unlink(path: Path, *rest: object) -> None:
        if str(path).endswith(".safetensors"):
            assert not any("manifests" in name for name in open_names), f"{path} went before its manifest had"
            kept = b"".join(each.read_bytes() for each in directory.rglob("*.json"))
            assert Path(path).stem.encode() not in kept, f"{path} is still referred to"
        real_unlink(path, *rest)
        if not str(path).endswith(".part"):
            open_names.add(str(path))

    for name, function in (("fsync", fsync), ("replace", replace), ("mkdir", mkdir), ("unlink", unlink)):
        monkeypatch.setattr(os, name, function)
    saved(vault)
    assert not open_names, "what was returned is not on the disk"
    vault.fork(TENANT, "s", "t")
    assert not open_names
    turn(vault, version=2, count=300)
    open_names.clear()  # Old runs that a power failure brings back are swept when the vault is opened.
    vault.delete(TENANT, "s")
    vault.delete(TENANT, "t")
    assert not open_names


def test_one_vault_serves_many_threads(directory: Path) -> None:
    """Sessions that share all content come and go at once, while others read them."""
    vault = Vault(directory, ROOMY)
    saved(vault, "shared", 64, 200)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(6):
                name = f"s{number}"
                manifest = turn(vault, name)
                manifest = vault.save(TENANT, name, [snapshot(64), snapshot(130, round_ % 2), snapshot(200)], 1)
                vault.fork(TENANT, "shared", f"f{number}.{round_}")
                manifest = turn(vault, name, 260, 2)
                assert vault.load_tokens(manifest) == tokens(260)
                wanted = (snapshot(64), snapshot(130, round_ % 2), snapshot(200))
                assert same_snapshots(vault.load_snapshots(manifest), wanted)
                vault.delete(TENANT, f"f{number}.{round_}")
                vault.delete(TENANT, name)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    def read() -> None:
        while not stop.is_set():
            for manifest in vault.manifests(TENANT):
                try:
                    assert len(vault.load_tokens(manifest)) == manifest.num_tokens
                    vault.load_snapshots(manifest)
                except (UnknownSession, SessionChanged):
                    continue
                except BaseException as error:  # noqa: BLE001 - told to the main thread
                    failures.append(error)
                    return

    stop = threading.Event()
    reader = threading.Thread(target=read)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in (reader, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    reader.join()
    assert failures == []
    vault.check()
    assert [each.name for each in vault.manifests()] == ["shared"]


def test_of_two_turns_at_once_one_is_refused(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    turn(vault)
    segments = vault._stock.segments
    real = segments.write

    def write(sealed: object) -> None:
        monkeypatch.setattr(segments, "write", real)
        turn(vault, version=1, count=250)
        real(sealed)

    monkeypatch.setattr(segments, "write", write)
    with pytest.raises(SessionChanged, match="is at version 2"):
        turn(vault, version=1, count=300)
    assert vault.load_tokens(vault.get(TENANT, "s")) == tokens(250)
    vault.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte of its own."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_disk_that_is_really_full_nothing_is_changed(small_disk: Path) -> None:
    vault = Vault(small_disk / "sessions", ROOMY)
    model = Model()
    model.commit_turn("s", tokens(1000))(vault)
    length = 1000
    with pytest.raises(SessionStorageFull, match="No space left on device"):
        for number in range(1, 100):
            after = model.copy()
            length = 1000 + number
            after.commit_turn(f"s{number}", tokens(length, number))(vault)
            model = after.copy()
            after.save(f"s{number}", (snapshot(length, number),))(vault)
            model = after
    vault.check()
    assert model.differences(vault) == []
    assert model.differences(Vault(small_disk / "sessions", ROOMY)) == []
    model.delete("s1")(vault)
    model.fork("s", "t")(vault)
    assert model.differences(vault) == []


def test_on_a_disk_that_really_became_read_only_everything_can_still_be_read(small_disk: Path) -> None:
    vault = Vault(small_disk / "sessions", ROOMY)
    saved(vault)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for change in (
        lambda: turn(vault, version=2, count=300),
        lambda: vault.save(TENANT, "s", [snapshot(70)], 2),
        lambda: vault.fork(TENANT, "s", "t"),
        lambda: vault.delete(TENANT, "s"),
    ):
        with pytest.raises(SessionStorageDenied, match="Read-only file system; let the server's user"):
            change()
        assert same_snapshots(vault.load_snapshots(vault.get(TENANT, "s")), (snapshot(64), snapshot(200)))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    vault.check()
    turn(vault, version=2, count=300)
    vault.check()
