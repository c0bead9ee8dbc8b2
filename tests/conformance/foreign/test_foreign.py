"""Other clients and frameworks, as they are published, against the same server. The last result is kept in docs."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from conformance.conftest import KEY
from conformance.foreign.installs import ROOT, node_with, python_of, version_of, with_own_packages
from fakes_engine import FakeEngine
from fakes_server import EMBEDDING_WIDTH, MODEL, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RESULTS = ROOT / "docs" / "foreign-clients.json"
HERE = Path(__file__).parent
TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
ANSWER = "It was Margarethe Oldenkamp."
QUOTE = "Margarethe Oldenkamp"


def record(client: str, version: str, **told: Any) -> None:
    """Keep the result under the client's name."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[client] = {"version": version, "date": time.strftime("%Y-%m-%d", time.gmtime()), **told}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")


def run(command: list[str], url: str, **environment: str) -> dict[str, Any]:
    """The JSON object that the program prints."""
    names = {"FANO_URL": url, "FANO_KEY": KEY, "FANO_MODEL": MODEL, "FANO_EMBEDDER": f"hash-{EMBEDDING_WIDTH}"}
    own = {key: value for key, value in os.environ.items() if not key.startswith(("FANO_", "OPENAI_"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=own | names | environment)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_the_second_line_of_the_python_client() -> None:
    """All the tests beside this folder, with openai 2.x in the place of 3.x."""
    python = python_of("openai-2", "openai>=2,<3")
    with_own_packages(python)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "tests/conformance"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    counted = re.search(r"^(?:(\d+) failed, )?(\d+) passed(?:, (\d+) skipped)?", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and counted is not None, done.stdout[-5000:]
    version = version_of(python, "openai")
    assert version.startswith("2.")
    record("openai (Python), 2.x", version, passed=int(counted[2]), skipped=int(counted[3] or 0))


def test_the_javascript_client(served: tuple[World, str], engine: FakeEngine) -> None:
    folder = node_with("javascript", "openai")
    program = folder / "program.mjs"
    program.write_text((HERE / "program.mjs").read_text())
    for said in ("One", "Two three", "Four", ANSWER, ANSWER):
        engine.enqueue(said)
    told = run(["node", str(program)], served[1])
    assert told == {
        "models.list": [MODEL, f"hash-{EMBEDDING_WIDTH}"],
        "chat.completions.create": "One",
        "chat.completions.create stream": "Two three",
        "chat.completions.stream": "Four",
        "embeddings.create": EMBEDDING_WIDTH,
        "files.create": len(TEXT),
        "files.content": TEXT,
        "vectorStores.files.createAndPoll": "completed",
        "vectorStores.fileBatches.uploadAndPoll": 1,
        "vectorStores.search": told["vectorStores.search"],
        "responses.create": ANSWER,
        "citation": QUOTE,
        "responses.stream": ["response.created", "response.completed", ANSWER],
        "responses.retrieve": True,
        "error": ["NotFoundError", 404, "model_not_found", "model"],
    }
    assert set(told["vectorStores.search"]) == {"ledger.txt", "other.txt"}
    package = json.loads((folder / "node_modules" / "openai" / "package.json").read_text())
    node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    record("openai (JavaScript)", package["version"], node=node, helpers=len(told))


def test_langchain(served: tuple[World, str], engine: FakeEngine) -> None:
    python = python_of("langchain", "langchain-openai")
    for said in ("One", "Two three", ANSWER):
        engine.enqueue(said)
    told = run([str(python), str(HERE / "langchain_program.py")], served[1], FANO_STORE=store_of(served[1]))
    assert (told["invoke"], told["stream"], told["file_search"]) == ("One", "Two three", ANSWER)
    assert [each.get("quote") or each["extras"]["quote"] for each in told["citations"]] == [QUOTE]
    assert told["embed"] == [EMBEDDING_WIDTH] * 2
    record("LangChain (langchain-openai)", version_of(python, "langchain-openai"), calls=len(told))


def test_llamaindex(served: tuple[World, str], engine: FakeEngine) -> None:
    python = python_of("llamaindex", "llama-index-llms-openai-like", "llama-index-embeddings-openai-like")
    for said in ("One", "Two three", ANSWER):
        engine.enqueue(said)
    told = run([str(python), str(HERE / "llamaindex_program.py")], served[1])
    assert (told["complete"], told["stream"], told["query"]) == ("One", "Two three", ANSWER)
    assert len(told["sources"]) == 1
    record("LlamaIndex (llama-index-core)", version_of(python, "llama-index-core"), calls=len(told))


def store_of(url: str) -> str:
    """A vector store with one file in it that can be searched."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as client:
        sent = {"file": ("ledger.txt", TEXT.encode(), "text/plain")}
        file = client.post("/files", data={"purpose": "assistants"}, files=sent).json()["id"]
        store = str(client.post("/vector_stores", json={"file_ids": [file]}).json()["id"])
        while client.get(f"/vector_stores/{store}").json()["file_counts"]["completed"] == 0:
            time.sleep(0.02)
        return store
