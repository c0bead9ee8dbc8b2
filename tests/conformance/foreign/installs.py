"""Clients that Fano does not depend on, each in a folder of its own below .venv/foreign, kept between runs."""

import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOREIGN = Path(sys.prefix) / "foreign"
INSTALL_SECONDS = 900


def python_of(name: str, *packages: str) -> Path:
    """The interpreter of an environment with these packages. Skips the test where they cannot be had."""
    python = FOREIGN / name / "bin" / "python"
    stamp = FOREIGN / name / "packages"
    if not stamp.is_file() or stamp.read_text() != "\n".join(packages):
        _run([sys.executable, "-m", "venv", "--clear", str(FOREIGN / name)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        stamp.write_text("\n".join(packages))
    return python


def with_own_packages(python: Path) -> None:
    """Let the environment see what is installed here, behind its own packages."""
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    own = [each for each in site.getsitepackages() if Path(each).is_dir()]
    (packages / "zz_fano.pth").write_text("".join(f"import site; site.addsitedir({each!r})\n" for each in own))


def node_with(name: str, package: str) -> Path:
    """A folder in which node finds the package. Skips the test where it cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed; on Debian: apt-get install nodejs npm")
    folder = FOREIGN / name
    if not (folder / "node_modules" / package).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), package])
    return folder


def version_of(python: Path, package: str) -> str:
    """The version of a package in the environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode:
        pytest.skip(f"cannot be installed here: {' '.join(command[-3:])}: {done.stderr[-300:]}")
