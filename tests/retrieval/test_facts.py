"""Pins and the budget of facts: durable, found before what was recognised, gone with the document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import DocumentNotReady, FactNotPinned, UnknownDocument, UnknownFact
from retrieval.fact_book import within_budget
from retrieval.limits import Limits
from retrieval.passage import Fact, FactKind, Span

from .conftest import TENANT

TEXT = "The red car left. Invoice INV-77 came on 5 March 2024. The blue boat sank at noon near Bern. INV-78 followed.\n"


def pinned(library, document, quote: str, key: str | None = None):
    start = TEXT.index(quote)
    return library.pin(TENANT, document.id, Span(start, start + len(quote)), key)


def test_a_pin_is_verbatim_with_its_sentence_and_the_same_once(library, add_text):
    document = add_text(library, TEXT)
    fact, is_new = pinned(library, document, "blue boat", "vessel")
    assert is_new and pinned(library, document, "blue boat", "vessel") == (fact, False)
    assert library.text(TENANT, document.id, fact.span.start, fact.span.end) == "blue boat"
    sentence = library.text(TENANT, document.id, fact.evidence.start, fact.evidence.end)
    assert sentence == "The blue boat sank at noon near Bern."
    assert (fact.kind, fact.source, fact.key) == (FactKind.PIN, "user", "vessel")
    assert pinned(library, document, "blue boat")[0].id != fact.id


def test_a_pin_outlives_a_restart_and_a_new_index_and_goes_with_the_document(open_library, add_text):
    library = open_library()
    document = add_text(library, TEXT)
    fact, _ = pinned(library, document, "blue boat", "vessel")
    before = library.facts(TENANT, document.id)
    library = open_library()
    store, contents = library._store, library._contents
    number = store.record(document.id).number
    assert library.facts(TENANT, document.id) == before
    store._update(number, "stage = 'indexing'")
    library.process(document.id)
    assert library.facts(TENANT, document.id) == before
    assert [each.evidence for each in contents.facts_by_key([number], ["vessel"])] == [fact.evidence]
    library.delete(TENANT, document.id)
    with store.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM pins").fetchone() == (0,)


def test_a_pin_moves_with_its_text_and_waits_where_it_is_gone(library, add_text):
    document = add_text(library, TEXT)
    fact, _ = pinned(library, document, "blue boat")
    number = library._store.record(document.id).number
    library._store.write_text(number, "New first line. " + TEXT, [])
    library.process(document.id)
    (moved,) = library.facts(TENANT, document.id, source="user")
    assert (moved.id, moved.span.start) == (fact.id, fact.span.start + 16)
    library._store.write_text(number, "Nothing of the kind.", [])
    library.process(document.id)
    assert library.facts(TENANT, document.id, source="user") == []
    library._store.write_text(number, TEXT, [])
    library.process(document.id)
    assert [each.span for each in library.facts(TENANT, document.id, source="user")] == [fact.span]


def test_facts_are_listed_by_kind_source_and_key_in_any_form(library, add_text):
    document = add_text(library, TEXT)
    fact, _ = pinned(library, document, "red car", "the Vehicle")

    def texts(**wanted):
        found = library.facts(TENANT, document.id, **wanted)
        return [library.text(TENANT, document.id, each.span.start, each.span.end) for each in found]

    assert texts() == ["red car", "INV-77", "5 March 2024", "INV-78"]
    assert texts(kind="identifier") == texts(source="code") == ["INV-77", "INV-78"]
    assert texts(key="inv 77") == ["INV-77"] and texts(key="2024-03-05") == ["5 March 2024"]
    assert texts(key="THE VEHICLE") == texts(key="Red Car") == ["red car"] and texts(key="!") == []
    assert texts(after=fact.id, limit=2) == ["INV-77", "5 March 2024"]
    with pytest.raises(UnknownFact):
        texts(after="fact_99")
    with pytest.raises(UnknownDocument):
        library.facts("other", document.id)


def test_only_pins_are_unpinned(library, add_text):
    document = add_text(library, TEXT)
    fact, _ = pinned(library, document, "red car")
    recognised = library.facts(TENANT, document.id, kind="date")[0]
    with pytest.raises(FactNotPinned, match="'date'"):
        library.unpin(TENANT, document.id, recognised.id)
    total = library.stats().num_facts
    library.unpin(TENANT, document.id, fact.id)
    assert library.stats().num_facts == total - 1
    assert library.facts(TENANT, document.id, key="red car") == []
    for wrong in (fact.id, "fact_99", "pin_x"):
        with pytest.raises(UnknownFact):
            library.unpin(TENANT, document.id, wrong)


def test_nothing_is_pinned_before_there_is_text(library, add_text):
    document = add_text(library, TEXT, process=False)
    with pytest.raises(DocumentNotReady):
        library.pin(TENANT, document.id, Span(0, 3))


def test_a_pinned_fact_comes_before_what_was_recognised_under_its_key(library, add_text):
    filler = "Nothing of note was said on that long day at all, and nobody wrote any of it down. " * 40
    text = f"Deadline: 1 May\n\n{filler}\n\nThe truth is that it ends on Monday.\n"
    document = add_text(library, text)
    start = text.index("it ends")
    library.pin(TENANT, document.id, Span(start, start + 17), "Deadline")
    passages = library.search(TENANT, "What is the deadline?", [document.id]).passages
    assert "ends on Monday" in passages[0].text and "1 May" in passages[1].text


def test_a_pin_without_key_is_found_by_its_words(library, add_text):
    filler = "Nothing of note was said on that long day at all, and nobody wrote any of it down. " * 40
    text = f"{filler}\n\nThe blue boat sank at noon.\n\n{filler}"
    document = add_text(library, text)
    start = text.index("The blue")
    library.pin(TENANT, document.id, Span(start, start + 26))
    assert library.search(TENANT, "When did the blue boat sink?", [document.id]).passages[0].found_by[0] == "key"


def test_beyond_the_budget_the_lowest_scores_go_and_are_counted(open_library, add_text):
    library = open_library(limits=Limits(max_facts=2))
    document = add_text(library, TEXT)
    pinned(library, document, "red car")
    kinds = [fact.kind.value for fact in library.facts(TENANT, document.id)]
    assert kinds == ["pin", "identifier", "date"]
    assert library.dropped_facts(TENANT, document.id) == {"identifier": 1}


@given(st.lists(st.tuples(st.sampled_from(list(FactKind)), st.integers(1, 9)), max_size=20), st.integers(0, 20))
def test_the_budget_keeps_the_best_and_counts_the_rest(scored, most):
    facts = [
        Fact(kind, Span(n, n + 1), "x", (), Span(n, n + 1), "s", score / 9) for n, (kind, score) in enumerate(scored)
    ]
    kept, dropped = within_budget(facts, most)
    assert len(kept) == min(most, len(facts)) and len(kept) + sum(dropped.values()) == len(facts)
    assert [fact.span for fact in kept] == sorted(fact.span for fact in kept)
    left = [fact for fact in facts if fact not in kept]
    assert not left or not kept or max(fact.score for fact in left) <= min(fact.score for fact in kept)
