"""Copies of a passage are told in it; what differs in anything that could be asked for is a passage of its own."""

from dataclasses import replace

import pytest

from retrieval.duplicates import collapsed, says_the_same
from retrieval.passage import Copy, Passage, Span, Value

TENANT = "acme"
CLAUSE = (
    "The tenant shall pay the rent of 1,200 EUR to Anna Berg on the first day of every month, and shall keep the "
    "garden, the fence and the path in the state in which they were found when the house was taken over. Repairs are "
    "borne by the owner unless the damage was done on purpose or could have been prevented with the care that is usual "
    "among careful people, and the owner may enter the house to see to them after a word in good time. "
)


def passage(text: str, document: str = "doc_1", score: float = 0.4, **fields: object) -> Passage:
    return Passage(document, f"{document}.txt", Span(10, 10 + len(text)), text, 3, score, ("lexical",), **fields)


@pytest.mark.parametrize(
    "other",
    [
        CLAUSE,
        CLAUSE.replace(" ", "\n"),
        CLAUSE.replace("when the house was", "as the house was"),
    ],
)
def test_nearly_the_same_text_is_told_in_the_better_passage(other):
    better, copy = passage(CLAUSE), passage(other, "doc_2")
    rest = passage("Something else altogether stands here.", "doc_2")
    kept = collapsed([better, copy, rest], 5)
    assert kept == (replace(better, also=(Copy("doc_2", "doc_2.txt", copy.span, 3),)), rest)


@pytest.mark.parametrize(
    "other",
    [
        CLAUSE.replace("1,200", "1,300"),
        CLAUSE.replace("Anna", "Otto"),
        CLAUSE.replace("shall keep", "shall not keep"),
        CLAUSE.replace("shall keep", "need not keep"),
        CLAUSE.replace("the garden, the fence and the path in the state", "the roof, the well and the barn in a state"),
        CLAUSE + "Dogs are allowed.",
    ],
)
def test_what_differs_in_anything_that_matters_stays(other):
    kept = collapsed([passage(CLAUSE), passage(other, "doc_2")], 5)
    assert [each.text for each in kept] == [CLAUSE, other] and all(each.also == () for each in kept)


def test_passages_that_met_a_key_are_one_only_with_the_same_values_under_it():
    sentence, value = Span(10, 10 + len(CLAUSE)), Span(40, 49)

    def met(document: str, key: str, span: Span) -> Passage:
        return passage(CLAUSE, document, evidence=sentence, values=(Value(span, sentence, key),))

    better = met("doc_1", "rent", value)
    assert says_the_same(better, met("doc_2", "rent", value))
    assert not says_the_same(better, met("doc_2", "rent", Span(40, 50)))
    assert not says_the_same(better, met("doc_2", "garden", value))
    assert not says_the_same(better, passage(CLAUSE, "doc_2"))
    assert not says_the_same(better, passage(CLAUSE, "doc_2", evidence=Span(10, 80)))


def test_copies_make_room_for_others_in_a_search(library, add_text):
    story = "The mill by the river was sold to the baker, who had the wheel mended in spring.\n\n"
    rain = "It rained for days. " * 40
    others = "".join(
        f"In village {number} a mill stood by the river, too, and grain came from {word}. {rain}\n\n"
        for number, word in enumerate(("afar", "abroad", "everywhere"))
    )
    copies = [add_text(library, story + ending, f"{number}.txt") for number, ending in enumerate(("", " ", "\n"))]
    different = add_text(library, others)
    ids = [document.id for document in (*copies, different)]
    passages = library.search(TENANT, "Who bought the mill by the river?", ids, 3).passages
    assert "sold to the baker" in passages[0].text
    first = passages[0]
    assert {first.document_id, *(copy.document_id for copy in first.also)} == {document.id for document in copies}
    assert len(passages) == 3 and all("sold to the baker" not in each.text for each in passages[1:])
    for copy in first.also:
        text = library.text(TENANT, copy.document_id, copy.span.start, copy.span.end)
        assert text.split() == first.text.split()
