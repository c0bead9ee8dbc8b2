"""How a chat's tokens are drawn, and what is told of them: choices, penalties, biases, log probabilities, time."""

import json

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, chunks, open_client, sse

from model.engine.request import TokenLogprob
from model.policy import AttentionPolicy
from model.tokenizer import Tokenizer
from server.answers.inquiry import AnswerText, ServedModel
from server.chat.shape import ChatShape

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp. Nothing else happened."
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
WHO = {"role": "user", "content": "Who paid invoice QX-7741-B?"}


async def test_what_is_asked_for_by_its_idle_value_changes_nothing(client: httpx.AsyncClient, world: World) -> None:
    idle = {"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "top_k": -1, "min_p": 0, "seed": None}
    idle |= {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "prompt_logprobs": None}
    plain = (await client.post("/v1/chat/completions", json=HELLO)).json()
    same = (await client.post("/v1/chat/completions", json={**HELLO, **idle})).json()
    assert plain["choices"] == same["choices"] and "prompt_logprobs" not in same
    first, second = world.engine.requests
    assert first.sampling == second.sampling and first.num_choices == second.num_choices == 1


async def test_half_a_character_has_its_exact_bytes(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    ids = [
        token_id for token_id in range(tokenizer.vocab_size) if tokenizer.token_bytes(token_id) in (b"\xc3", b"\xbc")
    ]
    halves = sorted(ids, key=tokenizer.token_bytes, reverse=True)[:2]
    (end,) = [token_id for token_id in tokenizer.eos_ids if tokenizer.control_token(token_id) == "<|end|>"]
    for stream in (False, True):
        world.engine.enqueue("", pieces=["", "\u00fc", ""], token_ids=[*halves, end])
        reply = await client.post("/v1/chat/completions", json={**HELLO, "logprobs": True, "stream": stream})
        choices = [c["choices"][0] for c in chunks(reply.text)] if stream else reply.json()["choices"]
        content = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        assert [(entry["token"], entry["bytes"]) for entry in content] == [
            ("\ufffd", [0xC3]),
            ("\ufffd", [0xBC]),
            ("<|end|>", None),
        ]
        assert "".join((c.get("delta") or c.get("message") or {}).get("content", "") for c in choices) == "\u00fc"


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_without_text_are_told_too(client: httpx.AsyncClient, world: World, stream: bool) -> None:
    world.engine.enqueue("", pieces=["", "", ""])
    reply = await client.post("/v1/chat/completions", json={**HELLO, "logprobs": True, "stream": stream})
    choices = [chunk["choices"][0] for chunk in chunks(reply.text)] if stream else reply.json()["choices"]
    told = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert [entry["logprob"] for entry in told] == [-1 / 1024, -2 / 1024, -3 / 1024]


async def test_prompt_logprobs_have_vllms_shape(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    body = (await client.post("/v1/chat/completions", json={**HELLO, "prompt_logprobs": 2})).json()
    prompt = world.engine.requests[0].prompt_ids
    first, second, *_ = body["prompt_logprobs"]
    assert first is None and len(body["prompt_logprobs"]) == len(prompt)
    assert list(second) == [str(prompt[1]), str(prompt[1] + 1)]
    assert [each["rank"] for each in second.values()] == [1, 2]
    assert second[str(prompt[1])]["logprob"] == -prompt[1] / 1024
    assert body["choices"][0]["logprobs"] is None


def test_a_token_that_cannot_come_is_still_json(tokenizer: Tokenizer) -> None:
    shape = ChatShape(ServedModel(MODEL, 0, AttentionPolicy(), "float32", 100), tokenizer, (), True)
    never = TokenLogprob(300, float("-inf"), ((301, -0.5), (10**6, float("-inf"))))
    piece = shape.piece(AnswerText("x", 0, (never,)))
    entry = json.loads(json.dumps(piece, allow_nan=False))["choices"][0]["logprobs"]["content"][0]
    assert entry["logprob"] == -9999.0
    assert entry["top_logprobs"][1] == {"token": "", "bytes": None, "logprob": -9999.0}


async def test_grounded_answers_have_logprobs_and_penalties(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    body = {"model": MODEL, "messages": [WHO], "logprobs": True, "presence_penalty": 1, "logit_bias": {"7": 3},
            "fano": {"documents": [document]}}  # fmt: skip
    (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert len(choice["logprobs"]["content"]) == 4 and choice["message"]["annotations"]
    assert world.engine.requests[0].sampling.presence_penalty == 1
    nothing = {**body, "messages": [{"role": "user", "content": "Penguins?"}]}
    (choice,) = (await client.post("/v1/chat/completions", json=nothing)).json()["choices"]
    assert choice["logprobs"] == {"content": [], "refusal": None}


async def test_tenant_and_time_limit_reach_the_engine(new_world: WorldMaker) -> None:
    world = new_world(max_request_seconds=90)
    async with open_client(world) as client:
        await client.post("/v1/chat/completions", json=HELLO)
    assert [(request.tenant, request.max_seconds) for request in world.engine.requests] == [("default", 90)]


async def test_a_request_that_takes_too_long_is_a_504(new_world: WorldMaker) -> None:
    world = new_world(max_request_seconds=0.05)
    async with open_client(world) as client:
        world.engine.stall()
        reply = await client.post("/v1/chat/completions", json=HELLO)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert reply.json()["error"]["type"] == "server_error" and "0.05 seconds" in reply.json()["error"]["message"]
        assert reply.headers["x-should-retry"] == "false"
        events = sse((await client.post("/v1/chat/completions", json={**HELLO, "stream": True})).text)
        assert json.loads(events[-1][1])["error"]["code"] == "deadline_exceeded"
        world.engine.go_on()
