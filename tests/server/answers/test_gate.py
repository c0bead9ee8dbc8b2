"""Which turns are searched for, why, and with which query."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fakes_bridge import until
from fakes_server import MODEL, World, WorldMaker, open_client, scrape, serving

from model.errors import QueueFull
from retrieval.passage import Passage, Span
from server.answers import doubt
from server.answers.follow_up import follows, standalone_query
from server.answers.gate import Reason, decide
from server.answers.prompt import Turn

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp. Nothing else happened."
EARLIER = [
    Turn("user", "When was Marie Curie born?"),
    Turn("assistant", "Marie Curie was born in Warsaw on 7 November 1867."),
]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("thanks a lot!", Reason.SMALL_TALK),
        ("Ok, great.", Reason.SMALL_TALK),
        ("Shorten that.", Reason.CONVERSATION),
        ("Can you repeat your last answer?", Reason.CONVERSATION),
        ("What did I ask you before?", Reason.CONVERSATION),
        ("What does section 4 say?", Reason.DOCUMENT_REFERENCE),
        ("Summarize this document.", Reason.DOCUMENT_REFERENCE),
        ("And where did she die?", Reason.FOLLOW_UP),
        ("How much was it?", Reason.FOLLOW_UP),
        ("Who discovered penicillin in London?", Reason.QUESTION),
        ("Repeat this number: INV-2024-77", Reason.UNCLEAR),
        ("Danke schön, wer hat Penicillin entdeckt", Reason.UNCLEAR),
        ("no thanks, what is the price?", Reason.QUESTION),
    ],
)
def test_a_turn_is_searched_for_or_not_for_a_reason(said: str, reason: Reason) -> None:
    decision = decide([*EARLIER, Turn("user", said)])
    assert decision.reason is reason
    assert decision.is_searched is (reason not in (Reason.SMALL_TALK, Reason.CONVERSATION))


def test_nothing_was_said_that_could_be_shortened() -> None:
    assert decide([Turn("user", "Shorten that.")]).is_searched


@pytest.mark.parametrize(
    ("said", "query"),
    [
        ("And where did she die?", "Marie Curie Warsaw 1867 And where did she die?"),
        ("Who was Pierre Laurent in Paris?", "Who was Pierre Laurent in Paris?"),
        (
            "Which university awarded degrees to female physicists?",
            "Which university awarded degrees to female physicists?",
        ),
    ],
)
def test_a_question_that_rests_on_others_is_made_to_stand_alone(said: str, query: str) -> None:
    assert standalone_query([*EARLIER, Turn("user", said)]) == query


@pytest.mark.parametrize(
    ("said", "rests"),
    [
        ("Which university did she attend?", True),
        ("Who wrote it?", True),
        ("What is the name of his dog?", True),
        ("Which states declined to sign it?", True),
        ("What happened after that?", True),
        ("Why did she leave Paris?", True),
        ("Who built this church?", True),
        ("Which ones?", True),
        ("How much?", True),
        ("And Warsaw?", True),
        ("How many rooms is there in a palace?", False),
        ("Who is the man that plays the thief?", False),
        ("How old was the king when his clan died?", False),
        ("What is another name for the torso?", False),
        ("What is it called when a government is overthrown?", False),
        ("If forces meet at right angles what can they be broken down to?", False),
        ("What is an etioplast?", False),
        ("Why did the empire fall apart?", False),
        ("What happens in this year?", False),
    ],
)
def test_only_what_nothing_in_the_question_can_stand_for_rests_on_others(said: str, rests: bool) -> None:
    assert follows([*EARLIER, Turn("user", said)]) is rests


def test_what_a_chain_of_follow_ups_is_about_is_carried_through() -> None:
    turns = [
        *EARLIER,
        Turn("user", "Where did she die?"),
        Turn("assistant", "At Passy."),
        Turn("user", "And why there?"),
    ]
    assert "Marie Curie" in standalone_query(turns)


def chat(document: str, *said: str, **fano: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    return {"model": MODEL, "messages": messages, "fano": {"documents": [document], **fano}}


async def test_thanks_are_answered_without_a_search(client: httpx.AsyncClient, world: World, tokenizer: Any) -> None:
    document = world.library.put(TEXT)
    body = chat(document, "Who paid invoice QX-7741-B?", "Margarethe Oldenkamp", "Thank you!")
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    retrieval = reply["usage"]["fano"]["retrieval"]
    assert (retrieval["used"], retrieval["reason"], retrieval["passages"]) == (False, "small_talk", 0)
    assert "annotations" not in reply["choices"][0]["message"]
    (request,) = world.engine.requests
    assert tuple(request.prompt_ids) == tokenizer.encode_chat(body["messages"])
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.0, 128)
    samples = await scrape(client)
    assert samples['fano_retrieval_total{decision="skipped",reason="small_talk"}'] == 1


async def test_who_wants_quotes_or_asks_documents_is_always_searched_for(
    client: httpx.AsyncClient, world: World
) -> None:
    document = world.library.put(TEXT)
    body = chat(document, "Who paid?", "Margarethe Oldenkamp", "Thank you!", recall="verbatim")
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    assert reply["usage"]["fano"]["retrieval"]["used"] is True
    reply = (await client.post("/v1/ask", json={"documents": [document], "question": "Thank you!"})).json()
    assert reply["usage"]["fano"]["retrieval"]["used"] is True
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "unclear"


async def test_the_gate_can_be_left_open(new_world: WorldMaker) -> None:
    world = new_world(retrieval_gate="always")
    document = world.library.put(TEXT)
    async with open_client(world) as client:
        body = chat(document, "Who paid?", "Margarethe Oldenkamp", "Thank you!")
        reply = (await client.post("/v1/chat/completions", json=body)).json()
    assert reply["usage"]["fano"]["retrieval"]["used"] is True


async def test_a_follow_up_is_searched_for_with_what_it_rests_on(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    body = chat(document, "Who paid invoice QX-7741-B?", "A woman.", "When was it?")
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    retrieval = reply["usage"]["fano"]["retrieval"]
    assert (retrieval["reason"], retrieval["query"]) == ("follow_up", "QX-7741-B When was it?")


async def test_a_key_hit_is_the_reason_where_there_is_one(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.library.plant(Passage(document, "note.txt", Span(0, 100), TEXT, None, 2.0, ("key",), Span(25, 76)))
    reply = (await client.post("/v1/ask", json={"documents": [document], "question": "Who paid QX-7741-B?"})).json()
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "key_hit"


UNCLEAR = ("Who paid?", "Margarethe Oldenkamp", "My name is Anna Bloom and I like tea.")


@pytest.fixture
async def doubtful(new_world: WorldMaker) -> AsyncIterator[tuple[httpx.AsyncClient, World, str]]:
    """A server that asks its model, and a document. A scripted token of id n has the probability exp(-n / 1024)."""
    world = new_world(retrieval_certainty=0.9)
    async with open_client(world) as client:
        yield client, world, world.library.put(TEXT)


async def test_a_turn_of_which_the_words_say_nothing_is_put_to_the_model(
    doubtful: tuple[httpx.AsyncClient, World, str], tokenizer: Any
) -> None:
    client, world, document = doubtful
    body = chat(document, *UNCLEAR)
    world.engine.enqueue("Hello Anna", token_ids=[60, 80])  # exp(-70 / 1024) is 0.934
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    retrieval = reply["usage"]["fano"]["retrieval"]
    assert (retrieval["used"], retrieval["reason"], retrieval["passages"]) == (False, "certain", 0)
    probe, asked = world.engine.requests
    assert tuple(probe.prompt_ids) == tuple(asked.prompt_ids) == tokenizer.encode_chat(body["messages"])
    assert (probe.sampling.max_tokens, probe.sampling.temperature, probe.keep.nothing) == (4, 0.0, True)
    assert probe.max_seconds is not None and probe.max_seconds <= 2 and not asked.keep.nothing
    world.engine.enqueue("Hello Anna", token_ids=[40, 200])  # exp(-120 / 1024) is 0.889
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    retrieval = reply["usage"]["fano"]["retrieval"]
    assert (retrieval["used"], retrieval["reason"]) == (True, "uncertain")
    samples = await scrape(client)
    assert samples['fano_retrieval_total{decision="skipped",reason="certain"}'] == 1
    assert samples['fano_retrieval_total{decision="nothing",reason="uncertain"}'] == 1


async def test_a_model_that_cannot_say_leaves_the_turn_searched(
    doubtful: tuple[httpx.AsyncClient, World, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, world, document = doubtful

    async def reason(*said: str) -> tuple[str, int]:
        before = len(world.engine.requests)
        reply = await client.post("/v1/chat/completions", json=chat(document, *said))
        assert reply.status_code == 200, reply.text
        retrieval = reply.json()["usage"]["fano"]["retrieval"]
        assert retrieval["used"]
        return retrieval["reason"], len(world.engine.requests) - before

    world.engine.refuse(QueueFull(9, 9, 1))
    assert await reason(*UNCLEAR) == ("unclear", 0)
    world.engine.enqueue("", token_ids=[1])  # nothing, and of that it is certain
    assert await reason(*UNCLEAR) == ("unclear", 1)
    assert await reason("Tea?", "tea " * 1100, UNCLEAR[-1]) == ("unclear", 0)
    monkeypatch.setattr(doubt, "MOST_SECONDS", 0.05)
    world.engine.stall()
    assert await reason(*UNCLEAR) == ("unclear", 1)  # the engine stands still: only the time makes an end
    assert world.engine.requests[-1].max_seconds == 0.05


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("What does section 4 say?", "document_reference"),
        ("Who discovered penicillin?", "question"),
        ("And why there?", "follow_up"),
        ("Thank you!", "small_talk"),
    ],
)
async def test_the_model_is_not_asked_where_the_words_decide(
    doubtful: tuple[httpx.AsyncClient, World, str], said: str, reason: str
) -> None:
    client, world, document = doubtful
    reply = await client.post("/v1/chat/completions", json=chat(document, *UNCLEAR[:2], said))
    assert reply.json()["usage"]["fano"]["retrieval"]["reason"] == reason
    assert not any(request.sampling.max_tokens == doubt.PROBE_TOKENS for request in world.engine.requests)


async def test_no_certainty_goes_before_a_key(doubtful: tuple[httpx.AsyncClient, World, str]) -> None:
    client, world, document = doubtful
    world.library.plant(Passage(document, "note.txt", Span(0, 100), TEXT, None, 2.0, ("key",), Span(25, 76)))
    reply = await client.post("/v1/chat/completions", json=chat(document, *UNCLEAR[:2], "invoice QX-7741-B"))
    assert reply.json()["usage"]["fano"]["retrieval"]["reason"] == "key_hit"
    assert len(world.engine.requests) == 1


async def test_no_certainty_goes_before_what_was_asked_for(doubtful: tuple[httpx.AsyncClient, World, str]) -> None:
    client, world, document = doubtful
    for fano in ({"recall": "verbatim"}, {"facts": [{"text": "noon"}]}):
        reply = await client.post("/v1/chat/completions", json=chat(document, *UNCLEAR, **fano))
        assert reply.json()["usage"]["fano"]["retrieval"]["used"], reply.text
    assert not any(request.sampling.max_tokens == doubt.PROBE_TOKENS for request in world.engine.requests)


async def test_by_default_the_model_is_not_asked(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    reply = await client.post("/v1/chat/completions", json=chat(document, *UNCLEAR))
    assert reply.json()["usage"]["fano"]["retrieval"]["reason"] == "unclear" and len(world.engine.requests) <= 1


async def test_who_leaves_takes_the_question_to_the_model_back(
    new_world: WorldMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "MOST_SECONDS", 3600.0)  # it is not the time of the probe itself that ends it
    world = new_world(retrieval_certainty=0.9)
    with serving(world.app) as url:
        document = world.library.put(TEXT)
        world.engine.stall()
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=chat(document, *UNCLEAR)))
            await until(lambda: bool(world.engine.requests))
            asking.cancel()
            await asyncio.wait({asking})
        await until(lambda: bool(world.engine.aborted))
        (request,) = world.engine.requests
        assert request.sampling.max_tokens == doubt.PROBE_TOKENS and world.engine.aborted == [request.request_id]
        world.engine.go_on()
