"""The command line: one clear line for an error, exit statuses, and asking without a server."""

import io
import json
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from fakes_engine import FakeEngine
from fakes_library import FakeLibrary
from rich.console import Console
from typer.testing import CliRunner

from model.config import EngineConfig, ModelConfig
from model.engine.request import EvidenceSpan
from model.errors import CheckpointNotFound
from model.policy import AttentionPolicy
from model.tokenizer import Tokenizer
from retrieval.passage import DocumentError
from server.__main__ import main
from server.answers.inquiry import ServedModel
from server.bills.forecast import Forecaster
from server.commands.cli import app
from server.commands.serve import AddressUnavailable, bind, url_of
from server.commands.terminal import print_answer
from server.metrics import Metrics
from server.schemas import AnswerView
from server.services import Services, embedded_checkpoint
from server.settings import Settings

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
QUESTION = "Who paid invoice QX-7741-B?"

runner = CliRunner()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> tuple[FakeEngine, FakeLibrary]:
    """``fano ask`` over fakes instead of a model and a library."""
    engine, library = FakeEngine(), FakeLibrary()

    def load(settings: Settings, metrics: Metrics) -> Services:
        assert settings.max_sequences == 1 and settings.data_dir.name == "ask"
        served = ServedModel("fake", 0, AttentionPolicy(), "float32", 100_000)
        forecaster = Forecaster(ModelConfig.from_pretrained(embedded_checkpoint()), EngineConfig())
        return Services(settings, metrics, library, engine, tokenizer, served, forecaster)

    monkeypatch.setattr("server.commands.ask.load_services", load)
    monkeypatch.setattr("server.logs.configure_logging", lambda level: None)
    return engine, library


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.txt"
    path.write_text(TEXT)
    return path


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output == f"fano {version('fano')}\n"


def test_only_the_commands_that_work_exist() -> None:
    assert sorted(command.callback.__name__ for command in app.registered_commands if command.callback) == [
        "ask",
        "ingest",
        "plan",
        "serve",
        "top",
    ]
    assert [group.name for group in app.registered_groups] == ["keys"]


def test_an_answer_with_its_quoted_source(fakes: tuple[FakeEngine, FakeLibrary], book: Path, tmp_path: Path) -> None:
    engine, library = fakes
    engine.enqueue("It was Margarethe Oldenkamp.")
    done = runner.invoke(app, ["ask", str(book), QUESTION, "--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "It was Margarethe Oldenkamp." in done.stdout
    assert "[1] ledger.txt, page 1, characters 25 to 76" in done.stdout
    assert "Invoice QX-7741-B was paid by Margarethe Oldenkamp." in done.stdout
    assert book.read_text() == TEXT and library.closed


def test_a_pipe_gets_lines_as_they_are(fakes: tuple[FakeEngine, FakeLibrary], book: Path, tmp_path: Path) -> None:
    sentence = f"Invoice QX-7741-B {'was paid and ' * 20}then Margarethe Oldenkamp signed it."
    book.write_text(sentence)
    fakes[0].enqueue("yes " * 60)
    done = runner.invoke(app, ["ask", str(book), QUESTION, "--data-dir", str(tmp_path)])
    assert f"    {sentence}" in done.stdout.splitlines() and "\x1b" not in done.output
    assert ("yes " * 60).strip() in done.stdout


def test_json_is_the_whole_answer(fakes: tuple[FakeEngine, FakeLibrary], book: Path, tmp_path: Path) -> None:
    engine, _ = fakes
    engine.enqueue("Oldenkamp", spans=(EvidenceSpan(0, 41, 50),))
    arguments = ["ask", str(book), QUESTION, "--json", "--recall", "verbatim", "--max-tokens", "7"]
    done = runner.invoke(app, [*arguments, "--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    assert body["answer"] == "Oldenkamp" == TEXT[body["citations"][0]["start"] : body["citations"][0]["end"]]
    assert set(body) == {"answer", "found", "sources", "citations", "finish_reason", "usage"}
    assert engine.requests[0].sampling.max_tokens == 7


def test_the_same_file_is_read_once(fakes: tuple[FakeEngine, FakeLibrary], book: Path, tmp_path: Path) -> None:
    _, library = fakes
    done = runner.invoke(app, ["ask", str(book), str(book), QUESTION, "--data-dir", str(tmp_path)])
    assert done.exit_code == 0 and len(library.processed) == 1


def test_nothing_found_has_a_status_of_its_own(
    fakes: tuple[FakeEngine, FakeLibrary], book: Path, tmp_path: Path
) -> None:
    done = runner.invoke(app, ["ask", str(book), "Penguins?", "--data-dir", str(tmp_path)])
    assert done.exit_code == 3 and "Searched 2 passages of 'ledger.txt'." in done.stdout


def test_errors_are_one_line_and_status_1(fakes: tuple[FakeEngine, FakeLibrary], book: Path, tmp_path: Path) -> None:
    _, library = fakes
    where = ["--data-dir", str(tmp_path)]
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    empty = tmp_path / "empty.txt"
    empty.touch()
    for arguments, words in (
        ([str(tmp_path / "missing.txt"), QUESTION], "missing.txt is not a file"),
        ([str(empty), QUESTION], "is empty"),
        ([str(picture), QUESTION], "picture.png"),
    ):
        done = runner.invoke(app, ["ask", *arguments, *where])
        assert done.exit_code == 1 and words in done.stderr
        assert done.stderr.startswith("fano: ") and done.stderr.count("\n") == 1
    library.fail = DocumentError("encrypted", "it has a password")
    done = runner.invoke(app, ["ask", str(book), QUESTION, *where])
    assert (done.exit_code, done.stderr) == (1, "fano: ledger.txt could not be read: it has a password\n")


@pytest.mark.parametrize("arguments", [[], ["only a question?"], ["a.txt", " "], ["a", "b", "--recall", "free"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert runner.invoke(app, ["ask", *arguments]).exit_code == 2


def test_an_interrupt_at_any_time_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.commands.cli.app", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130


def test_a_file_is_no_question(book: Path) -> None:
    done = runner.invoke(app, ["ask", str(book), str(book)])
    assert done.exit_code == 2 and "comes last" in done.stderr


def test_a_missing_checkpoint_is_one_line(monkeypatch: pytest.MonkeyPatch, book: Path, tmp_path: Path) -> None:
    def missing(settings: Settings, metrics: Metrics) -> Services:
        raise CheckpointNotFound("no checkpoint at 'x'")

    monkeypatch.setattr("server.commands.ask.load_services", missing)
    monkeypatch.setattr("server.logs.configure_logging", lambda level: None)
    done = runner.invoke(app, ["ask", str(book), QUESTION, "--data-dir", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (1, "fano: no checkpoint at 'x'\n")


def test_serve_refuses_what_makes_no_sense(monkeypatch: pytest.MonkeyPatch, book: Path) -> None:
    monkeypatch.setattr("server.logs.configure_logging", lambda level: None)
    done = runner.invoke(app, ["serve", "--host", "0.0.0.0"])
    assert done.exit_code == 1 and "set FANO_API_KEY" in done.stderr and done.stderr.count("\n") == 1
    done = runner.invoke(app, ["serve"], env={"FANO_PROT": "1"})
    assert (done.exit_code, done.stderr) == (1, "fano: FANO_PROT is not a setting; did you mean FANO_PORT?\n")
    done = runner.invoke(app, ["serve", "--data-dir", str(book)])
    assert done.exit_code == 1 and "(Not a directory); name a directory" in done.stderr
    taken = bind("127.0.0.1", 0)
    with taken:
        done = runner.invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 1 and "choose another --port" in done.stderr


def test_addresses() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # or asyncio leaves Nagle's delay on
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(AddressUnavailable, match=r"203\.0\.113\.1:80 cannot be listened on"):
        bind("203.0.113.1", 80)


def test_quotes_stand_out_in_the_source() -> None:
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "total_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
        "fano": {
            "policy": {"name": "full"},
            "dtype": "float32",
            "resident_bytes": {},
            "archive_bytes": {},
            "start": "fresh",
            "state_capacity_bits": 1,
            "retrieval": {"used": True, "reason": "r"},
            "ttft_seconds": None,
        },
    }
    place = {"document": "d", "page": None}
    sources = [
        {"number": number, "name": "a.txt", "start": 10, "end": 26, "text": "[b]It is Oldenkamp", "score": 1.0, **place}
        for number in (1, 2)
    ]
    quote = {"source": 2, "start": 19, "end": 28, "quote": "Oldenkamp", "answer_start": 0, "answer_end": 9, **place}
    view = AnswerView.model_validate(
        {
            "answer": "Oldenkamp",
            "found": True,
            "sources": sources,
            "citations": [quote],
            "finish_reason": "stop",
            "usage": usage,
        }
    )
    out = io.StringIO()
    print_answer(view, Console(file=out, force_terminal=True, width=80, highlight=False))
    assert "[b]It is \x1b[1mOldenkamp\x1b[0m" in out.getvalue()
    assert "[2] a.txt, characters 10 to 26" in out.getvalue() and "[1]" not in out.getvalue()
    assert "1 more found" in out.getvalue()
