"""What a contract calls something, asked for: the one value there is, and nothing where more is asked."""

import pytest

from retrieval.passage import Standing

TENANT = "acme"
TEXT = (
    'This agreement is made between Kestrel Foundry Ltd (the "Supplier") and Harbour Works plc (the "Buyer").\n\n'
    "1. The Supplier shall deliver the goods within 30 days of each order.\n\n"
    '2. The Buyer shall pay within 45 days. "Business Day" means any day but a Sunday.\n'
)


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("Who is the Supplier?", "Kestrel Foundry Ltd"),
        ("who are the buyer?", "Harbour Works plc"),
        ("What does “Buyer” mean?", "Harbour Works plc"),
        ("What is a Business Day?", "any day but a Sunday"),
        ('How is the term "Business Day" defined?', "any day but a Sunday"),
    ],
)
def test_a_term_asked_for_alone_is_what_it_stands_for(open_library, add_text, question, value):
    library = open_library()
    document = add_text(library, TEXT)
    found = library.search(TENANT, question, [document.id])
    (only,) = (value for passage in found.passages for value in passage.values)
    assert TEXT[only.span.start : only.span.end] == value and only.standing is Standing.NAMED


@pytest.mark.parametrize("question", ["How much must the Buyer pay?", 'What shall the "Supplier" deliver?'])
def test_a_question_about_it_is_another(open_library, add_text, question):
    library = open_library()
    document = add_text(library, TEXT)
    found = library.search(TENANT, question, [document.id])
    assert all(value.standing is not Standing.NAMED for passage in found.passages for value in passage.values)
