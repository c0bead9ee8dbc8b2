"""Who may import whom, and that the parts without torch stay without it."""

import subprocess
import sys

import pytest

WITHOUT_TORCH = [
    "model.cache.place",
    "model.cache.plan",
    "model.cache.prefix_tree",
    "model.config",
    "model.engine.placement",
    "model.engine.request",
    "model.engine.scheduler",
    "model.engine.stats",
    "model.engine.verbatim",
    "retrieval.chunker",
    "retrieval.keys",
    "retrieval.library",
    "retrieval.parsers",
    "retrieval.search",
    "retrieval.store",
    "server.app",
    "server.engine_thread.bridge",
    "server.commands.cli",
    "server.services",
    "server.sessions.vault",
]

BLOCK_TORCH = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"torch", "transformers", "sentence_transformers"}:
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Block())
import importlib
importlib.import_module(sys.argv[1])
"""


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_policy_planning_http_and_retrieval_import_without_torch(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK_TORCH, module], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
