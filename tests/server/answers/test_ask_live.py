"""``fano ask`` as a process, with the model and the embedder that come along: in a terminal and in a pipe."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_terminal import terminal

pytestmark = pytest.mark.slow

SENTENCE = "Invoice QX-7741-B was paid by Margarethe Oldenkamp."
QUESTION = "Who paid invoice QX-7741-B?"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.txt"
    days = [f"On day {day} the harbour was closed and nobody came to see the captain." for day in range(300)]
    path.write_text("\n\n".join([*days[:100], SENTENCE, *days[100:]]))
    return path


def test_an_interrupted_reading_is_quiet_and_the_next_one_answers(book: Path, tmp_path: Path) -> None:
    where = ["--data-dir", str(tmp_path / "data")]
    with terminal("ask", str(book), QUESTION, "--recall", "verbatim", *where) as screen:
        screen.wait_for("ledger.txt: ")
        os.killpg(screen.process.pid, signal.SIGINT)
        assert screen.end() == 130
        assert "Traceback" not in screen.text and "Aborted" not in screen.text
        assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")  # the cursor is back
    with terminal("ask", str(book), QUESTION, "--recall", "verbatim", *where) as screen:
        assert screen.end() == 0
        # The bars are gone, and the quoted words stand out.
        assert screen.text.rindex("\x1b[2K") < screen.text.rindex("ledger.txt, characters")
        assert "\x1b[1m" in screen.text and "QX-7741-B" in screen.text
    with terminal("ask", str(book), QUESTION, "--recall", "verbatim", *where, NO_COLOR="1") as screen:
        assert screen.end() == 0
        assert "\x1b[3" not in screen.text.split("\x1b[?25h")[-1]

    command = [sys.executable, "-m", "server", "ask", str(book), QUESTION, "--recall", "verbatim", "--json", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    text = book.read_text()
    for citation in told["citations"]:
        assert text[citation["start"] : citation["end"]] == citation["quote"]
    assert told["found"] and SENTENCE in told["sources"][0]["text"]
