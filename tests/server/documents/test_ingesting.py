"""The worker: order, making room, leaving off, and no document's trouble ends it."""

import errno
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes_library import FakeLibrary

from retrieval.passage import Document, Progress
from server.documents.ingesting import Ingestor
from server.documents.uploads import Upload
from server.errors import StorageFull


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def upload(directory: Path, name: str) -> Upload:
    path = directory / name
    path.write_text(f"Text of {name}.")
    return Upload(name, None, path, path.stat().st_size, b"")


def accept(ingestor: Ingestor, directory: Path, name: str) -> str:
    document, is_new = ingestor.accept("default", upload(directory, name), "text/plain", False)
    assert is_new
    return document.id


def test_what_an_earlier_run_left_is_taken_up_first_and_in_order(tmp_path: Path) -> None:
    library = FakeLibrary()
    ids = [accept(Ingestor(library), tmp_path, name) for name in ("a", "b", "c")]
    ingestor = Ingestor(library)
    ingestor.start()
    wait_until(lambda: library.pending() == [])
    ingestor.stop()
    assert library.processed == ids


def test_a_stop_leaves_the_rest_pending(tmp_path: Path) -> None:
    library = FakeLibrary()
    library.hold()
    ingestor = Ingestor(library)
    ingestor.start()
    ids = [accept(ingestor, tmp_path, name) for name in ("a", "b")]
    ingestor.stop()
    assert library.pending() == ids and library.processed == []
    ingestor.stop()


class StubbornLibrary(FakeLibrary):
    """A step that does not ask whether to stop."""

    def process(self, document_id: str, stop: Callable[[], bool] = lambda: False) -> None:
        self._may_process.wait()
        super().process(document_id, stop)


def test_a_step_that_takes_long_is_not_waited_for(tmp_path: Path) -> None:
    library = StubbornLibrary()
    library.hold()
    ingestor = Ingestor(library)
    ingestor.start()
    accept(ingestor, tmp_path, "a")
    time.sleep(0.05)
    assert ingestor.stop(0.01) is False
    library.release()
    assert ingestor.stop() is True


class TwoStageLibrary(FakeLibrary):
    """Documents become answerable at once; the rest of the work waits for ``finish``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.finish = threading.Event()
        self.begun: list[str] = []

    def process(self, document_id: str, stop: Callable[[], bool] = lambda: False) -> None:
        self.begun.append(document_id)
        self._set(document_id, answerable=True, progress=Progress("dense", 0, 1, None))
        while not self.finish.wait(0.002):
            if stop():
                return
        super().process(document_id, stop)


def test_a_document_that_can_be_asked_makes_room_for_one_that_cannot(tmp_path: Path) -> None:
    library = TwoStageLibrary()
    ingestor = Ingestor(library)
    ingestor.start()
    first = accept(ingestor, tmp_path, "a")
    wait_until(lambda: library.begun == [first])
    second = accept(ingestor, tmp_path, "b")
    wait_until(lambda: library.get("default", second).answerable)
    assert library.begun[:2] == [first, second]
    library.finish.set()
    wait_until(lambda: library.pending() == [])
    ingestor.stop()


def test_all_that_wait_can_be_asked_before_any_is_finished(tmp_path: Path) -> None:
    library = TwoStageLibrary()
    ids = [accept(Ingestor(library), tmp_path, name) for name in ("a", "b", "c")]
    ingestor = Ingestor(library)
    ingestor.start()
    wait_until(lambda: all(library.get("default", each).answerable for each in ids))
    assert library.begun[:3] == ids and library.processed == []
    library.finish.set()
    wait_until(lambda: library.pending() == [])
    ingestor.stop()


def test_after_a_restart_what_cannot_be_asked_goes_first(tmp_path: Path) -> None:
    library = TwoStageLibrary()
    library.finish.set()
    first, second = (accept(Ingestor(library), tmp_path, name) for name in ("a", "b"))
    library._set(first, answerable=True)
    ingestor = Ingestor(library)
    ingestor.start()
    wait_until(lambda: library.pending() == [])
    ingestor.stop()
    assert library.begun == [second, first]


class BrokenLibrary(FakeLibrary):
    """The document named bad breaks the library."""

    def process(self, document_id: str, stop: Callable[[], bool] = lambda: False) -> None:
        document: Document = self.get("default", document_id)
        if document.name == "bad":
            raise RuntimeError("broken")
        super().process(document_id, stop)


def test_a_defect_over_one_document_does_not_end_the_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = BrokenLibrary()
    ingestor = Ingestor(library)
    ingestor.start()
    bad = accept(ingestor, tmp_path, "bad")
    good = accept(ingestor, tmp_path, "good")
    wait_until(lambda: library.processed == [good])
    ingestor.stop()
    assert library.pending() == [bad]
    assert "could not be processed" in caplog.text


def fill_a_database(*_: object) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    try:
        connection.execute("CREATE TABLE texts (text TEXT)")
    finally:
        connection.close()


def fill_a_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def break_a_disk(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("trouble", "told"), [(fill_a_database, StorageFull), (fill_a_disk, StorageFull), (break_a_disk, OSError)]
)
def test_a_full_disk_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., None], told: type[Exception]
) -> None:
    library = FakeLibrary()
    monkeypatch.setattr(library, "add", trouble)
    with pytest.raises(told):
        Ingestor(library).accept("default", upload(tmp_path, "a"), "text/plain", False)
