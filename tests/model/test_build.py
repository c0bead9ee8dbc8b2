"""Building the native kernels: which compiler, where to, and what happens without one."""

import ctypes
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from model.kernels import build as builder
from model.kernels.native import ABI_VERSION, InstructionSet


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the sources and an empty user cache, so that the library in use is left alone."""
    sources = tmp_path / "native"
    shutil.copytree(builder.SOURCE_DIRECTORY, sources, ignore=shutil.ignore_patterns("build"))
    monkeypatch.setattr(builder, "SOURCE_DIRECTORY", sources)
    monkeypatch.setattr(builder, "PACKAGE_DIRECTORY", sources / "build")
    monkeypatch.setattr(builder.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def system_compiler() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no system compiler on this machine")


def without_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.shutil, "which", lambda name: None)
    monkeypatch.setattr(builder, "find_spec", lambda name: None)


def test_builds_once_and_leaves_nothing_else(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_compiler()
    # All of the sources, in an eighth of the time: with -O3 they were built when Fano was installed.
    flags = tuple("-O0" if flag == "-O3" else flag for flag in builder.FLAGS)
    assert flags != builder.FLAGS
    monkeypatch.setattr(builder, "FLAGS", flags)
    path, reason = builder.build()
    assert path == builder.PACKAGE_DIRECTORY / builder.library_name()
    assert reason.startswith("built with")
    assert [*builder.PACKAGE_DIRECTORY.iterdir()] == [path]
    assert ctypes.CDLL(str(path)).fano_abi_version() == ABI_VERSION
    modified = path.stat().st_mtime_ns
    assert builder.build() == (path, f"already built: {path}")
    assert path.stat().st_mtime_ns == modified


def test_a_change_of_a_source_makes_another_library(places: Path) -> None:
    stale = builder.PACKAGE_DIRECTORY / builder.library_name()
    stale.parent.mkdir()
    stale.touch()
    assert builder.find_library() == stale
    with (builder.SOURCE_DIRECTORY / "vector.h").open("a") as source:
        source.write("// changed\n")
    assert builder.find_library() is None


def test_a_read_only_package_gets_its_library_in_the_cache(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A compiler that leaves an empty file where the last argument says.
    monkeypatch.setenv("CXX", """sh -c 'shift $(($# - 1)); : > "$1"' compiler""")
    # A directory cannot be made below a file: the error of a read-only place, also for root.
    monkeypatch.setattr(builder, "PACKAGE_DIRECTORY", builder.SOURCE_DIRECTORY / builder.UNIT / "build")
    path, _ = builder.build()
    assert path == places / "cache" / "fano" / "native" / builder.library_name()
    assert builder.find_library() == path


def test_without_a_compiler_the_reason_names_the_remedy(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compilers(monkeypatch)
    assert builder.build() == (None, "no C++ compiler: install g++ or clang++, or `pip install ziglang`")


def test_the_command_warns_once_and_succeeds_without_a_compiler(
    places: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_compilers(monkeypatch)
    with caplog.at_level(logging.INFO):
        builder.main()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "run on torch alone" in caplog.text and "install g++" in caplog.text


def test_a_compiler_that_fails_is_named_with_its_error(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_compiler()
    # The compiler ends here: after an #error it would read all the rest.
    (builder.SOURCE_DIRECTORY / "vector.h").write_text('#include "not-today.h"\n')
    path, reason = builder.build("system")
    assert path is None
    assert "system failed" in reason and "not-today.h" in reason
    assert [*builder.PACKAGE_DIRECTORY.iterdir()] == []


def test_cxx_names_the_compiler(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_compiler()
    monkeypatch.setenv("CXX", "c++ -DFANO_NAMED")
    assert [command[:2] for name, command in builder._compilers() if name == "system"] == [["c++", "-DFANO_NAMED"]]


@pytest.mark.slow
def test_ziglang_builds_a_library_that_knows_the_cpu(places: Path) -> None:
    if find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    features = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    path, reason = builder.build("ziglang")
    assert path is not None, reason
    library = ctypes.CDLL(str(path))
    assert library.fano_abi_version() == ABI_VERSION
    # Otherwise it would run the portable path in silence.
    if " avx2 " in features and " fma " in features:
        expected = InstructionSet.AVX512 if " avx512f " in features else InstructionSet.AVX2
        assert library.fano_best_isa() >= expected
