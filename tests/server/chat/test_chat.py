"""Chat completions: shapes, streams, documents, and every bad field by its path."""

import json
from typing import Any

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, chunks, open_client, sse

from model.engine.request import EvidenceSpan, FinishReason
from model.errors import GenerationFailed, InvalidRequest
from model.policy import AttentionPolicy, PolicyName
from retrieval.passage import Passage, Span

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp. Nothing else happened."
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WHO = {"role": "user", "content": "Who paid invoice QX-7741-B?"}


async def test_a_plain_chat_has_the_shape_of_openai(client: httpx.AsyncClient, world: World, tokenizer: Any) -> None:
    world.engine.enqueue("Good day to you.")
    reply = await client.post("/v1/chat/completions", json=HELLO)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == MODEL
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Good day to you.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["fano"]["retrieval"] == {
        "used": False,
        "reason": "no_documents",
        "passages": 0,
        "facts": 0,
        "seconds": 0.0,
        "note": None,
        "query": None,
        "within": None,
        "fact_kinds": None,
    }
    (request,) = world.engine.requests
    assert tuple(request.prompt_ids) == tokenizer.encode_chat(HELLO["messages"])
    assert (request.sampling.temperature, request.sampling.max_tokens) == (1.0, 1024)


async def test_sampling_and_turns_reach_the_engine(client: httpx.AsyncClient, world: World, tokenizer: Any) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    body = {
        "model": MODEL,
        "messages": messages,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": -7,
        "stop": ["\n", "END"],
        "max_completion_tokens": 9,
    }
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    (request,) = world.engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, -7)
    assert (sampling.stop, sampling.max_tokens) == (("\n", "END"), 9)
    turns = [("system", "Be brief."), ("user", "One two"), ("assistant", "three"), ("user", "four")]
    assert tuple(request.prompt_ids) == tokenizer.encode_chat([{"role": role, "content": text} for role, text in turns])


async def test_a_request_may_choose_its_policy(client: httpx.AsyncClient, world: World) -> None:
    for asked, policy in (
        ({"name": "window", "window": 128}, AttentionPolicy(PolicyName.WINDOW, 64, 128)),
        ({"name": "full"}, AttentionPolicy(PolicyName.FULL, 64, 2048)),
        (None, None),
    ):
        reply = await client.post("/v1/chat/completions", json={**HELLO, "fano": {"policy": asked}})
        assert reply.status_code == 200, reply.text
        assert world.engine.requests[-1].policy == policy


async def test_a_policy_the_pools_cannot_hold_is_blamed_on_its_field(client: httpx.AsyncClient, world: World) -> None:
    world.engine.refuse(InvalidRequest("policy.window", 64000, "at most 4096 tokens"))
    reply = await client.post("/v1/chat/completions", json=HELLO)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "fano.policy.window")


async def test_a_stream_ends_with_finish_usage_and_done(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue("One two three", finish_reason=FinishReason.LENGTH)
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    received = chunks((await client.post("/v1/chat/completions", json=body)).text)
    assert {chunk["object"] for chunk in received} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in received}) == 1
    assert received[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in received[:-1])
    assert text == "One two three"
    assert received[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert all(chunk["usage"] is None for chunk in received[:-1])
    assert received[-1]["choices"] == [] and received[-1]["usage"]["completion_tokens"] == 3
    assert received[-1]["usage"]["fano"]["state_capacity_bits"] == 1680


async def test_without_include_usage_no_chunk_has_usage(client: httpx.AsyncClient, world: World) -> None:
    received = chunks((await client.post("/v1/chat/completions", json={**HELLO, "stream": True})).text)
    assert not any("usage" in chunk for chunk in received)
    assert received[-1]["choices"][0]["finish_reason"] == "stop"


async def test_documents_are_searched_and_cited_as_annotations(
    client: httpx.AsyncClient, world: World, tokenizer: Any
) -> None:
    document = world.library.put(TEXT, name="ledger.txt")
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    body = {"model": MODEL, "messages": [*history, WHO], "fano": {"documents": [document], "max_passages": 1}}
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    annotation = {
        "type": "file_citation",
        "file_id": document,
        "filename": "ledger.txt",
        "index": 27,
        "quote": "Margarethe Oldenkamp",
        "start_char": 55,
        "end_char": 75,
        "page": 1,
    }
    assert reply["choices"][0]["message"]["annotations"] == [annotation]
    (request,) = world.engine.requests
    question = {"role": "user", "content": f"[1] {TEXT[25:76]}\n\nQuestion: {WHO['content']}"}
    assert tuple(request.prompt_ids) == tokenizer.encode_chat([*history, question])
    assert request.sampling.temperature == 0

    world.engine.enqueue("It was Margarethe Oldenkamp.")
    streamed = chunks((await client.post("/v1/chat/completions", json={**body, "stream": True})).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [[annotation]]
    assert "annotations" in deltas[-2] and deltas[-1] == {}


async def test_verbatim_recall_quotes_the_stored_text(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.library.plant(Passage(document, "note.txt", Span(25, 76), TEXT[25:76], None, 1.0, ("key",), Span(25, 76)))
    world.engine.enqueue("Margarethe Oldenkamp", spans=(EvidenceSpan(0, 30, 50),))
    body = {"model": MODEL, "messages": [WHO], "fano": {"documents": [document], "recall": "verbatim"}}
    message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    assert message["content"] == "Margarethe Oldenkamp" == TEXT[55:75]
    assert [(a["start_char"], a["end_char"]) for a in message["annotations"]] == [(55, 75)]


async def test_a_failure_in_a_stream_is_an_error_in_the_data(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue("half", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    events = sse((await client.post("/v1/chat/completions", json={**HELLO, "stream": True})).text)
    assert json.loads(events[-1][1])["error"]["code"] == "generation_failed"
    world.engine.enqueue("half", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 500


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(new_world: WorldMaker) -> None:
    world = new_world(max_context_tokens=100)
    async with open_client(world) as client:
        body = {**HELLO, "messages": [{"role": "user", "content": "word " * 400}]}
        for more in ({}, {"stream": True}, {"max_tokens": 1}):
            reply = await client.post("/v1/chat/completions", json={**body, **more})
            error = reply.json()["error"]
            assert reply.status_code == 400 and error["code"] == "context_length_exceeded"
            assert "100 tokens" in error["message"] and "the prompt has" in error["message"]


async def test_a_default_limit_gives_way_to_the_context(new_world: WorldMaker, tokenizer: Any) -> None:
    world = new_world(max_context_tokens=100)
    async with open_client(world) as client:
        assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 200
    prompt = tokenizer.encode_chat(HELLO["messages"])
    assert world.engine.requests[0].sampling.max_tokens == 100 - len(prompt)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [5]}, "messages.0", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_field"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages.0.name", "unsupported_field"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages.0.mood", "unknown_field"),
        ({"messages": [{"role": "user", "content": "x\ud800"}]}, "messages.0.content", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": float("inf")}, "top_p", "invalid_value"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1e3}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, None, "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"n": 9}, "n", "never_fits"),
        ({"n": 2, "fano": {"documents": ["doc_x"]}, "messages": [WHO]}, "n", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
        (
            {"logprobs": True, "fano": {"documents": ["doc_x"], "recall": "verbatim"}, "messages": [WHO]},
            "logprobs",
            "invalid_value",
        ),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "invalid_value"),
        ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty", "invalid_value"),
        ({"min_p": -0.1}, "min_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"the": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"05": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [5]}, "logit_bias", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_field"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_field"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        (
            {"messages": [WHO, {"role": "assistant", "tool_calls": [CALL]}]},
            "messages.1.tool_calls",
            "unsupported_field",
        ),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_field"),
        ({"temprature": 1}, "temprature", "unknown_field"),
        ({"\ud800": 1}, None, "invalid_value"),
        ({"model": "\udfff"}, "model", "invalid_value"),
        ({"stop": ["x", 5]}, "stop.1", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "invalid_value",
        ),
        ({"fano": {"session": "no name"}}, "fano.session", "invalid_value"),
        ({"fano": {"session": "s"}, "n": 2}, "n", "invalid_value"),
        ({"fano": {"session": "document:doc_1"}}, "fano.session", "session_of_document"),
        ({"fano": {"policy": {"name": "endless"}}}, "fano.policy.name", "invalid_value"),
        ({"fano": {"policy": {"name": "archive", "select": 0}}}, "fano.policy.select", "invalid_value"),
        ({"fano": {"policy": {"name": "window", "select": 4}}}, "fano.policy", "invalid_value"),
        ({"fano": {"policy": {"name": "window", "window": 100}}}, "fano.policy.window", "invalid_value"),
        ({"fano": {"policy": {"name": "window", "window": -64}}}, "fano.policy.window", "invalid_value"),
        ({"fano": {"policy": {"name": "full", "sinks": 64}}}, "fano.policy", "invalid_value"),
        ({"fano": {"documents": ["doc_x"], "recall": "free"}}, "fano.recall", "invalid_value"),
        ({"fano": {"recall": "verbatim"}}, "fano.recall", "invalid_value"),
        ({"fano": {"max_passages": 3}}, "fano.max_passages", "invalid_value"),
        ({"fano": {"documents": ["doc_x"], "max_passages": 21}}, "fano.max_passages", "invalid_value"),
        ({"fano": {"documents": ["doc_x"], "recall": "verbatim"}, "stop": "."}, "stop", "invalid_value"),
        (
            {"fano": {"documents": ["doc_x"]}, "messages": [{"role": "user", "content": " "}]},
            "messages.0.content",
            "invalid_value",
        ),
        (
            {"fano": {"documents": ["doc_x"]}, "messages": [{"role": "assistant", "content": "x"}]},
            "messages.0.role",
            "invalid_value",
        ),
    ],
)
async def test_a_bad_field_is_a_400_that_names_it(
    client: httpx.AsyncClient, change: Any, param: str | None, code: str
) -> None:
    reply = await client.post(
        "/v1/chat/completions",
        content=json.dumps({**HELLO, **change}),
        headers={"content-type": "application/json"},
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b'{"model": "\xff"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (json.dumps(HELLO).encode(), "text/plain"),
        (b"model=x", "application/x-www-form-urlencoded"),
    ],
    ids=["empty", "cut", "not utf-8", "deep", "huge number", "array", "null", "text", "form"],
)
async def test_a_body_that_is_no_json_object_is_a_400(
    client: httpx.AsyncClient, body: bytes, content_type: str
) -> None:
    reply = await client.post("/v1/chat/completions", content=body, headers={"content-type": content_type})
    assert reply.status_code == 400, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


async def test_another_model_is_a_404(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/chat/completions", json={**HELLO, "model": "gpt-6"})
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found" and MODEL in reply.json()["error"]["message"]
