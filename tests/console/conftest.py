"""One browser for each module, and servers to look at: a scripted engine over a library as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes_console import Visit, Visits, browsing, visiting
from fakes_engine import write_tokenizer
from fakes_server import World, make_world, serving
from playwright.sync_api import Browser

from model.tokenizer import Tokenizer
from retrieval.embedder import HashEmbedder
from retrieval.library import Library


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def visit(browser: Browser, tokenizer: Tokenizer, tmp_path: Path) -> Visits:
    """A server with these settings and someone who opened its console."""

    @contextmanager
    def visit(path: str = "/", browse: dict[str, Any] | None = None, **changes: Any) -> Iterator[tuple[World, Visit]]:
        if "library" not in changes:
            changes["library"] = Library.open(tmp_path / "library", HashEmbedder(dimension=32))
        world = make_world(tmp_path / "data", tokenizer, **changes)
        with serving(world.app) as url, visiting(browser, url, **(browse or {})) as visited:
            visited.open(path)
            yield world, visited

    return visit
