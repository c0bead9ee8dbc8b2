"""Answers that start from what was read of their document, and questions that stand twice. With the embedded model."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_library import FakeLibrary
from fakes_server import MODEL, World, open_client

from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.policy import AttentionPolicy, PolicyName
from server.answers.form import QuestionPlace
from server.answers.inquiry import ServedModel
from server.answers.prompt import document_question
from server.app import create_app
from server.bills.forecast import Forecaster
from server.documents.reading import document_ids
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

CONFIG = EngineConfig(
    num_slots=2,
    num_checkpoint_slots=4,
    max_context_tokens=4096,
    dtype=Dtype.FLOAT32,
    policy=AttentionPolicy(PolicyName.WINDOW, 64, 512),
    session_bytes=1 << 26,
)
TEXT = " ".join(f"On day {day} the captain of ship {day * 7} bought lamp oil." for day in range(80))
WHO = {"question": "Who bought lamp oil on day 7?", "max_tokens": 4}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(embedded_checkpoint(), CONFIG)[0]


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary(has_reader=True)


@pytest.fixture
async def asker(engine: Engine, library: FakeLibrary, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    checkpoint = ModelConfig.from_pretrained(embedded_checkpoint())
    settings, metrics = Settings(data_dir=tmp_path), Metrics()
    model = ServedModel("reader", 0, engine.policy, "float32", CONFIG.max_context_tokens)
    forecaster = Forecaster(checkpoint, CONFIG)
    services = Services(settings, metrics, library, engine, engine.tokenizer, model, forecaster)
    async with open_client(create_app(settings, services, metrics)) as client:
        client.services = services  # type: ignore[attr-defined]
        yield client


async def document(client: httpx.AsyncClient, library: FakeLibrary, text: str = TEXT) -> str:
    """A document that was read."""
    document_id = library.put(text, is_to_be_read=True)
    client.services.reader.wake()  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while document_id in library.to_be_read:
            await asyncio.sleep(0.01)
    return document_id


async def usage(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    return (await client.post("/v1/ask", json=body)).raise_for_status().json()["usage"]


async def test_an_answer_can_start_from_what_was_read(
    asker: httpx.AsyncClient, engine: Engine, library: FakeLibrary
) -> None:
    document_id = await document(asker, library)
    num_read = len(document_ids(engine.tokenizer, TEXT))
    fresh = await usage(asker, {"documents": [document_id], **WHO})
    started = await usage(asker, {"documents": [document_id], **WHO, "start": "document"})
    assert (fresh["fano"]["start"], started["fano"]["start"]) == ("fresh", "document")
    # A text begins once: all but the token that begins every text follows the document.
    assert started["prompt_tokens"] == num_read + fresh["prompt_tokens"] - 1
    assert started["prompt_tokens_details"]["cached_tokens"] == num_read
    assert fresh["prompt_tokens_details"]["cached_tokens"] < 100
    assert started["fano"]["resident_bytes"]["kv"] > fresh["fano"]["resident_bytes"]["kv"]


async def test_many_may_start_from_the_same_document_at_once(asker: httpx.AsyncClient, library: FakeLibrary) -> None:
    document_id = await document(asker, library)
    body = {"documents": [document_id], **WHO, "start": "document"}
    bills = await asyncio.gather(*(usage(asker, body) for _ in range(6)))
    assert [bill["fano"]["start"] for bill in bills] == ["document"] * 6


async def test_what_cannot_start_from_a_document_starts_fresh_and_says_so(
    asker: httpx.AsyncClient, library: FakeLibrary
) -> None:
    first, unread = await document(asker, library), library.put(TEXT + " End of the log.")
    for documents in ([first, unread], [unread]):
        assert (await usage(asker, {"documents": documents, **WHO, "start": "document"}))["fano"]["start"] == "fresh"


async def test_the_question_can_stand_before_the_passages_as_well(
    asker: httpx.AsyncClient, engine: Engine, library: FakeLibrary
) -> None:
    document_id = library.put(TEXT)
    after, both = [
        await usage(asker, {"documents": [document_id], **WHO, "question_place": place}) for place in ("after", "both")
    ]
    extra = len(engine.tokenizer.encode_ids(f"Question: {WHO['question']}\n\n"))
    assert abs(both["prompt_tokens"] - after["prompt_tokens"] - extra) <= 2


def test_the_question_stands_where_it_is_wanted() -> None:
    assert document_question("Who?", ["A.", "B."], QuestionPlace.AFTER) == "[1] A.\n\n[2] B.\n\nQuestion: Who?"
    twice = "Question: Who?\n\n[1] A.\n\n[2] B.\n\nQuestion: Who?"
    assert document_question("Who?", ["A.", "B."], QuestionPlace.BOTH) == twice


@pytest.mark.parametrize(("field", "value"), [("start", "document"), ("question_place", "both")])
async def test_a_chat_without_documents_has_no_form(
    client: httpx.AsyncClient, world: World, field: str, value: str
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "fano": {field: value}}
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == f"fano.{field}"
