"""A model that reads one sentence: what stands in its prompt, what it may quote, what is shown beside it."""

from dataclasses import replace
from typing import Any

import pytest
from fakes_server import World, WorldMaker, open_client

from model.config import ReadingUnit
from model.engine.request import EvidenceSpan
from model.tokenizer import Tokenizer
from retrieval.passage import Nearest, Passage, Span, Standing, Value
from server.answers.certainty import Evidence, may_answer
from server.answers.citations import Source
from server.answers.groundwork import quotable

TEXT = "The vault opens at noon. The porter keeps the key in a globe. Ferries leave on Tuesday. Nothing else happened."
QUESTION = {"question": "Where is the key?", "recall": "verbatim"}


def passage(document: str, start: int, end: int, nearest: str | None, score: float) -> Passage:
    found = Passage(document, "note.txt", Span(start, end), TEXT[start:end], None, 1.0, ("dense",))
    if nearest is None:
        return found
    at = TEXT.index(nearest)
    return replace(found, nearest=Nearest(Span(at, at + len(nearest)), score))


def reading_world(new_world: WorldMaker) -> tuple[World, str]:
    world = new_world(reads=ReadingUnit.SENTENCE)
    return world, world.library.put(TEXT)


async def ask(world: World, document: str, tokenizer: Tokenizer) -> tuple[dict[str, Any], str, tuple[str, ...] | None]:
    async with open_client(world) as client:
        reply = await client.post("/v1/ask", json={"documents": [document], **QUESTION})
    assert reply.status_code == 200, reply.text
    (request,) = world.engine.requests
    return reply.json(), tokenizer.decode(request.prompt_ids), request.evidence


async def test_it_reads_the_nearest_sentence_and_every_source_is_shown(
    new_world: WorldMaker, tokenizer: Tokenizer
) -> None:
    world, document = reading_world(new_world)
    key = "The porter keeps the key in a globe."
    world.library.plant(
        passage(document, 62, len(TEXT), "Ferries leave on Tuesday.", 0.3), passage(document, 0, 61, key, 0.8)
    )
    world.engine.enqueue("globe", spans=(EvidenceSpan(0, 30, 35),))
    reply, prompt, evidence = await ask(world, document, tokenizer)
    assert evidence == (key,)
    assert f"[1] {key}" in prompt and "Ferries" not in prompt and "vault" not in prompt
    assert [source["number"] for source in reply["sources"]] == [1, 2]
    (citation,) = reply["citations"]
    assert citation["source"] == 2
    assert TEXT[citation["start"] : citation["end"]] == reply["answer"] == "globe"


async def test_the_row_under_a_key_comes_before_what_is_nearer(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world, document = reading_world(new_world)
    at = TEXT.index("Ferries")
    under_key = replace(passage(document, 62, len(TEXT), None, 0.0), evidence=Span(at, at + 25))
    world.library.plant(under_key, passage(document, 0, 61, "The vault opens at noon.", 0.9))
    _, _, evidence = await ask(world, document, tokenizer)
    assert evidence == ("Ferries leave on Tuesday.",)


async def test_without_vectors_it_reads_the_first_passage(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world, document = reading_world(new_world)
    world.library.plant(passage(document, 0, 61, None, 0.0), passage(document, 62, len(TEXT), None, 0.0))
    _, _, evidence = await ask(world, document, tokenizer)
    assert evidence == (TEXT[:61],)


async def test_among_the_facts_of_a_sentence_only_whole_ones_that_can_be_it_are_quoted(
    new_world: WorldMaker, tokenizer: Tokenizer
) -> None:
    text = "Code AB-12: 4471 of 2024-01-02."
    world = new_world(reads=ReadingUnit.SENTENCE)
    document = world.library.put(text)
    sentence = Span(0, 31)
    values = tuple(Value(span, sentence, "AB-12", 0, True, Standing.BESIDE) for span in (Span(12, 16), Span(20, 30)))
    found = Passage(document, "n.txt", sentence, text, None, 1.0, ("key",), sentence, None, values)
    world.library.plant(found)
    _, prompt, evidence = await ask(world, document, tokenizer)
    assert evidence == (text,)  # a place is none of the facts
    assert text in prompt and not world.engine.requests[0].whole_evidence
    source = Source(1, found)
    assert quotable([source], "What is under AB-12?") == (
        (Evidence(source, 12, "4471"), Evidence(source, 20, "2024-01-02")),
        True,
    )


@pytest.mark.parametrize(
    ("question", "value", "may"),
    [
        ("Who paid QX-7?", "2024-01-02", False),
        ("Who paid QX-7?", "Clara Ostrander", True),
        ("When was QX-7 paid?", "2024-01-02", True),
        ("When was QX-7 paid?", "Clara Ostrander", False),
        ("How much was QX-7?", "$12", True),
        ("Where is QX-7?", "$12", False),
        ("How was QX-7 paid?", "$12", False),
        ("What is the number of QX-7?", "4471", True),
        ("QX-7", "4471", True),
    ],
)
def test_a_value_may_answer_what_asks_for_its_kind(question: str, value: str, may: bool) -> None:
    assert may_answer(question, value) is may
