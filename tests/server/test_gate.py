"""Which turns are searched for, why, and with which query."""

from typing import Any

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client, scrape

from retrieval.passage import Passage, Span
from server.follow_up import follows, standalone_query
from server.gate import Reason, decide
from server.prompt import Turn

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
