"""Words: what counts as one, what is found, and that a question is never read as a query language."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.counted_index import CountedIndex
from retrieval.lexical_index import LexicalIndex, LexicalQuery, search_lexical
from retrieval.tantivy_index import TantivyIndex
from retrieval.words import content_words, fold_accents, words


def counted(chunks: list[tuple[str, str]]) -> LexicalIndex:
    return CountedIndex(chunks)


def by_tantivy(chunks: list[tuple[str, str]]) -> LexicalIndex:
    return TantivyIndex.build(None, chunks, sum(len(text) for text, _ in chunks))


KINDS = (counted, by_tantivy)


@pytest.fixture(params=KINDS, ids=["counted", "tantivy"])
def make(request) -> Callable[[list[tuple[str, str]]], LexicalIndex]:
    return request.param


@pytest.fixture
def index_of(make) -> Callable[..., LexicalIndex]:
    return lambda *texts: make([(text, "") for text in texts])


def found(index: LexicalIndex, question: str) -> list[int]:
    return [ordinal for _, ordinal, _ in search_lexical([index], LexicalQuery.of(question), 10).hits]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Café's MENU", ["the", "café", "menu"]),
        ("order QX-7741-B now", ["order", "qx-7741-b", "qx", "7741", "b", "now"]),
        ("see foo_bar.py", ["see", "foo_bar.py", "foo", "bar", "py"]),
        ("mail a.b@c.org", ["mail", "a.b@c.org", "a", "b", "c", "org"]),
        ("ﬁve №５", ["five", "no5"]),
        ("Straße", ["strasse"]),
        ("東京都 へ", ["東京", "京都", "へ"]),
        ("iPhone東京15", ["iphone", "東京", "15"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Ελλάδα, Россия", ["ελλάδα", "россия"]),
        ("... -- ??", []),
    ],
)
def test_words_of_any_language(text, expected):
    assert words(text) == expected


def test_a_question_of_stop_words_alone_keeps_them():
    assert content_words("What is the capital?") == ["capital"]
    assert content_words("Who is it?") == ["who", "is", "it"]


def test_accents_fold_but_never_to_nothing():
    assert fold_accents("crème") == "creme"
    assert fold_accents("plain") == "plain"
    assert fold_accents("\u0301") == "\u0301"


def test_inflected_and_accented_words_are_found(index_of):
    index = index_of("The horses were coughing.", "A crème brûlée.", "Nothing here.")
    assert found(index, "Which horse coughed?") == [0]
    assert found(index, "creme brulee") == [1]


def test_an_identifier_is_found_whole_before_its_parts(index_of):
    index = index_of("Parcels 7741 and QX went to B.", "Parcel QX-7741-B went astray.", "QX again, QX, QX.")
    assert found(index, "qx-7741-b")[0] == 1


def test_headings_count(make):
    index = make([("It was long.", "Voyage"), ("It was short.", "Harbour")])
    assert found(index, "voyage") == [0]


@pytest.mark.parametrize(
    "question",
    ['"unbalanced', "title:secret", "a AND (b OR", "[x TO y]", "foo^3 ~2 *", "-lantern", "\\", "lantern\x00", "''", ""],
)
def test_no_sign_in_a_question_is_syntax(index_of, question):
    assert set(found(index_of("A lantern."), question)) <= {0}


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_any_question_can_be_asked(question):
    for make in KINDS:
        assert set(found(make([("A lantern.", ""), (question, "")]), question)) <= {0, 1}


def test_equal_scores_come_in_reading_order(index_of):
    index = index_of(*["The same words."] * 6)
    assert found(index, "same words") == [0, 1, 2, 3, 4, 5]


def test_rarity_is_that_of_all_documents_asked(index_of):
    # "lamp" is rare in the first document but common in both together; "rope" the other way round.
    first = index_of("lamp one", *["rope two"] * 9)
    second = index_of(*["lamp three"] * 30)
    hits, rarities, known, unknown = search_lexical([first, second], LexicalQuery.of("lamp rope"), 40)
    assert known == {"lamp", "rope"}
    assert unknown > rarities["rope"] > rarities["lamp"] > 0
    assert all((number, ordinal) != (0, 0) for number, ordinal, _ in hits[:9])
    scores = {(number, ordinal): score for number, ordinal, score in hits}
    assert scores[0, 0] == pytest.approx(scores[1, 0], rel=0.01)


def test_how_many_words_occur_is_told(index_of):
    index = index_of("A lantern.")
    assert search_lexical([index], LexicalQuery.of("Where is the lantern of Skarvholm?"), 5).known == {"lantern"}
    assert search_lexical([index], LexicalQuery.of("Skarvholm"), 5)[::2] == ([], frozenset())


def test_on_disk_it_is_the_same_index(tmp_path):
    texts = [(f"Sentence {number} about cheese and {number % 7} mice.", "") for number in range(200)]
    built = TantivyIndex.build(tmp_path, texts, 9000)
    opened = TantivyIndex.open(tmp_path)
    query = LexicalQuery.of("cheese 17 mice")
    assert len(opened) == 200
    assert search_lexical([opened], query, 20) == search_lexical([built], query, 20)
    assert search_lexical([built], query, 1).hits[0][1] == 17
