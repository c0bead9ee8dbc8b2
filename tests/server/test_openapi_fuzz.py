"""What the OpenAPI document says, schemathesis tries: no 5xx, no undocumented status, no reply of another shape."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fakes_routes import parameters_of, routes_of
from fakes_server import EMBEDDING_WIDTH, MODEL, World, WorldMaker, serving
from fakes_things import HELLO, KINDS, made_by
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from retrieval.embedder import HashEmbedder
from retrieval.library import Library

KEY = "a-long-random-string"
HEADERS = {"authorization": f"Bearer {KEY}"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]
# What bodies need, or may as well have.
NEEDED = {
    *("model", "messages", "input", "prompt", "question", "documents", "text", "name", "file", "query", "to"),
    *("start", "end", "file_id", "file_ids", "files", "part_ids", "data", "purpose", "filename", "bytes", "mime_type"),
}


@dataclass
class Target:
    """A server with one thing of every kind, and what was asked of it."""

    url: str
    world: World
    ids: dict[str, str]
    counts: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    def spare(self, kind: str) -> str:
        """A thing to be deleted."""
        with httpx.Client(base_url=self.url, headers=HEADERS) as client:
            serial = random.randrange(1 << 60)
            match kind:
                case "document":
                    return str(client.post("/v1/documents", json={"text": f"Spare {serial}."}).json()["id"])
                case "session":
                    to = f"spare-{serial}"
                    return str(client.post(f"/v1/sessions/{self.ids[kind]}/fork", json={"to": to}).json()["name"])
                case "fact":
                    path = f"/v1/documents/{self.ids['document']}/facts"
                    return str(client.post(path, json={"start": 0, "end": 3, "key": f"key {serial}"}).json()["id"])
                case "response":
                    return str(client.post("/v1/responses", json={"model": MODEL, "input": "Hello"}).json()["id"])
                case "file":
                    sent = {"file": ("spare.txt", f"Spare {serial}.".encode())}
                    return str(client.post("/v1/files", data={"purpose": "assistants"}, files=sent).json()["id"])
                case "vector_store":
                    return str(client.post("/v1/vector_stores", json={}).json()["id"])
        return self.ids[kind]


@pytest.fixture
def target(new_world: WorldMaker, tmp_path: Path) -> Iterator[Target]:
    world = new_world(library=Library.open(tmp_path / "library", HashEmbedder(dimension=16)), api_key=KEY)
    with serving(world.app) as url:

        async def make() -> dict[str, str]:
            async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=30) as client:
                return await made_by(client, "ann", {path for _, path in routes_of(world.app)})

        yield Target(url, world, asyncio.run(make()))


def aim(case: Any, target: Target, dice: random.Random) -> None:
    """Name things there are, in half of the places where one is named; random ids are all unknown."""
    kinds = {each: KINDS[each] for each in parameters_of(case.path)}
    for name, kind in kinds.items():
        if dice.random() < 0.7:
            is_last = name == list(kinds)[-1]
            deletes = case.method.upper() == "DELETE" and is_last and kind is not None
            case.path_parameters[name] = MODEL if kind is None else target.spare(kind) if deletes else target.ids[kind]
    if isinstance(case.body, dict):
        if dice.random() < 0.8:
            # One field that is refused for its value is enough; most bodies should have none.
            extra = [name for name in case.body if name not in NEEDED]
            for name in dice.sample(extra, max(0, len(extra) - dice.randrange(3))):
                del case.body[name]
        if "model" in case.body and dice.random() < 0.9:
            case.body["model"] = f"hash-{EMBEDDING_WIDTH}" if case.path == "/v1/embeddings" else MODEL
        if isinstance(case.body.get("messages"), list) and dice.random() < 0.5:
            case.body["messages"] = HELLO
        if "input" in case.body and dice.random() < 0.5:
            case.body["input"] = "Hello there"
        for name, value in (
            ("documents", ["document"]),
            ("vector_store_ids", ["vector_store"]),
            ("file_ids", ["file"]),
            ("file_id", "file"),
            ("previous_response_id", "response"),
        ):
            for place in (case.body, case.body.get("fano")):
                kind = value if isinstance(value, str) else value[0]
                if isinstance(place, dict) and name in place and kind in target.ids and dice.random() < 0.7:
                    place[name] = [target.ids[kind]] if isinstance(value, list) else target.ids[kind]


def fuzz(target: Target, num_cases: int, is_repeatable: bool) -> None:
    schema = schemathesis.openapi.from_dict(target.world.app.openapi())
    quiet = settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=is_repeatable,
        suppress_health_check=QUIET,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    failures = []
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
                continue

            @quiet
            @given(case=operation.as_strategy(generation_mode=mode), dice=st.randoms(use_true_random=False))
            def ask(case: Any, dice: random.Random) -> None:
                if case.meta.generation.mode is GenerationMode.POSITIVE:
                    aim(case, target, dice)
                case.headers = {**(case.headers or {}), **HEADERS}
                reply = case.call(base_url=target.url, timeout=30)
                target.counts[case.method, case.path, reply.status_code] += 1
                case.validate_response(reply, checks=CHECKS)

            try:
                ask()
            except Unsatisfiable:
                # Any text is a path, so where that is all, and no key is asked for, nothing is wrong.
                if mode is GenerationMode.POSITIVE or operation.body or operation.query:
                    raise
            except (AssertionError, BaseExceptionGroup) as failure:  # told all at once
                told = "\n".join(str(each) for each in getattr(failure, "exceptions", [failure]))
                failures.append(f"{operation.label} ({mode.value}):\n{told}")
    assert not failures, "\n\n".join(failures)


def test_a_few_requests_to_every_operation(target: Target) -> None:
    fuzz(target, num_cases=4, is_repeatable=True)
    tried = {each[:2] for each in target.counts}
    assert tried == set(routes_of(target.world.app))
    answered = {each[:2] for each in target.counts if each[2] < 300}
    # What random requests do not get right is in the other tests.
    assert len(answered) >= len(tried) // 2, tried - answered


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_requests_to_every_operation(target: Target, tmp_path: Path) -> None:
    fuzz(target, num_cases=150, is_repeatable=False)
    (tmp_path / "counts.txt").write_text(
        "\n".join(f"{count} {' '.join(map(str, each))}" for each, count in sorted(target.counts.items()))
    )
