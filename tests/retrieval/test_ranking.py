"""The learned ranking: what it looks at, what it prefers, and that it knows when it knows nothing."""

import numpy as np
import pytest

from retrieval.embedder import MiniLMEmbedder
from retrieval.features import NAMES, Asked, AskedWords, Candidate, features
from retrieval.lexical_index import LexicalHits, LexicalQuery, stems
from retrieval.ranker import Ranker, Thresholds

TENANT = "acme"


def asked(question: str) -> AskedWords:
    query = LexicalQuery.of(question)
    lexical = LexicalHits([], dict.fromkeys(query.stemmed, 2.0), frozenset(query.stemmed[:1]), 4.0)
    return AskedWords.of(question, query, lexical)


def candidate(ordinal: int, *rows: str, products=None, lexical=0.0, ranks=(0, 0), heading="") -> Candidate:
    given = None if products is None else np.array(products, np.float32)
    return Candidate((0, ordinal), heading, rows, given, lexical, *ranks)


def column(table, name):
    return table[:, NAMES.index(name)].tolist()


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who built the mill?", Asked.PERSON),
        ("In which year was it built?", Asked.TIME),
        ("How many geese were there?", Asked.NUMBER),
        ("What city lies there?", Asked.PLACE),
        ("Why did the geese leave?", Asked.OTHER),
    ],
)
def test_the_kind_of_answer_is_told_by_the_question_word(question, kind):
    assert asked(question).asked is kind


def test_features_by_hand():
    question = asked("When did Ellery sell the mill?")
    assert question.names == {"elleri"}
    table = features(
        question,
        [
            candidate(3, "Ellery sold it.", "The mill went in 1804.", products=[0.2, 0.6], lexical=8.0, ranks=(1, 2)),
            candidate(4, "A mill.", products=[0.5], lexical=4.0, ranks=(2, 0), heading="Mills"),
            candidate(9, "Geese fly.", products=None, ranks=(0, 0)),
        ],
    )
    assert column(table, "lexical_relative") == [1.0, 0.5, 0.0]
    assert column(table, "dense_best") == pytest.approx([0.6, 0.5, 0.0])
    assert column(table, "dense_rank") == [0.5, 0.0, 0.0]
    assert column(table, "has_dense") == [1.0, 1.0, 0.0]
    assert column(table, "coverage_chunk") == pytest.approx([2 / 3, 1 / 3, 0.0])  # "sold" is no form of "sell" here
    assert column(table, "coverage_row") == pytest.approx([1 / 3, 1 / 3, 0.0])
    assert column(table, "names_chunk") == [1.0, 0.0, 0.0]
    assert column(table, "typed_row") == [1.0, 0.0, 0.0]
    assert column(table, "heading") == pytest.approx([0.0, 1 / 3, 0.0])
    assert column(table, "near_dense") == pytest.approx([0.5, 0.6, 0.0])
    assert features(question, []).shape == (0, len(NAMES))


def test_more_of_the_question_and_nearer_in_meaning_is_better():
    table = features(
        asked("Who repaired the clock of the tower?"),
        [
            candidate(1, "Anna Berg repaired the tower clock.", products=[0.8], lexical=9.0, ranks=(1, 1)),
            candidate(5, "The clock struck.", products=[0.4], lexical=3.0, ranks=(2, 2)),
            candidate(8, "Rain fell on the geese.", products=[0.1], ranks=(0, 3)),
        ],
    )
    scores = Ranker.load().scores(table)
    assert scores[0] > scores[1] > scores[2]


@pytest.fixture(scope="module")
def minilm():
    return MiniLMEmbedder()


def test_what_stands_there_is_found_with_confidence_and_what_does_not_is_not(minilm, open_library, add_text):
    library = open_library(minilm)
    document = add_text(
        library,
        "The lighthouse was built of granite.\n\n"
        + "The harbour froze every winter and the boats lay idle. " * 12
        + "\n\n"
        "Old Fenwick kept his savings inside a stuffed pike.\n\n"
        + "The baker sold bread to the sailors at dawn. "
        * 12,
    )
    there = library.search(TENANT, "Where did Fenwick hide his money?", [document.id])
    assert there.found
    assert "stuffed pike" in there.passages[0].text
    absent = library.search(TENANT, "Which enzyme unwinds the double helix of a bacterium?", [document.id])
    assert not absent.found
    assert 0.0 <= absent.confidence < there.confidence <= 1.0


@pytest.mark.parametrize(
    "word",
    "skies dying vying cries hoping hopping using happiest possibility disability relational agency idly us".split(),
)
def test_no_row_is_skipped_that_holds_a_word_of_the_question(word):
    """Endings that the stemmer rewrites rather than cuts."""
    (stem,) = stems((word,))
    question = AskedWords({stem: 1.0}, {stem: 1.0}, frozenset(), 1.0, 1, Asked.OTHER, word)
    table = features(question, [candidate(1, "Nothing of it here.", f"There it was: {word}.")])
    assert column(table, "coverage_row") == [1.0]


def test_a_key_that_stands_in_few_places_speaks_for_them():
    there = Candidate((0, 1), "", ("Rain fell.",), None, 1.0, 1, 0, keys=(1.0, 0.25))
    table = features(asked("Who sold the mill?"), [there, candidate(7, "Rain fell.", lexical=1.0, ranks=(2, 0))])
    assert column(table, "keys") == pytest.approx([0.4, 0.0])
    assert column(table, "keys_rarest") == [1.0, 0.0]
    assert column(table, "keys_gap") == pytest.approx([0.0, -1.25])


def test_the_only_mention_of_a_name_is_found_though_nothing_else_of_the_question_is_there(
    minilm, open_library, add_text
):
    library = open_library(minilm)
    others = "The harbour froze every winter and the boats lay idle while the baker sold bread. " * 20
    sentence = "A clockmaker's boy in Tarnwick may look for seven crowns and his dinner."
    document = add_text(library, f"{others}\n\n{sentence}\n\n{others}")
    question = "What remuneration is customary for juniors in {}?"
    there = library.search(TENANT, question.format("Tarnwick"), [document.id])
    assert there.found and "seven crowns" in there.passages[0].text
    # Not because the ranking is sure of it.
    assert there.confidence < Ranker.load().thresholds(there.num_chunks_searched)
    assert not library.search(TENANT, question.format("Skarvholm"), [document.id]).found


def test_thresholds_lie_between_those_of_the_sizes_they_were_set_at():
    thresholds = Thresholds((100, 10_000), (0.5, 0.1))
    assert [thresholds(num_chunks) for num_chunks in (0, 1, 100)] == [0.5] * 3
    assert thresholds(1000) == pytest.approx(0.3)
    assert thresholds(10**6) == pytest.approx(0.1)
