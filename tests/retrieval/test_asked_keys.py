"""Which keys of a question lead to a place, and which only speak for one."""

import pytest

from retrieval.asked_keys import meet
from retrieval.keys import KeyShape, query_keys

TENANT = "acme"
TEXT = (
    "Deadline: the Friday after Easter\n\nThe parcel QX-7741-B came on 3 May 2021.\n\nThe mill cost $5,000 in all.\n\n"
    "| valve | tested |\n| --- | --- |\n| brass valve | by Mrs Ellery |\n\n"
    "Write to ellery@mill.example before noon.\n\n"
    'The lease is between Jon Harker (the "Miller") and others. The Miller shall grind the corn.\n'
)


@pytest.fixture
def met(library, add_text):
    record = library._store.record(add_text(library, TEXT).id)

    def met(question):
        found = meet(library._contents, question, [record])
        return found, set(found.leading), set(found.weak)

    return met


@pytest.mark.parametrize(
    "question",
    [
        "Where is QX7741B?",
        "where is qx 7741 b?",
        'Who tested the "brass valve", and how?',
        "What was sent to ELLERY@mill.example?",
        "What is the deadline?",
        "Who is the Miller?",
    ],
)
def test_codes_addresses_and_what_is_quoted_or_all_that_is_asked_lead(met, question):
    _, leading, _ = met(question)
    assert len(leading) == 1


@pytest.mark.parametrize(
    "question", ["Who came to the parcel office on 3 May 2021?", "What cost the miller of the village $5,000?"]
)
def test_dates_and_amounts_only_speak_for_their_places(met, question):
    found, leading, weak = met(question)
    assert not leading
    (place,) = weak
    assert found.rarities(place) == (1.0,) * len(found.weak[place].forms)


def test_what_stands_all_over_speaks_for_nothing(library, add_text):
    text = "\n\n".join(f"The mill was sold for $5,000 to miller number {number}." for number in range(9))
    record = library._store.record(add_text(library, text).id)
    assert not meet(library._contents, "Who bought the mill for $5,000?", [record]).weak


@pytest.mark.parametrize(
    ("question", "raw", "shape"),
    [
        ("What of INV 2024 000123?", "INV 2024 000123", KeyShape.CODE),
        ("What of US 2010?", "US 2010", KeyShape.PHRASE),
        ("What in the 1990s?", "1990s", KeyShape.VALUE),
        ("What in 1990?", "1990", KeyShape.VALUE),
        ("What of 48213?", "48213", KeyShape.CODE),
        ("What for $5,000?", "$5,000", KeyShape.VALUE),
        ("What does `max_rows` do?", "max_rows", KeyShape.QUOTED),
    ],
)
def test_shapes(question, raw, shape):
    assert {key.raw: key.shape for key in query_keys(question)}[raw] is shape
