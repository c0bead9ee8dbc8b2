"""A part of a document is searched as if there were no more: nothing in it is missed, nothing beside it is told."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.chunker import chunk
from retrieval.lexical_index import LexicalPart, LexicalQuery, search_lexical
from retrieval.passage import FactKind, Span
from retrieval.scope import Scope, merged, rows_in
from retrieval.tantivy_index import TantivyIndex

TENANT = "acme"
LOUD = (
    "The lantern room has a lantern on each lantern hook, lantern by lantern, and nothing else is in there at all. " * 3
)
QUIET = (
    "Somebody left a small lantern in the boathouse, they say, beside ropes and oars and a stove that is never lit, "
    "and if it was not the boatman himself, who is known to forget such things in his boats and elsewhere, then it was "
    "his brother, whom nobody has asked, or it has been there ever since the house was built, and no one knows."
)


class Lanterns:
    """An embedder for which a text is about lanterns, or boats as well."""

    dimension = 3
    fingerprint = "lanterns-1"

    def embed_passages(self, texts):
        rows = np.array([[text.lower().count("lantern"), text.count("boat"), 0.01] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text):
        return self.embed_passages([text])[0]


def part_of(document, text, piece):
    return Scope({document.id: (Span(text.index(piece), text.index(piece) + len(piece)),)})


def ask(library, question, document, scope, **options):
    return library.search(TENANT, question, [document.id], scope=scope, **options)


def test_what_five_hundred_others_outrank_is_found_in_its_part(open_library, add_text):
    library = open_library(Lanterns())
    text = "\n\n".join([LOUD] * 300 + [QUIET] + [LOUD] * 300)
    document = add_text(library, text)
    question = "Where is a lantern?"
    record = library._store.record(document.id)
    shelf, words = library._shelves.open(record), LexicalQuery.of(question)
    place = next(chunk.ordinal for chunk in library._contents.chunks(record.number) if chunk.start == text.index(QUIET))
    by_words = [ordinal for ordinal, _ in shelf.lexical.search(words, 1000, {})]
    by_meaning = [shelf.chunk_of[row] for row, _ in shelf.vectors.search(Lanterns().embed_query(question), 5000)]
    assert by_words.index(place) >= 500 and len(dict.fromkeys(by_meaning[: by_meaning.index(place)])) >= 500
    assert not any(
        QUIET in passage.text for passage in ask(library, question, document, None, max_passages=20).passages
    )
    result = ask(library, question, document, part_of(document, text, QUIET))
    assert [passage.text for passage in result.passages] == [QUIET]
    assert result.passages[0].found_by == ("lexical", "dense") and result.num_chunks_searched == 1


def test_only_the_facts_of_the_part_are_met_and_passages_end_with_it(library, add_text):
    lines = [f"Valve KX-1001 was tested by team {number} on the {number}th." for number in range(4, 9)]
    text = " ".join(lines)
    document = add_text(library, text)
    result = ask(library, "Who tested valve KX-1001?", document, part_of(document, text, f"{lines[1]} {lines[2]}"))
    assert [passage.text for passage in result.passages] == [f"{lines[1]} {lines[2]}"]
    assert result.num_facts == 2
    # A border in the middle of a sentence cuts it, and what is not whole in the part is no fact of it.
    piece = f"{lines[1]} Valve KX-1001 was tested by"
    (passage,) = ask(library, "Who tested valve KX-1001?", document, part_of(document, text, piece)).passages
    assert passage.text == piece
    piece = lines[1].removeprefix("Valve ")
    (passage,) = ask(library, "Who tested valve KX-1001?", document, part_of(document, text, piece)).passages
    assert passage.text == piece == text[passage.nearest.span.start : passage.nearest.span.end]
    piece = text[text.index(lines[3]) + len("Valve KX") : text.index(lines[3]) + 40]
    assert ask(library, "Who tested valve KX-1001?", document, part_of(document, text, piece)).num_facts == 0


def test_words_beside_the_part_do_not_speak_for_it(library, add_text):
    # Two sentences of one chunk, long enough to have vectors of their own.
    first = "The porter keeps a parrot in the hall of the old house by the river, where it has been ever since he came."
    second = (
        "The boat sails at nine from the northern pier, whatever the weather may be and whoever has not arrived yet."
    )
    document = add_text(library, f"{first} {second}")
    assert library.search(TENANT, "parrot?", [document.id]).found
    inside = part_of(document, f"{first} {second}", second)
    nothing = ask(library, "parrot?", document, inside)
    assert not nothing.found and not any("lexical" in passage.found_by for passage in nothing.passages)
    assert ask(library, "boats?", document, inside).found


def test_hops_do_not_leave_the_part(library, add_text):
    text = (
        "The seal is kept under BX-7731.\n\n"
        + "Filler of no interest whatever, said slowly. " * 40
        + "\n\nBX-7731 is stored in QV-2040.\n\n"
        + "Filler of no interest whatever, said slowly. " * 40
        + "\n\nQV-2040: in the cellar"
    )
    document = add_text(library, text)
    whole = library.search(TENANT, "What is BX-7731?", [document.id], 20)
    assert any("cellar" in passage.text for passage in whole.passages if "hop" in passage.found_by)
    end = text.index("QV-2040: in")
    result = ask(library, "What is BX-7731?", document, Scope({document.id: (Span(0, end),)}), max_passages=20)
    assert result.passages and not any("cellar" in passage.text for passage in result.passages)


def test_kinds_limit_what_keys_lead_to(library, add_text):
    text = (
        "Deadline: 4 May 2031\n\n"
        + "Other things were said at length. " * 40
        + "\n\nThe invoice INV-2024-07 is due on 4 May 2031."
    )
    document = add_text(library, text)
    question = "What of INV-2024-07 and the 'deadline'?"
    both = library.search(TENANT, question, [document.id])
    assert {"Deadline" in p.text for p in both.passages if "key" in p.found_by} == {True, False}
    result = ask(library, question, document, Scope(kinds=frozenset({FactKind.IDENTIFIER})))
    by_key = [passage.text for passage in result.passages if "key" in passage.found_by]
    assert len(by_key) == 1 and "INV-2024-07" in by_key[0]


def test_pages_are_those_on_which_the_part_of_a_passage_begins(library, add_text):
    document = add_text(library, "The first sentence of all. The second one of two.")
    number = library._store.record(document.id).number
    with library._store.database.write() as (connection, _):
        connection.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", [(number, 1, 0, 27), (number, 2, 27, 49)])
        connection.execute("UPDATE chunks SET page = 1")
    (passage,) = ask(library, "sentence second one", document, Scope({document.id: (Span(27, 49),)})).passages
    assert (passage.text, passage.page) == ("The second one of two.", 2)


def test_a_text_is_located_in_the_part_alone(library, add_text):
    document = add_text(library, "Paid on Monday. Paid on Tuesday.")
    inside = Scope({document.id: (Span(16, 32),)})
    assert library.locate(TENANT, [document.id], "Paid", scope=inside) == [(document.id, Span(16, 20))]
    assert library.locate(TENANT, [document.id], "Monday", scope=inside) == []


def test_sections_are_told_with_their_titles(library, add_text):
    text = "# Contract\n\nBetween two.\n\n## Term\n\nOne year.\n\n## Notice\n\nThree months."
    document = add_text(library, text)
    told = [(titles, text[span.start : span.end]) for titles, span in library.sections(TENANT, document.id)]
    assert told == [
        (("Contract",), "# Contract\n\nBetween two."),
        (("Contract", "Term"), "## Term\n\nOne year."),
        (("Contract", "Notice"), "## Notice\n\nThree months."),
    ]


def test_a_word_is_as_rare_as_it_is_in_the_part():
    texts = [f"the {'harbour' if number < 90 else 'orchard'} of number {number}" for number in range(100)]
    whole = TantivyIndex.build(None, [(text, "") for text in texts], 4000)
    alone = TantivyIndex.build(None, [(text, "") for text in texts[88:]], 4000)
    query = LexicalQuery.of("the harbour or the orchard")
    part = LexicalPart(whole, range(88, 100), {})
    assert len(part) == 12 and all(part.frequency(term) == alone.frequency(term) for term, _ in query.terms())
    found, expected = (search_lexical([index], query, 12) for index in (part, alone))
    assert found.rarities == expected.rarities
    assert [(ordinal - 88, pytest.approx(score, rel=1e-5)) for _, ordinal, score in found.hits] == [
        (ordinal, score) for _, ordinal, score in expected.hits
    ]
    assert LexicalPart(whole, [], {}).search(query, 5, {}) == []


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=30),
    parts=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=5),
)
def test_rows_in_spans_by_hand(lengths, parts):
    rows, position = [], 0
    for length, gap in lengths:
        rows.append((position, position + length))
        position += length + gap
    spans = merged([Span(start, start + length) for start, length in parts])
    assert all(one.end < two.start for one, two in pairwise(spans))
    found, whole = rows_in(np.array(rows, np.int32), spans)
    reach = [any(start < span.end and span.start < end for span in spans) for start, end in rows]
    inside = [any(span.start <= start and end <= span.end for span in spans) for start, end in rows]
    assert found.tolist() == [row for row, there in enumerate(reach) if there]
    assert found[whole].tolist() == [row for row, there in enumerate(inside) if there]


def test_chunks_never_hold_the_text_of_two_headings_beside_each_other():
    text = "# A\n\nOne.\n\n# B\n\nTwo.\n\n# A\n\nThree."
    assert [(each.heading, each.text) for each in chunk(text)] == [
        ("A", "# A\n\nOne."),
        ("B", "# B\n\nTwo."),
        ("A", "# A\n\nThree."),
    ]
