"""Fixtures of the tests with the programs that stand beside the server: Prometheus, and a server that it scrapes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes_engine import write_tokenizer
from fakes_server import World, make_world, serving
from stack.prometheus import Prometheus

from model.tokenizer import Tokenizer

StartPrometheus = Callable[..., Prometheus]


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[StartPrometheus]:
    """Starts Prometheus with a configuration, and with files (rules) beside it; it ends with the test."""
    with ExitStack() as stack:

        def start(
            config: str | Mapping[str, Any], files: Mapping[str, str | Path] | None = None, *options: str
        ) -> Prometheus:
            directory = tmp_path / f"prometheus-{len(list(tmp_path.glob('prometheus-*')))}"
            directory.mkdir()
            for name, content in (files or {}).items():
                text = content.read_text() if isinstance(content, Path) else content
                (directory / name).write_text(text)
            return stack.enter_context(Prometheus(directory, config, *options))

        yield start


@pytest.fixture(scope="session")
def stack_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def served(tmp_path: Path, stack_tokenizer: Tokenizer) -> Iterator[tuple[World, str]]:
    """A server on a real socket over a scripted engine and a library in memory, and its URL."""
    world = make_world(tmp_path / "data", stack_tokenizer)
    with serving(world.app) as url:
        yield world, url
