"""Long prompts with the embedded model and the official client: what is held, what is found, what is read again."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fakes_library import FakeLibrary
from fakes_server import serving
from fastapi import FastAPI

from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.policy import AttentionPolicy, PolicyName
from retrieval.embedder import HashEmbedder
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills.forecast import Forecaster
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

CONFIG = EngineConfig(
    num_slots=2,
    num_checkpoint_slots=8,
    max_context_tokens=1 << 17,
    dtype=Dtype.FLOAT32,
    policy=AttentionPolicy(PolicyName.WINDOW, 64, 512),
    session_bytes=1 << 26,
)
WORDS = "harbour winter lantern ledger orchard captain river market garden signal copper meadow".split()
CODE = "The maintenance code of the Halvorsen turbine is QX-7741-B."
ASKED = "What is the maintenance code of the Halvorsen turbine?"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(embedded_checkpoint(), CONFIG)[0]


def make_app(engine: Engine, data_dir: Path, **changes: Any) -> FastAPI:
    checkpoint = ModelConfig.from_pretrained(embedded_checkpoint())
    settings, metrics = Settings(data_dir=data_dir, max_whole_prompt_tokens=12_000, **changes), Metrics()
    model = ServedModel("reader", 0, engine.policy, "float32", CONFIG.max_context_tokens, checkpoint.reads)
    forecaster, embedder = Forecaster(checkpoint, CONFIG), HashEmbedder(dimension=32)
    services = Services(settings, metrics, FakeLibrary(), engine, engine.tokenizer, model, forecaster, embedder)  # type: ignore[arg-type]
    return create_app(settings, services, metrics)


@pytest.fixture
def url(engine: Engine, tmp_path: Path) -> Iterator[str]:
    with serving(make_app(engine, tmp_path, prompt_start="prompt")) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def pasted(num_tokens: int, seed: int) -> str:
    """Prose of about so many tokens, with the code in its middle."""
    dice = random.Random(seed)
    sentences = [f"{' '.join(dice.choices(WORDS, k=9)).capitalize()}." for _ in range(num_tokens // 11)]
    sentences.insert(len(sentences) // 2, CODE)
    return " ".join(sentences)


class Told:
    """What a stream told."""

    def __init__(self, client: openai.OpenAI, content: str, until: int | None = None, **more: Any) -> None:
        """Reads to the end, or leaves once so many tokens are processed."""
        self.progress: list[dict[str, Any]] = []
        self.text = ""
        self.annotations: list[dict[str, Any]] = []
        self.usage: Any = None
        stream = client.chat.completions.create(
            model="reader",
            messages=[{"role": "user", "content": content}],
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            **more,
        )
        with stream:
            for chunk in stream:
                if progress := (chunk.model_extra or {}).get("prompt_progress"):
                    self.progress.append(progress)
                    if until is not None and progress["processed"] >= until:
                        return
                if chunk.choices:
                    delta = chunk.choices[0].delta
                    self.text += delta.content or ""
                    self.annotations += (delta.model_extra or {}).get("annotations", [])
                self.usage = (chunk.usage and chunk.usage.model_dump()) or self.usage


def test_twenty_thousand_tokens_at_the_bytes_of_a_few_hundred(client: openai.OpenAI, url: str) -> None:
    content = f"{pasted(20_000, 1)}\n\n{ASKED}"
    short = Told(client, f"{pasted(700, 2)}\n\n{ASKED}")
    told = Told(client, content)
    assert told.usage["prompt_tokens"] > 19_000
    assert told.usage["fano"]["resident_bytes"] == short.usage["fano"]["resident_bytes"]
    assert told.usage["fano"]["retrieval"]["passages"] == 1
    assert told.progress[-1]["processed"] == told.progress[-1]["total"] == told.usage["prompt_tokens"]
    processed = [each["processed"] for each in told.progress]
    assert processed == sorted(processed) and all(each["cached"] <= each["processed"] for each in told.progress)
    assert all(content[each["start_char"] : each["end_char"]] == each["quote"] for each in told.annotations)
    again = Told(client, content)
    assert again.usage["prompt_tokens_details"]["cached_tokens"] == told.usage["prompt_tokens"]
    assert again.progress[-1]["cached"] == told.usage["prompt_tokens"]
    # Another question of the same text reads its own end alone, and so needs no stream.
    body: Any = {
        "model": "reader",
        "messages": [{"role": "user", "content": f"{content[: -len(ASKED)]}Which code does the turbine have?"}],
    }
    other = client.chat.completions.create(**body, max_tokens=8)
    assert other.usage is not None and other.usage.prompt_tokens_details is not None
    cached = other.usage.prompt_tokens_details.cached_tokens
    assert cached is not None and other.usage.prompt_tokens - cached < CONFIG.policy.window  # type: ignore[union-attr]
    plan = httpx.post(f"{url}/plan", json={"messages": body["messages"], "max_tokens": 8}).raise_for_status().json()
    assert plan["cached_tokens"] >= cached and not plan["stream_required"]
    fresh = {"messages": [{"role": "user", "content": f"{pasted(20_000, 3)}\n\n{ASKED}"}], "max_tokens": 24}
    plan = httpx.post(f"{url}/plan", json=fresh, timeout=60).raise_for_status().json()
    assert plan["stream_required"] and plan["reading_seconds"] > 0 and plan["cached_tokens"] < 32
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="reader", **fresh)
    assert refused.value.code == "stream_required" and " seconds" in refused.value.message


def test_who_gives_up_and_tries_again_goes_on_where_the_reading_was(client: openai.OpenAI) -> None:
    content = f"{pasted(12_000, 4)}\n\n{ASKED}"
    left = Told(client, content, until=1)
    where = left.progress[-1]["processed"]
    assert 0 < where < left.progress[-1]["total"] and left.text == ""
    again = Told(client, content)
    cached = again.usage["prompt_tokens_details"]["cached_tokens"]
    assert cached >= where and again.progress[0]["processed"] >= cached == again.progress[0]["cached"]
    assert again.progress[-1]["processed"] == again.usage["prompt_tokens"]


def test_quotations_from_a_long_prompt(client: openai.OpenAI) -> None:
    content = f"{pasted(3_000, 5)}\n\n{ASKED}"
    told = Told(client, content, extra_body={"fano": {"recall": "verbatim"}})
    (annotation,) = told.annotations
    assert "QX-7741-B" in told.text
    assert content[annotation["start_char"] : annotation["end_char"]] == annotation["quote"] == told.text
    assert annotation["message"] == 0


def test_a_session_goes_on_from_what_was_pasted(client: openai.OpenAI, url: str) -> None:
    content = f"{pasted(4_000, 6)}\n\n{ASKED}"
    options: Any = {"model": "reader", "max_tokens": 8, "extra_body": {"fano": {"session": "turbine"}}}
    first = client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)
    said = first.choices[0].message.content or ""
    turns: Any = [{"role": "user", "content": content}, {"role": "assistant", "content": said}]
    plan = {"messages": [*turns, {"role": "user", "content": "And of which turbine is it?"}], "max_tokens": 8}
    forecast = httpx.post(f"{url}/plan", json={**plan, "fano": {"session": "turbine"}}, timeout=60).json()
    second = client.chat.completions.create(messages=plan["messages"], **options)
    assert first.usage and second.usage and second.usage.prompt_tokens_details
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    assert cached > 3_500 and second.usage.prompt_tokens - cached < CONFIG.policy.window
    assert (forecast["prompt_tokens"], forecast["cached_tokens"]) == (second.usage.prompt_tokens, cached)


@pytest.fixture
def fresh(engine: Engine, tmp_path: Path) -> Iterator[openai.OpenAI]:
    """A client of a server as it comes: answers start with no memory, and the text is read beside them."""
    with serving(make_app(engine, tmp_path)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        yield client


def cached_of(usage: Any) -> int:
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_what_was_read_is_not_read_again(client: openai.OpenAI) -> None:
    """Of another question, of a chat that goes on, and of a text whose beginning changed."""
    text = pasted(3_000, 7)
    first = Told(client, f"{text}\n\n{ASKED}")
    assert cached_of(first.usage) < 32
    other = Told(client, f"{text}\n\nWhich code does the Halvorsen turbine have?")
    assert other.usage["prompt_tokens"] - cached_of(other.usage) < CONFIG.policy.window
    turns: Any = [
        {"role": "user", "content": f"{text}\n\n{ASKED}"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Which turbine has the code QX-7741-B?"},
    ]
    grown = client.chat.completions.create(model="reader", messages=turns, max_tokens=8).usage
    assert grown is not None and grown.prompt_tokens - cached_of(grown.model_dump()) < CONFIG.policy.window
    changed = Told(client, f"Dear reader, {text}\n\n{ASKED}")
    assert cached_of(changed.usage) < 32
    assert changed.usage["fano"]["prefix"]["result"] == "miss"


def test_an_answer_does_not_wait_until_the_text_is_read(fresh: openai.OpenAI) -> None:
    content = f"{pasted(6_000, 8)}\n\n{ASKED}"
    first = Told(fresh, content)
    held, reading = first.usage["fano"]["resident_bytes"], first.usage["fano"]["reading"]
    assert first.usage["fano"]["start"] == "fresh" and "QX-7741-B" in first.text
    assert first.usage["prompt_tokens"] > 5_500 and reading["processed"] < reading["total"]
    assert first.progress[-1]["processed"] < first.progress[-1]["total"] == first.usage["prompt_tokens"]
    again = first
    while again.usage["fano"]["reading"]["cached"] < reading["total"]:  # so it is read, beside these
        again = Told(fresh, content)
    assert cached_of(again.usage) >= reading["total"]
    assert again.progress[-1]["processed"] == again.progress[-1]["total"]
    assert again.text == first.text and again.usage["fano"]["resident_bytes"] == held
    # What was read beside answers is what an answer starts from that is to, or for which nothing is found.
    options: Any = {"extra_body": {"fano": {"start": "prompt"}}}
    from_it = Told(fresh, content, **options)
    assert from_it.usage["prompt_tokens"] - cached_of(from_it.usage) < CONFIG.policy.window
    turns: Any = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Thanks!"},
    ]
    thanked = fresh.chat.completions.create(model="reader", messages=turns, max_tokens=4).usage
    assert thanked is not None and thanked.prompt_tokens - cached_of(thanked.model_dump()) < 200


def test_a_session_of_a_text_that_is_read_beside_goes_on(fresh: openai.OpenAI) -> None:
    content = f"{pasted(3_000, 9)}\n\n{ASKED}"
    options: Any = {"model": "reader", "max_tokens": 8, "extra_body": {"fano": {"session": "beside"}}}
    turns: Any = [{"role": "user", "content": content}]
    first = fresh.chat.completions.create(messages=turns, **options)
    session = httpx.get(f"{fresh.base_url}sessions").json()["data"][0]
    assert session["name"] == "beside" and session["num_tokens"] > 2_900
    saved = httpx.post(f"{fresh.base_url}sessions/beside/save", timeout=60).json()
    assert saved["state_tokens"] == saved["num_tokens"] and saved["status"] != "tokens"
    turns += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Thanks!"},
    ]
    second = fresh.chat.completions.create(messages=turns, **options)
    assert second.usage is not None and second.usage.prompt_tokens - cached_of(second.usage.model_dump()) < 64
