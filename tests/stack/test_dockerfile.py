"""The Dockerfile: linted, and its steps run as they stand in it, in a clean directory. No image is built."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stack.dockerfile_steps import command, script, steps
from stack.programs import ROOT, program, run
from stack.prometheus import program as prometheus_program

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
    assert "/readyz" in last


def test_its_steps_are_read_as_they_stand() -> None:
    read = list(steps('# syntax\nFROM a AS b\nRUN one \\\n # why\n && two\n\nCMD ["x"]\n'))
    assert [(step.instruction, step.rest) for step in read] == [
        ("FROM", "a AS b"),
        ("RUN", "one  && two"),
        ("CMD", '["x"]'),
    ]
    made = script(FILE.read_text(), {"EXTRA": "cpu"}, ["--a=b"])
    for step in steps(FILE.read_text()):
        if step.instruction == "RUN":
            assert step.rest.split("&&")[0].strip() in made
    with pytest.raises(ValueError, match="ONBUILD"):
        script("FROM a\nONBUILD RUN x", {}, [])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_its_steps_make_a_server_that_prometheus_sees(tmp_path: Path) -> None:
    """All of them, then what docker-compose.yml would start of it: without rights, on a file system that is read-only,
    beside Prometheus with the very files and options that are deployed."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    if os.geteuid() != 0 or "VERSION_CODENAME=bookworm" not in release or sys.version_info[:2] != (3, 11):
        pytest.skip("needs root, Debian bookworm and its Python 3.11, as the image has them")
    for name in ("unshare", "setpriv", "ip", "curl"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    prometheus_program("prometheus")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    file = tmp_path / "steps.sh"
    extra = services["fano"]["build"]["args"]["EXTRA"]
    file.write_text(script(FILE.read_text(), {"EXTRA": extra}, services["prometheus"]["command"]))
    place = {"WORK": tmp_path / "layers", "LOGS": tmp_path, "CONTEXT": ROOT, "PYTHON": Path(sys.executable).resolve()}
    place["WORK"].mkdir()
    own = {key: value for key, value in os.environ.items() if not key.startswith(("FANO_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command(file), env=own | {key: str(path) for key, path in place.items()}, capture_output=True, text=True
    )
    told = dict(
        line.removeprefix("told ").split(" ", 1) for line in done.stdout.splitlines() if line.startswith("told ")
    )
    logs = "".join(f"\n{log.name}: {log.read_text()[-1500:]}" for log in tmp_path.glob("*.log"))
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}{logs}"
    assert '"1"]' in told.pop("up") and int(told.pop("capabilities"), 16) == 0
    assert told == {
        "healthy": "1", "uid": "10001", "written_outside": "no", "without_key": "401", "with_key": "200",
        "scrape_without_key": "401", "document": "202", "console": "200", "rules": "10", "exit": "0",
    }  # fmt: skip
