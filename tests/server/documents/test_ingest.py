"""``fano ingest``: files into a data directory, in a pipe and in a terminal, interrupted and taken up again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_terminal import terminal
from typer.testing import CliRunner

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.passage import DocumentStatus
from server.commands.cli import app
from server.commands.ingest import Interrupted, ingest_files
from server.settings import Settings

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
runner = CliRunner()


class SlowEmbedder(HashEmbedder):
    """Interrupts who ingests after some batches, as a user would."""

    interrupt_at: int | None = None

    def embed_passages(self, texts):  # type: ignore[no-untyped-def]
        if self.interrupt_at is not None:
            self.interrupt_at -= 1
            if self.interrupt_at == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return super().embed_passages(texts)


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> SlowEmbedder:
    """Instead of the one that comes along, which takes seconds to load."""
    embedder = SlowEmbedder(dimension=16)
    monkeypatch.setattr("retrieval.embedder.MiniLMEmbedder", lambda **_: embedder)
    monkeypatch.setattr("server.logs.configure_logging", lambda level: None)
    return embedder


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.txt"
    path.write_text(TEXT)
    return path


def opened(data_dir: Path) -> Library:
    return Library.open(data_dir, HashEmbedder(dimension=16), has_reader=True)


def test_files_become_documents_that_can_be_asked(embedder: SlowEmbedder, book: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.md"
    other.write_text("# Notes\n\nThe harbour is closed.")
    arguments = ["ingest", str(book), str(other), str(book), "--data-dir", str(tmp_path / "data")]
    done = runner.invoke(app, arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0][:4] for line in lines] == ["doc_", "doc_"] and lines[0].endswith("76  ledger.txt")
    assert lines[1].split()[1] == "reading" and "\x1b" not in done.stdout
    library = opened(tmp_path / "data")
    documents = library.list("default")
    assert [each.id for each in documents] == [line.split()[0] for line in lines]
    assert all(each.answerable and each.num_tokens and each.status is DocumentStatus.READING for each in documents)
    found = library.search("default", "Who paid invoice QX-7741-B?", [documents[0].id])
    assert "Margarethe Oldenkamp" in found.passages[0].text
    library.close()
    # The same again is the same documents, and nothing to do.
    assert runner.invoke(app, arguments).stdout == done.stdout


def test_json_is_one_document_and_tenants_are_apart(embedder: SlowEmbedder, book: Path, tmp_path: Path) -> None:
    where = ["--data-dir", str(tmp_path / "data"), "--json"]
    done = runner.invoke(app, ["ingest", str(book), "--tenant", "acme", *where], env={"FANO_READ_DOCUMENTS": "false"})
    assert (done.exit_code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    (document,) = told["documents"]
    assert (document["status"], document["answerable"], told["refused"]) == ("ready", True, [])
    library = opened(tmp_path / "data")
    assert [each.id for each in library.list("acme")] == [document["id"]] and library.list("default") == []
    library.close()


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_taken(
    embedder: SlowEmbedder, book: Path, tmp_path: Path
) -> None:
    picture, empty, broken = tmp_path / "picture.png", tmp_path / "empty.txt", tmp_path / "broken.pdf"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    empty.touch()
    broken.write_bytes(b"%PDF-1.7\n" + bytes(100))
    files = [str(each) for each in (tmp_path / "missing.txt", picture, empty, broken, book)]
    done = runner.invoke(app, ["ingest", *files, "--data-dir", str(tmp_path / "data")])
    assert done.exit_code == 1
    told = done.stderr.splitlines()
    assert len(told) == 4 and all(line.startswith("fano: ") for line in told)
    for line, words in zip(told, ("missing.txt is not a file", "picture.png", "is empty", "broken.pdf"), strict=True):
        assert words in line
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["failed", "reading"]


def test_an_interruption_is_taken_up_where_it_was(embedder: SlowEmbedder, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text("\n\n".join(f"On day {day} of {number} the harbour was closed." for day in range(2000)))
    settings = Settings(data_dir=tmp_path / "data")
    embedder.interrupt_at = 3
    with pytest.raises(Interrupted, match="stopped with 2 left; the same command goes on from here"):
        ingest_files(settings, files, "default")
    library = opened(settings.data_dir)
    first, second = library.list("default")
    assert 0 < first.progress.done < first.progress.total and second.status is DocumentStatus.QUEUED
    library.close()
    done = ingest_files(settings, files, "default")
    assert [each.id for each in done.documents] == [first.id, second.id] and done.refused == []
    assert all(each.status is DocumentStatus.READING for each in done.documents)


def test_a_directory_in_use_is_told_with_what_helps(embedder: SlowEmbedder, book: Path, tmp_path: Path) -> None:
    library = opened(tmp_path / "data")
    done = runner.invoke(app, ["ingest", str(book), "--data-dir", str(tmp_path / "data")])
    library.close()
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "is in use by another process; send the files to the server that runs on it" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["a.txt", "--tenant", "No Such"], ["a.txt", "--surplus"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert runner.invoke(app, ["ingest", *arguments]).exit_code == 2


@pytest.mark.slow
def test_a_terminal_sees_the_bar_and_a_pipe_does_not(tmp_path: Path) -> None:
    """With the real embedder, as a process of its own."""
    file, data = tmp_path / "days.txt", tmp_path / "data"
    file.write_text("\n\n".join(f"On day {day} the harbour was closed." for day in range(250)))
    with terminal("ingest", str(file), "--data-dir", str(data)) as screen:
        screen.wait_for("1 of 1, days.txt: ")
        os.killpg(screen.process.pid, signal.SIGINT)
        assert screen.end() == 130
        assert "stopped with 1 left; the same command goes on from here" in screen.text
        assert "Traceback" not in screen.text and "\x1b[?25h" in screen.text  # the cursor is back
    command = [sys.executable, "-m", "server", "ingest", str(file), "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("doc_") and "\x1b" not in done.stdout


def test_a_plan_that_nobody_reads_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        command = [sys.executable, "-m", "server", "plan"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == "" and done.returncode == 1
