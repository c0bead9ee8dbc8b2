"""What stands under the key asked for: which places count, when no model is asked, and what is never limited."""

import json
from dataclasses import replace

import httpx
import pytest
from fakes_server import MODEL, World, sse

from retrieval.passage import Passage, Span, Standing, Value
from server.answers.certainty import Evidence, values_of
from server.answers.citations import Source

TEXT = "AB-12: 4471\nab 12: 5582\nAB-12: 6693\nAB-12: 4471"
ASK = {"question": "What is AB-12?", "recall": "verbatim"}


def value(piece: str, at: int = 0, **changes: object) -> Value:
    """Of the line that has ``piece``, the one after character ``at``."""
    start = TEXT.index(piece, at)
    line = TEXT.rfind("\n", 0, start) + 1
    found = Value(Span(start, start + len(piece)), Span(line, start + len(piece)), "AB-12")
    return replace(found, **changes)  # type: ignore[arg-type]


def passage(document: str, *values: Value) -> Passage:
    whole = Span(0, len(TEXT))
    return Passage(document, "n.txt", whole, TEXT, None, 1.0, ("key",), whole, None, values)


def texts(*values: Value, question: str = "What is AB-12?") -> tuple[list[str], bool]:
    chosen = values_of([Source(1, passage("d", *values))], question)
    return [piece.text for piece in chosen.pieces], chosen.is_certain


async def test_one_certain_value_is_looked_up_and_no_model_is_asked(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT, name="n.txt")
    world.library.plant(passage(document, value("4471")))
    body = (await client.post(f"/v1/documents/{document}/ask", json={**ASK, "max_tokens": 1})).json()
    assert (body["answer"], body["found"], body["finish_reason"]) == ("4471", True, "stop")
    (citation,) = body["citations"]
    assert TEXT[citation["start"] : citation["end"]] == "4471" and citation["source"] == 1
    assert world.engine.requests == []
    assert body["usage"]["total_tokens"] == 0
    assert body["usage"]["fano"]["resident_bytes"] == {"kv": 0, "ssm_state": 0, "conv_state": 0}
    assert body["usage"]["fano"]["retrieval"]["reason"] == "key_hit"


async def test_equally_exact_places_that_differ_are_all_answered(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT, name="n.txt")
    folded = value("5582", is_raw=False)
    world.library.plant(passage(document, value("4471"), folded, value("6693"), value("4471", 30)))
    body = (await client.post(f"/v1/documents/{document}/ask", json=ASK)).json()
    assert body["answer"] == "4471\n6693"
    assert [citation["start"] for citation in body["citations"]] == [TEXT.index("4471"), TEXT.index("6693")]
    for citation in body["citations"]:
        assert body["answer"][citation["answer_start"] : citation["answer_end"]] == citation["quote"]
    note = body["usage"]["fano"]["retrieval"]["note"]
    assert "the key stands in 3 places with 2 different values" in note
    assert "in another writing it stands in 1 place, which do not count" in note


async def test_a_stream_of_what_was_looked_up_has_the_same_shape(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT, name="n.txt")
    world.library.plant(passage(document, value("4471"), value("6693")))
    reply = await client.post(f"/v1/documents/{document}/ask", json={**ASK, "stream": True})
    events = sse(reply.text)
    assert [name for name, _ in events] == ["sources", "token", "citation", "token", "citation", "done"]
    done = json.loads(events[-1][1])
    assert "".join(json.loads(data)["text"] for name, data in events if name == "token") == done["answer"]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "What is AB-12?"}]}
    fano = {"documents": [document], "recall": "verbatim"}
    message = (await client.post("/v1/chat/completions", json={**chat, "fano": fano})).json()["choices"][0]["message"]
    assert message["content"] == done["answer"] and len(message["annotations"]) == 2


def test_only_folded_places_all_count() -> None:
    assert texts(value("4471", is_raw=False), value("6693", is_raw=False)) == (["4471", "6693"], True)


def test_two_facts_of_one_sentence_are_not_both_the_answer() -> None:
    first, second = value("4471", standing=Standing.BESIDE), value("AB", standing=Standing.BESIDE)
    assert texts(first, second) == (["4471", "AB"], False)


def test_a_sentence_limits_only_if_it_has_all_that_is_asked() -> None:
    assert texts(value("4471", standing=Standing.BESIDE, is_asked=False)) == ([], False)
    assert texts(value("4471", standing=Standing.NAMED, is_asked=False)) == (["4471"], True)


def test_a_sentence_with_all_that_is_asked_beats_a_line_without() -> None:
    line = value("4471", is_asked=False)
    sentence = value("5582", standing=Standing.BESIDE)
    assert texts(line, sentence) == (["5582"], True)
    assert texts(value("4471"), sentence) == (["4471"], True)


def test_pins_come_before_what_the_text_says() -> None:
    assert texts(value("4471"), value("6693", standing=Standing.PINNED)) == (["6693"], True)


def test_a_part_of_another_key_does_not_count() -> None:
    assert texts(value("4471"), value("6693", key="seal AB-12", rank=5)) == (["6693"], True)


def test_of_phrases_the_likeliest_counts_and_of_codes_each() -> None:
    first, second = value("4471", key="notice period", rank=2), value("6693", key="period length", rank=3)
    assert texts(first, second) == (["4471"], True)
    assert texts(value("4471"), value("6693", key="AB-13", rank=1)) == (["4471", "6693"], True)


def test_a_rest_of_a_row_is_not_the_answer() -> None:
    assert texts(value("4471", is_whole=False)) == (["4471"], False)


@pytest.mark.parametrize(("question", "limited"), [("Where is AB-12?", False), ("When was AB-12?", True)])
def test_of_a_sentence_only_what_can_be_it_counts(question: str, limited: bool) -> None:
    assert texts(value("4471", standing=Standing.BESIDE), question=question)[1] is limited
    assert texts(value("4471"), question=question) == (["4471"], True)


def test_what_is_not_in_the_passage_is_not_shown() -> None:
    found = replace(passage("d", value("6693")), span=Span(0, 12), text=TEXT[:12])
    assert values_of([Source(1, found)], "What is AB-12?").pieces == ()
    inside = replace(passage("d", value("4471")), span=Span(0, 12), text=TEXT[:12])
    (piece,) = values_of([Source(1, inside)], "What is AB-12?").pieces
    assert piece == Evidence(Source(1, inside), 7, "4471")
