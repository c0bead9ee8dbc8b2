from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.occurrences import occurrences

from .conftest import TENANT

PIECES = st.lists(st.sampled_from(["a", "b", "ab", " ", "\n", "  ", "é", "\u2003", "-"]), max_size=30).map("".join)


def quotes(text: str, quote: str, limit: int = 10) -> list[str]:
    return [text[span.start : span.end] for span in occurrences(text, quote, limit)]


def test_a_quote_is_found_as_written_before_it_is_found_otherwise_set():
    text = "a red\ncar, then a red car and a red  car"
    assert occurrences(text, "red car", 10)[0].start == text.index("red car")
    assert quotes(text, "red car") == ["red car"]
    assert quotes(text, " red\t car\n") == ["red\ncar", "red car", "red  car"]


def test_places_between_words_come_instead_of_those_inside():
    assert [span.start for span in occurrences("2012 and 12 and 121", "12", 10)] == [9]
    assert [span.start for span in occurrences("2012 and 121", "12", 10)] == [2, 9]
    assert quotes("東京都に住む", "京都") == ["京都"]


def test_no_more_places_than_asked_for():
    assert len(occurrences("no " * 50, "no", 7)) == 7
    assert occurrences("no", "no", 0) == occurrences("no", " \n", 5) == occurrences("no", "yes", 5) == []


@given(PIECES, PIECES)
def test_every_place_is_the_quote_but_for_blanks_and_none_is_missed(text, quote):
    spans = occurrences(text, quote, 1000)
    assert all(text[span.start : span.end].split() == quote.split() for span in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))
    wanted = " ".join(quote.split())
    assert bool(spans) == (bool(wanted) and wanted in " ".join(text.split()))


def test_a_library_locates_in_each_document_that_is_the_tenants(library, add_text):
    first = add_text(library, "The red car.\nA blue one.")
    second = add_text(library, "No car here, the\nred   car is there.", "other.txt")
    ids = [second.id, first.id]
    found = library.locate(TENANT, ids, "red car")
    assert [document for document, _ in found] == ids
    assert [library.text(TENANT, document, span.start, span.end) for document, span in found] == [
        "red   car",
        "red car",
    ]
    assert library.locate(TENANT, ids, "red car", limit=1) == found[:1]
    with pytest.raises(UnknownDocument):
        library.locate("other", ids, "red car")
    unread = add_text(library, "not yet", "late.txt", process=False)
    with pytest.raises(DocumentNotReady):
        library.locate(TENANT, [unread.id], "not")
