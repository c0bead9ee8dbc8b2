"""``fano top``: a picture of a running server in a terminal, in a pipe, as JSON, and what it says without a server."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, serving
from fakes_terminal import terminal
from rich.console import Console
from typer.testing import CliRunner

from server.commands.bars import bar
from server.commands.cli import app
from server.commands.live_reading import LiveReading, ServerSilent, look
from server.commands.top import picture, show_once

HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
runner = CliRunner()


@pytest.fixture
def url(world: World) -> Iterator[str]:
    world.library.put(TEXT)
    with serving(world.app) as url:
        yield url


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "server", "top", *arguments]
    own = {key: value for key, value in os.environ.items() if key != "FANO_API_KEY"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=own | environment)


def shown(reading: LiveReading, earlier: LiveReading | None = None, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(picture(reading, earlier))
    return out.getvalue()


def test_a_pipe_gets_one_picture_without_colours(url: str) -> None:
    done = run("--url", url)
    assert (done.returncode, done.stderr) == (0, "") and "\x1b" not in done.stdout
    assert "fake-reader" in done.stdout or "ready for" in done.stdout
    for words in ("running 0 of 8", "waiting 0 of 64", "documents    ready 1", "weights", "unaccounted", "planned"):
        assert words in done.stdout, words
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_is_one_document_with_the_same_bill(url: str) -> None:
    httpx.post(f"{url}/v1/chat/completions", json=HELLO)
    done = run("--json", "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    memory = httpx.get(f"{url}/v1/memory").json()
    assert told["memory"]["device"] == memory["device"] and told["stage"] == "ready"
    assert told["tokens"]["completion"] == 1 and told["documents"]["ready"] == 1
    assert told["requests_limit"] == {"running": 8, "waiting": 64} and told["build"]["version"]


def test_rates_are_of_the_time_between_two_looks(url: str, world: World) -> None:
    httpx.post(f"{url}/v1/chat/completions", json=HELLO)
    first = look(url, None)
    world.engine.enqueue("one two three four five")
    httpx.post(f"{url}/v1/chat/completions", json=HELLO)
    second = look(url, None)
    rate = second.tokens_per_second(first)["completion"]
    assert rate == pytest.approx(5 / (second.at - first.at))
    assert f"written {rate:,.0f}" in shown(second, first) and "written 6 so far" in shown(second)
    # A server that was started anew has counted less than before.
    assert first.tokens_per_second(second)["completion"] == 0


def test_bars_are_shares() -> None:
    def cells(*shares: float) -> str:
        return bar([(share, "green") for share in shares], cells=10).plain

    assert cells(0.5) == "█████░░░░░" and cells(0, 0) == "░░░░░░░░░░" and cells(1) == "█" * 10
    assert cells(0.001) == "█░░░░░░░░░", "a little is not nothing"
    assert cells(0.3, 0.3) == "██████░░░░" and cells(0.9, 0.9) == "█" * 10


def test_what_is_tight_stands_out(url: str, world: World) -> None:
    world.engine.tell(num_waiting=60, checkpoint_bytes=2_000_000_000)
    world.engine.tell(checkpoint_budget_bytes=1 << 30)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=80, highlight=False)
    show_once(look(url, None), console)
    assert "\x1b[31mwaiting 60 of 64" in out.getvalue()
    (sessions,) = [line for line in out.getvalue().splitlines() if "2.0 GiB" in line and "sessions" in line]
    assert "\x1b[31m█" in sessions


def test_errors_are_one_line_and_status_1(new_world: WorldMaker) -> None:
    for arguments, words in (
        (("--url", "http://127.0.0.1:1"), "cannot be reached (Connection refused)"),
        (("--url", "nowhere"), "--url is 'nowhere', expected something like http"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and done.stdout == "" and words in done.stderr, done.stderr
        assert done.stderr.startswith("fano: ") and done.stderr.count("\n") == 1
    world = new_world(host="0.0.0.0", api_key="a-long-random-string")
    with serving(world.app) as url:
        done = run("--url", url)
        assert done.returncode == 1 and "needs a key; set FANO_API_KEY" in done.stderr
        assert run("--url", url, FANO_API_KEY="a-long-random-string").returncode == 0
        with pytest.raises(ServerSilent, match="401"):
            look(url, "wrong")


def test_wrong_usage_is_status_2() -> None:
    assert runner.invoke(app, ["top", "--interval", "0"]).exit_code == 2
    assert runner.invoke(app, ["top", "surplus"]).exit_code == 2


def test_a_reader_that_leaves_is_no_error(url: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "server", "top", "--json", "--url", url]
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == "" and done.returncode == 1


def test_a_terminal_gets_it_live_until_ctrl_c(url: str) -> None:
    with terminal("top", "--url", url, "--interval", "0.2") as screen:
        screen.wait_for("written", count=3)
        assert "\x1b[?1049h" in screen.text and "\x1b[3" in screen.text  # a screen of its own, and colours
        os.killpg(screen.process.pid, signal.SIGINT)
        assert screen.end() == 130
        # The terminal is as it was: its own screen, its cursor, and no trace of a failure.
        assert screen.text.rindex("\x1b[?1049l") > screen.text.rindex("\x1b[?1049h")
        assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l") and "Traceback" not in screen.text


def test_it_outlives_the_server(world: World) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(serving(world.app))
        with terminal("top", "--url", url, "--interval", "0.2") as screen:
            screen.wait_for("written")
            stack.close()
            screen.wait_for("cannot be reached")
            assert screen.process.poll() is None


def test_no_color_is_without_colours(url: str) -> None:
    with terminal("top", "--once", "--url", url, NO_COLOR="1") as screen:
        assert screen.end() == 0
        assert "weights" in screen.text and "\x1b[3" not in screen.text
