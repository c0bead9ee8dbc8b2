"""What a run ran on and with: machine, versions, the model's tokenizer, the embedder."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.recall.vectors import KeptVectors
from bench.throughput import describe_machine
from model.tokenizer import Tokenizer
from retrieval.embedder import MiniLMEmbedder
from server.services import embedded_checkpoint


def describe(num_threads: int, seed: int) -> dict[str, Any]:
    """For the first line of a file of results."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "bench": "recall",
        "revision": revision or None,
        "seed": seed,
        "machine": describe_machine(num_threads),
        "versions": {package: version(package) for package in ("faiss-cpu", "tantivy", "tokenizers", "numpy")},
        "embedder": MiniLMEmbedder(threads=num_threads).fingerprint,
        "model": embedded_checkpoint().name,
    }


def embedded_tokenizer() -> Tokenizer:
    """The tokens in which lengths are counted are those of the model that is served by default."""
    return Tokenizer(embedded_checkpoint())


def open_embedder(vectors: Path, num_threads: int) -> KeptVectors:
    """The embedder of the product, with what it computed kept in ``vectors``."""
    return KeptVectors(MiniLMEmbedder(threads=num_threads), vectors)


def fano_command() -> list[str]:
    """The console script of this environment."""
    return [str(Path(sys.executable).with_name("fano"))]
