"""Any course of changes, failures of the disk and reopenings agrees with a model in memory, and is conserved."""

import errno
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes_vault import (
    CALLS,
    PARTS,
    TENANT,
    WRITING_CALLS,
    Change,
    Disk,
    Model,
    files_below,
    named_error,
    on_disk,
    random_change,
    snapshot,
    tokens,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.sessions import manifest, packing
from server.sessions.errors import SessionChanged, SessionError, SessionExists, SessionStorageFull, UnknownSession
from server.sessions.vault import Vault

names = st.sampled_from(["a", "b", "c", "d"])
faults = st.none() | st.builds(
    Disk,
    fail_at=st.integers(0, 12) | st.integers(0, 45),
    code=st.sampled_from([errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO]),
    lasting=st.sampled_from([(), WRITING_CALLS, CALLS]),
)


class Sessions(RuleBasedStateMachine):
    """One vault beside one model. A change may meet a disk that fails once, or from then on until it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for module in (manifest, packing):
            self.patch.setattr(module, "RUN_TOKENS", 32)
        self.directory = Path(tempfile.mkdtemp())
        self.model = Model()

    @initialize(max_bytes=st.sampled_from([30_000, 100_000, 1 << 30]))
    def open(self, max_bytes: int) -> None:
        self.vault = Vault(self.directory, max_bytes)

    @rule(name=names, keep=st.floats(0, 1), more=st.integers(0, 80), seed=st.integers(0, 3), disk=faults)
    def commit_turn(self, name: str, keep: float, more: int, seed: int, disk: Disk | None) -> None:
        before = self.model.sessions.get(name)
        beginning = before.token_ids[: round(keep * len(before.token_ids))] if before else tokens(0)
        history = beginning + tokens(more, seed)
        self.change(lambda model: model.commit_turn(name, history, (f"doc_{seed}",)), disk)

    @rule(name=names, places=st.sets(st.floats(0, 1), max_size=3), seed=st.integers(0, 2), disk=faults)
    def save(self, name: str, places: set[float], seed: int, disk: Disk | None) -> None:
        if name not in self.model.sessions:
            with pytest.raises(UnknownSession):
                self.vault.save(TENANT, name, [], 1)
            return
        length = len(self.model.sessions[name].token_ids)
        counts = sorted({round(place * length) for place in places} - {0})
        self.change(lambda model: model.save(name, tuple(snapshot(count, seed) for count in counts)), disk)

    @rule(name=names, to=names, disk=faults)
    def fork(self, name: str, to: str, disk: Disk | None) -> None:
        if name not in self.model.sessions or to in self.model.sessions:
            with pytest.raises((UnknownSession, SessionExists)):
                self.vault.fork(TENANT, name, to)
            return
        self.change(lambda model: model.fork(name, to), disk)

    @rule(name=names, disk=faults)
    def delete(self, name: str, disk: Disk | None) -> None:
        if name not in self.model.sessions:
            with pytest.raises(UnknownSession):
                self.vault.delete(TENANT, name)
            return
        self.change(lambda model: model.delete(name), disk, is_deletion=True)

    @precondition(lambda self: self.model.sessions)
    @rule(data=st.data())
    def refuse_a_version_that_has_moved_on(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.sessions)))
        with pytest.raises(SessionChanged):
            self.vault.commit_turn(
                TENANT, name, [], expected_version=self.model.sessions[name].version + 1, fingerprint=PARTS
            )

    @rule(disk=faults)
    def reopen(self, disk: Disk | None) -> None:
        if disk:
            with suppress(SessionError), on_disk(disk):
                Vault(self.directory, self.vault.max_bytes)
        self.vault = Vault(self.directory, self.vault.max_bytes)

    def change(self, make: Callable[[Model], Change], disk: Disk | None, is_deletion: bool = False) -> None:
        after = self.model.copy()
        change = make(after)
        disk = disk or Disk()
        disk.num_calls, disk.has_failed = 0, False
        try:
            with on_disk(disk):
                change(self.vault)
        except SessionError as error:
            assert named_error(error)
            if isinstance(error, SessionStorageFull) and "more are needed" in str(error):
                assert disk.num_calls == 0
            else:
                assert disk.has_failed, error
            # A deletion that has begun goes on; and where undoing failed too, the outcome is that of a crash.
            if (is_deletion or disk.lasting) and after.differences(self.vault) == []:
                self.model = after
        else:
            self.model = after

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "vault"):
            return
        self.vault.check()
        assert self.model.differences(self.vault) == []
        assert self.vault.disk_bytes <= self.vault.max_bytes

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.directory)


QUICK = settings(max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
TestSessions = Sessions.TestCase
TestSessions.settings = QUICK


@pytest.mark.slow
class TestManySessions(Sessions.TestCase):
    settings = settings(QUICK, max_examples=400, stateful_step_count=30)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Model]]:
    """A directory in which some sessions have a past."""
    directory = tmp_path_factory.mktemp("archive") / "sessions"
    model, choose = Model(), random.Random(1)
    with on_disk(Disk()):
        vault = Vault(directory, 1 << 30)
        while len(model.sessions) < 4 or not any(each.snapshots for each in model.sessions.values()):
            random_change(model, choose)(vault)
        yield directory, model


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_a_file_nothing_wrong_is_ever_returned(
    archive: tuple[Path, Model], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source, model = archive
    directory = tmp_path_factory.mktemp("copy") / "sessions"
    shutil.copytree(source, directory)
    path = data.draw(st.sampled_from(files_below(directory)))
    content = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    what = data.draw(st.sampled_from(["flip", "cut", "nought", "remove", "swap"]))
    if what == "flip":
        content[offset] ^= 1 << data.draw(st.integers(0, 7))
    elif what == "cut":
        del content[offset:]
    elif what == "nought":
        content[offset:] = bytes(len(content) - offset)
    elif what == "swap":
        other = data.draw(st.sampled_from([each for each in files_below(directory) if each != path]))
        content = bytearray(other.read_bytes())
    is_changed = bytes(content) != path.read_bytes()
    if what == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    vault = Vault(directory, 1 << 30)
    num_lost = 0
    for name, expected in model.sessions.items():
        try:
            assert Model({name: expected}).differences(vault)[1:] == []
            assert vault.load_tokens(vault.get(TENANT, name)) == expected.token_ids
        except SessionError as error:
            assert path.name in str(error)
            num_lost += 1
        except AttributeError:  # get() gave None
            assert path.suffix == ".json" and (what == "remove" or vault.damaged[0].path.name.startswith(path.name))
            num_lost += 1
    if is_changed or what == "remove":
        assert num_lost >= 1, "the damage went unnoticed"
    shutil.rmtree(directory)
