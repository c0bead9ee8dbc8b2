"""Libraries, documents and vectors for the tests of retrieval."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.limits import Limits
from retrieval.passage import Document

TENANT = "acme"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def open_library(data_dir: Path) -> Iterator[Callable[..., Library]]:
    """Opens the library of the test, with the hashing embedder unless told otherwise; closes it at the end."""
    opened: list[Library] = []

    def opener(embedder=None, *, count_tokens=None, limits: Limits | None = None) -> Library:
        while opened:
            opened.pop().close()
        library = Library.open(
            data_dir, embedder or HashEmbedder(dimension=64), count_tokens=count_tokens, limits=limits
        )
        opened.append(library)
        return library

    yield opener
    for library in opened:
        library.close()


@pytest.fixture
def library(open_library: Callable[..., Library]) -> Library:
    return open_library()


@pytest.fixture
def add_text(tmp_path: Path) -> Callable[..., Document]:
    """Adds a text to a library and, unless told otherwise, processes it to the end."""

    def adder(library: Library, text: str, name="notes.txt", *, tenant=TENANT, process=True) -> Document:
        path = tmp_path / "upload"
        path.write_bytes(text.encode())
        document, _ = library.add(tenant, name, "text/plain", path)
        if process:
            library.process(document.id)
        return library.get(tenant, document.id)

    return adder


@pytest.fixture
def unit_rows() -> Callable[[int, int, int], np.ndarray]:
    def rows(count: int, dimension: int, seed: int) -> np.ndarray:
        raw = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)

    return rows
