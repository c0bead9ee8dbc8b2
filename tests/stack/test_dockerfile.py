"""The Dockerfile: linted, and its steps run as they stand in it, in a clean directory. No image is built."""

import re
from pathlib import Path

import pytest
from stack.programs import ROOT, program, run

FILE = ROOT / "deploy" / "Dockerfile"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_linter_finds_nothing() -> None:
    status, told, failure = run(program("hadolint", may_install=True), "--no-color", FILE)
    assert (status, told + failure) == (0, "")


def test_what_is_copied_is_there_and_in_the_context() -> None:
    """The build sees what .dockerignore lets through."""
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [match.split()[:-1] for match in re.findall(r"^COPY (?!--from)(.*)$", FILE.read_text(), re.MULTILINE)]
    names = {name for line in copied for name in line}
    assert names and names <= let_through
    assert all((ROOT / name).exists() for name in names)


def test_the_pinned_torch_is_the_projects() -> None:
    (pinned,) = re.findall(r'"(torch==[^"]*)"', FILE.read_text())
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()
    assert pinned in (ROOT / "Makefile").read_text()


def test_it_starts_as_somebody_without_rights() -> None:
    last = FILE.read_text().rsplit("FROM ", 1)[1]
    assert re.search(r"^USER (\d+):\d+$", last, re.MULTILINE)
    uid = re.search(r"--uid (\d+)", last)
    assert uid is not None and f"USER {uid[1]}:" in last
    assert "STOPSIGNAL SIGTERM" in last and 'CMD ["fano", "serve"]' in last
    assert Path("/readyz").name in last
