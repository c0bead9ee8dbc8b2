"""The main job with real parts: the server as a process, the embedded checkpoint, the official client."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from fakes_process import Server

WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
NEEDLE = "The custodian of the northern archive is Wilhelmina Thackeray-Oduya."
QUESTION = "Who looks after the archive in the north?"


def story(num_sentences: int, seed: int) -> str:
    """Sentences of our own making, none like another."""
    rng = random.Random(seed)
    sentences = []
    for number in range(num_sentences):
        a, b, c = rng.sample(WORDS, 3)
        sentences.append(f"On day {number} the {a} stood beside the {b} and nobody spoke of the {c}.")
    return " ".join(sentences)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("journey") / "data")
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture(scope="module")
def text() -> str:
    return f"{story(150, 1)} {NEEDLE} {story(150, 2)}"


@pytest.fixture(scope="module")
def document_id(server: Server, text: str) -> str:
    identifier = server.post("story.txt", text)
    server.wait(identifier, "ready")
    return identifier


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_a_question_in_other_words_finds_the_sentence_and_every_quote_is_true(
    server: Server, document_id: str, text: str
) -> None:
    body = {"question": QUESTION, "recall": "verbatim", "max_tokens": 24}
    reply = httpx.post(f"{server.url}/v1/documents/{document_id}/ask", json=body, timeout=120).json()
    assert reply["found"] is True
    assert any(NEEDLE in source["text"] for source in reply["sources"])
    for source in reply["sources"]:
        assert text[source["start"] : source["end"]] == source["text"]
    assert reply["citations"]
    for citation in reply["citations"]:
        quote = text[citation["start"] : citation["end"]]
        assert quote == citation["quote"] == reply["answer"][citation["answer_start"] : citation["answer_end"]]


def test_the_official_client_lists_chats_and_streams(client: openai.OpenAI, document_id: str) -> None:
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": QUESTION}]
    extra = {"fano": {"documents": [document_id]}}
    whole = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=16, extra_body=extra
    )
    assert whole.usage is not None
    resident = whole.usage.model_dump()["fano"]["resident_bytes"]
    assert set(resident) == {"kv", "ssm_state", "conv_state"} and all(size > 0 for size in resident.values())
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    )
    chunks = list(stream)
    assert chunks[-1].usage is not None and not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content


def test_eight_clients_get_the_greedy_text_they_get_alone(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id

    def say(number: int) -> str | None:
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Tell me about the {WORDS[number]}. {story(number, number)}"}],
            temperature=0,
            max_tokens=24,
        )
        return reply.choices[0].message.content

    alone = [say(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(say, range(8)))
    assert together == alone


def test_a_client_that_leaves_stops_the_work(server: Server, client: openai.OpenAI) -> None:
    aborted = 'fano_requests_finished_total{reason="abort"}'
    before = server.metric(aborted)
    body = {
        "model": client.models.list().data[0].id,
        "messages": [{"role": "user", "content": story(4000, 4)}],
        "max_tokens": 1000,
        "stream": True,
        # Another answer would be there at once, and only the text be read on beside it.
        "fano": {"start": "prompt"},
    }
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        lines = response.iter_lines()  # kept: an iterator that is dropped closes the connection
        next(lines)
        assert server.metric("fano_requests") == 1
    deadline = time.monotonic() + 60
    while server.metric("fano_requests") > 0:
        assert time.monotonic() < deadline, "the abandoned request still runs"
        time.sleep(0.1)
    assert server.metric(aborted) == before + 1
    assert server.metric('fano_state_slots{status="used"}') == 0


def test_a_kill_during_ingestion_loses_nothing(tmp_path: Path, text: str) -> None:
    server = Server(tmp_path / "data")
    server.start()
    first = server.post("first.txt", text)
    server.wait(first, "answerable")
    second = server.post("second.txt", story(1200, 3) + " " + NEEDLE)
    time.sleep(random.Random(text).uniform(0.2, 1.0))
    server.kill()
    server.start()
    for identifier, name in ((first, "first.txt"), (second, "second.txt")):
        assert server.wait(identifier, "ready")["name"] == name
    reply = httpx.post(
        f"{server.url}/v1/ask",
        json={"documents": [second], "question": QUESTION, "recall": "verbatim", "max_tokens": 8},
        timeout=120,
    ).json()
    assert any(NEEDLE in source["text"] for source in reply["sources"])
    assert server.stop() == 0, server.log.read_text()
