"""Keys, words, meaning: who finds what, in which order, and when nothing is found."""

from itertools import pairwise

import numpy as np
import pytest

from retrieval.chunker import chunk
from retrieval.errors import UnknownDocument
from retrieval.fusion import fuse
from retrieval.passages import MAX_PASSAGE_CHARACTERS
from retrieval.vector_rows import vector_rows

TENANT = "acme"
FILLER = "The committee met again and spoke of other matters at some length, without coming to any result at all. " * 6


class Meaning:
    """An embedder that knows a few synonyms: each concept is a direction, everything else is filler."""

    CONCEPTS = (
        ("porter", "doorman", "key", "cellar", "basement"),
        ("ferry", "boat", "island"),
        ("stew", "herb", "cook"),
    )
    dimension = 4
    fingerprint = "meaning-1"

    def embed_passages(self, texts):
        rows = np.array(
            [[sum(text.lower().count(word) for word in words) for words in self.CONCEPTS] + [0.05] for text in texts],
            dtype=np.float32,
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text):
        return self.embed_passages([text])[0]


def paragraphs(*texts: str) -> str:
    return "\n\n".join(f"{FILLER}\n\n{text}" for text in texts) + f"\n\n{FILLER}"


def ask(library, question, *documents, **options):
    return library.search(TENANT, question, [document.id for document in documents], **options)


def test_fusion_scores_by_hand():
    scores = fuse({"a": ["x", "y"], "b": ["y"]}, {"a": 1.0, "b": 2.0})
    assert scores == pytest.approx({"x": (1 / 2) / (3 / 2), "y": (1 / 3 + 2 / 2) / (3 / 2)})


def test_first_everywhere_scores_one_and_an_empty_ranking_counts_for_nothing():
    assert fuse({"a": ["x", "y"], "b": []}, {"a": 1.0, "b": 1.0})["x"] == 1.0
    assert fuse({}, {}) == {}


def test_every_chunk_has_rows_of_its_own_sentences():
    text = paragraphs("Yes. No. The porter hides the spare key in a globe. " + "word " * 400, "| a | b |\n| c | d |")
    chunks = chunk(text)
    rows = vector_rows(text, chunks)
    assert sorted({row.chunk for row in rows}) == list(range(len(chunks)))
    for row in rows:
        owner = chunks[row.chunk].span
        assert owner.start <= row.span.start < row.span.end <= owner.end
    assert all(one.span.end <= next_one.span.start for one, next_one in pairwise(rows))
    assert "Yes. No. The porter hides the spare key in a globe." in [text[r.span.start : r.span.end] for r in rows]
    covered = "".join(text[row.span.start : row.span.end] for row in rows)
    assert "".join(covered.split()) == "".join("".join(one.text for one in chunks).split())


def test_other_words_are_found_by_meaning(open_library, add_text):
    library = open_library(Meaning())
    document = add_text(
        library, paragraphs("The porter hides the spare one in a globe.", "The ferry leaves on Tuesday.")
    )
    result = ask(library, "Where does the doorman keep it?", document)
    assert "globe" in result.passages[0].text
    assert "dense" in result.passages[0].found_by
    nearest = result.passages[0].nearest
    assert nearest is not None and nearest.score > 0
    stored = library.text(TENANT, document.id, nearest.span.start, nearest.span.end)
    assert stored == "The porter hides the spare one in a globe."


def test_a_key_is_found_in_any_writing_and_comes_first_with_its_sentence(library, add_text):
    text = paragraphs(
        "Parcel QX-7741-B was brought to the lighthouse by mistake.",
        "A parcel for the lighthouse, a lighthouse parcel by mistake, was brought to the lighthouse.",
    )
    document = add_text(library, text)
    for question in ("Where is QX-7741-B?", "where is qx 7741 b?", "Where is QX7741B, the parcel by mistake?"):
        top = ask(library, question, document).passages[0]
        assert (
            text[top.evidence.start : top.evidence.end] == "Parcel QX-7741-B was brought to the lighthouse by mistake."
        )
        assert top.found_by[0] == "key"
        assert 0.5 < top.score <= 1.0


def test_as_written_outranks_folded_and_all_collisions_are_returned(library, add_text):
    spellings = ("ab12.34", "AB-12.34", "AB/12.34", "ab-12.34")
    document = add_text(library, paragraphs(*(f"The valve {spelling} was tested." for spelling in spellings)))
    for spelling in spellings:
        result = ask(library, f"What about the valve {spelling}?", document)
        by_key = [passage for passage in result.passages if "key" in passage.found_by]
        assert f"valve {spelling} was" in by_key[0].text
        assert len(by_key) == result.num_facts == 4


def test_a_piece_of_a_code_that_stands_there_leads_nowhere(library, add_text):
    text = paragraphs("They rose to 7151 feet above Glacier Depot.", "Voucher INV-2024-007151 went to Doris Adler.")
    document = add_text(library, text)
    result = ask(library, "To whom did voucher INV 2024 007151 go?", document)
    assert "Doris Adler" in result.passages[0].text
    assert not any("key" in passage.found_by for passage in result.passages[1:])
    # Asked for by itself, it does.
    assert "Glacier" in ask(library, "What lies below 7151 feet?", document).passages[0].text


def test_more_key_hits_than_passages_are_told(library, add_text):
    document = add_text(library, paragraphs(*(f"Valve KX-1001 was tested by team {n}." for n in range(7))))
    result = ask(library, "Who tested valve KX-1001?", document)
    assert [passage.found_by[0] for passage in result.passages] == ["key"] * 5
    assert result.reason.endswith("what was asked for by key stands in 7 places, of which 5 are given")
    assert "places" not in ask(library, "Who tested valve KX-1001?", document, max_passages=7).reason


def test_a_document_deleted_while_it_is_searched_is_unknown(library, add_text, monkeypatch):
    document = add_text(library, paragraphs("The lantern KX-1001 hangs in the hall."))
    # Its shelf stands: while one is made, a deletion waits.
    ask(library, "Where hangs the lantern KX-1001?", document)
    text = library._store.text

    def deleting(*arguments):
        library.delete(TENANT, document.id)
        return text(*arguments)

    monkeypatch.setattr(library._store, "text", deleting)
    with pytest.raises(UnknownDocument):
        ask(library, "Where hangs the lantern KX-1001?", document)


def test_more_keys_of_the_question_come_first(library, add_text):
    document = add_text(
        library,
        paragraphs(
            "Order KX-1001 was cancelled.", "Order KX-1001 was shipped with KX-2002.", "Order KX-2002 was paid."
        ),
    )
    result = ask(library, "What links KX-1001 and KX-2002?", document)
    assert "shipped with" in result.passages[0].text


def test_of_several_sentences_under_a_key_the_nearest_to_the_question_is_the_evidence(library, add_text):
    text = "Order KX-1001 was packed here. Order KX-1001 was paid by cheque at last. Order KX-1001 was lost."
    document = add_text(library, text)
    top = ask(library, "How was order KX-1001 paid?", document).passages[0]
    assert text[top.evidence.start : top.evidence.end] == "Order KX-1001 was paid by cheque at last."


def values(library, document, question):
    top = ask(library, question, document).passages[0]
    spans = list(dict.fromkeys(value.span for value in top.values))
    assert all(top.span.start <= span.start <= span.end <= top.span.end for span in spans)
    return [library.text(TENANT, document.id, span.start, span.end) for span in spans]


def test_under_a_key_asked_for_stands_its_value(library, add_text):
    document = add_text(
        library,
        "Deadline: the Friday after Easter\n\nThe parcel QX-7741-B weighs 12 kg and came on 3 May 2021.\n\n"
        "| valve | tested |\n| KX-1001 | by Mrs Ellery |\n\nThe gate RR-4141, as RR 4141 is written, is green.\n",
    )
    assert values(library, document, "What is the deadline?") == ["the Friday after Easter"]
    assert values(library, document, "What do the notes say of qx 7741 b?") == ["12 kg", "3 May 2021"]
    assert values(library, document, "Who tested KX1001?") == ["by Mrs Ellery"]
    # Neither the key itself nor another mention of it is a value.
    assert values(library, document, "What colour has the gate RR-4141?") == []


def test_every_place_of_equal_keys_has_its_value_and_says_how_exactly_it_was_met(library, add_text):
    document = add_text(library, "AB-1200: red\nab 1200: green\nAB-1200: blue\n")
    top = ask(library, "What is AB-1200?", document).passages[0]
    met = {(top.text[v.span.start : v.span.end], v.is_raw, v.standing.value) for v in top.values if v.key == "AB-1200"}
    assert met == {("red", True, "named"), ("green", False, "named"), ("blue", True, "named")}


def test_of_a_row_the_cell_is_the_value_whose_column_is_named(library, add_text):
    document = add_text(library, "| Box | Berth | Net weight |\n| --- | --- | --- |\n| MSKU-1001 | 12 | 40 kg |\n")

    def under(question):
        top = ask(library, question, document).passages[0]
        return {(top.text[v.span.start : v.span.end], v.is_whole) for v in top.values if v.key == "MSKU-1001"}

    assert under("What is the net weight of box MSKU-1001?") == {("40 kg", True)}
    assert under("What do we know of MSKU-1001?") == {("12 | 40 kg", False)}


def test_a_number_that_no_recogniser_knows_is_a_value_beside_a_key(library, add_text):
    document = add_text(library, "Voucher AB-1200 carries the code 4256-0340.\n")
    assert values(library, document, "What code does voucher AB-1200 carry?") == ["4256-0340"]


def test_a_value_beside_a_key_says_whether_the_sentence_has_all_the_question_asks(library, add_text):
    document = add_text(library, "Lamp AB-1200 is blue since 3 May 2021.\n")

    def asked(question):
        return {value.is_asked for value in ask(library, question, document).passages[0].values}

    assert asked("What colour is lamp AB-1200?") == {False}
    assert asked("Since when is the lamp AB-1200 blue?") == {True}


def test_what_no_key_led_to_has_no_values(open_library, add_text):
    library = open_library(Meaning())
    document = add_text(library, paragraphs("The porter QX-7741-B hides the spare one in a globe on 3 May 2021."))
    top = ask(library, "Where does the doorman keep it?", document).passages[0]
    assert (top.evidence, top.values) == (None, ())


def test_only_the_documents_asked_are_searched(library, add_text):
    first = add_text(library, paragraphs("The lantern KX-1001 hangs in the hall."))
    second = add_text(library, paragraphs("The lantern KX-1001 hangs in the yard."))
    result = ask(library, "Where hangs the lantern KX-1001?", second)
    assert {passage.document_id for passage in result.passages} == {second.id}
    assert result.num_facts == 1
    both = ask(library, "Where hangs the lantern KX-1001?", first, second, first)
    assert {passage.document_id for passage in both.passages[:2]} == {first.id, second.id}
    assert both.num_chunks_searched == 2 * result.num_chunks_searched


def test_nothing_relevant_is_not_found(open_library, add_text):
    library = open_library(Meaning())
    document = add_text(library, paragraphs("The porter sleeps."))
    result = ask(library, "Quixotic zymurgy boat?", document)
    # The nearest passages are given all the same: whoever reads them may know better.
    assert (result.found, result.confidence) == (False, 0.0)
    assert result.num_chunks_searched > 0
    assert ask(library, "Quixotic zymurgy committee?", document).found
    assert ask(library, "Quixotic zymurgy doorman?", document).found


def test_no_document_asked_is_nothing_found(library):
    result = ask(library, "Where is the lantern?")
    assert (result.found, result.passages, result.num_chunks_searched) == (False, (), 0)


def test_neighbours_become_one_passage_within_bounds(library, add_text):
    text = " ".join(f"Lantern number {number} is lit." for number in range(400))
    document = add_text(library, text)
    passages = ask(library, "lantern lit", document).passages
    spans = sorted((passage.span.start, passage.span.end) for passage in passages)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert any(end - start > 900 for start, end in spans)
    assert all(end - start <= MAX_PASSAGE_CHARACTERS for start, end in spans)
    assert all(passage.text == text[passage.span.start : passage.span.end] for passage in passages)


def test_equal_passages_come_in_reading_order(library, add_text):
    document = add_text(library, paragraphs(*["The lantern is lit."] * 8))
    passages = ask(library, "lantern", document, max_passages=3).passages
    starts = [passage.span.start for passage in passages]
    assert len(starts) == 3
    assert starts == sorted(starts)


def test_scores_fall_and_at_most_as_many_passages_as_asked(library, add_text):
    document = add_text(library, paragraphs(*(f"The lantern of KX-{number} is lit." for number in range(2000, 2012))))
    for max_passages in (1, 3, 7):
        passages = ask(library, "the lantern of KX-2005", document, max_passages=max_passages).passages
        scores = [passage.score for passage in passages]
        assert len(passages) == max_passages
        assert scores == sorted(scores, reverse=True)
        assert all(0.0 <= score <= 1.0 for score in scores)
        assert "KX-2005" in passages[0].text


@pytest.mark.parametrize("question", ['title:"x', "(((", "KX-1001 AND", "\\ * ? ~", "", "?", "\x00", "lantern " * 3000])
def test_any_question_gets_an_answer(library, add_text, question):
    document = add_text(library, paragraphs("The lantern KX-1001 hangs in the hall."))
    assert len(ask(library, question, document).passages) <= 5


def test_how_long_each_search_took_is_told(library, add_text):
    result = ask(library, "lantern", add_text(library, paragraphs("The lantern.")))
    assert set(result.seconds) == {"keys", "lexical", "dense", "ranking", "hops", "passages"}
