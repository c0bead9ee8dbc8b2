"""Builds the native kernels: ``python -m model.kernels.build``, once at install. Without a compiler Fano runs on torch.

The library is named by a digest of its sources, flags and platform, so that one built from other sources is never
loaded, and it is renamed into place, so that nobody ever sees half of one.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import platformdirs

SOURCE_DIRECTORY = Path(__file__).parent / "native"
PACKAGE_DIRECTORY = SOURCE_DIRECTORY / "build"
UNIT = "fano.cpp"
# No instruction set is named: wider ones are chosen while running. No C++ run-time library is needed.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fno-exceptions", "-fno-rtti", "-fno-math-errno")
ZIG_FLAGS = ("-mcpu=baseline", "-nostdlib++", "-g0", "-s")
COMPILE_SECONDS = 300

logger = logging.getLogger(__name__)


def build(compiler: str | None = None) -> tuple[Path | None, str]:
    """Compile the kernels unless this very library exists: ``(path, reason)``, or ``(None, reason)`` if that fails.

    ``compiler`` names one of ``system`` and ``ziglang``; by default the first that works. Writes into the package, or
    into the user's cache where the package is read-only. Raises nothing for a compiler that fails: the reason says so.
    """
    if (existing := find_library()) and compiler is None:
        return existing, f"already built: {existing}"
    failures = []
    for name, command in _compilers():
        if compiler in (None, name):
            try:
                path = _compile(command)
            except (OSError, subprocess.SubprocessError) as error:
                failures.append(f"{name} failed: {_last_line(error)}")
            else:
                return path, f"built with {shlex.join(command[:1] if name == 'system' else command[1:4])}: {path}"
    if not failures:
        failures.append("no C++ compiler: install g++ or clang++, or `pip install ziglang`")
    return None, "; ".join(failures)


def find_library() -> Path | None:
    """The library built from the present sources, if there is one."""
    return next((path for directory in _directories() if (path := directory / library_name()).is_file()), None)


def library_name() -> str:
    """File name of the library that belongs to the present sources on this platform."""
    digest = hashlib.sha256("\0".join((*FLAGS, sys.platform, platform.machine())).encode())
    for path in sorted(SOURCE_DIRECTORY.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"libfano-{digest.hexdigest()[:16]}.so"


def _directories() -> tuple[Path, Path]:
    return PACKAGE_DIRECTORY, Path(platformdirs.user_cache_dir("fano")) / "native"


def _compilers() -> Iterator[tuple[str, list[str]]]:
    named = os.environ.get("CXX")
    for candidate in ([*shlex.split(named)] if named else [],) if named else (["c++"], ["g++"], ["clang++"]):
        if shutil.which(candidate[0]):
            yield "system", [*candidate, *FLAGS]
    if find_spec("ziglang"):
        # Left to itself zig compiles for the CPU it runs on.
        yield "ziglang", [sys.executable, "-m", "ziglang", "c++", *FLAGS, *ZIG_FLAGS]


def _compile(command: list[str]) -> Path:
    directory = _writable_directory()
    handle, partial = tempfile.mkstemp(prefix="libfano-", suffix=".partial", dir=directory)
    os.close(handle)
    try:
        subprocess.run(
            [*command, str(SOURCE_DIRECTORY / UNIT), "-o", partial],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
        )
        Path(partial).chmod(0o755)
        return Path(partial).replace(directory / library_name())
    finally:
        Path(partial).unlink(missing_ok=True)


def _writable_directory() -> Path:
    package, cache = _directories()
    try:
        package.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=package):
            return package
    except OSError:
        cache.mkdir(parents=True, exist_ok=True)
        return cache


def _last_line(error: Exception) -> str:
    output = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    errors = [line for line in (output or "").splitlines() if "error" in line]
    return (errors or [str(error)])[0].strip()


def main() -> None:
    """Build and say in one line what came of it. The exit status is 0 either way: Fano runs without."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path, reason = build()
    if path:
        logger.info("native kernels: %s", reason)
    else:
        logger.warning("native kernels: none, Fano will run on torch alone and be slower (%s)", reason)


if __name__ == "__main__":
    main()
