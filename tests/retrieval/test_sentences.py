import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.passage import Span
from retrieval.sentences import Sentences, sentence_spans

TEXTS = st.lists(
    st.sampled_from(
        [
            "Dr. ",
            "word ",
            "End. ",
            "\n",
            "\r\n",
            "\n\n",
            "# Title\n",
            "k: v\n",
            "| a | b |\n",
            "- item ",
            "。",
            "é",
            "😀",
            "\u0301",
            '"',
            "A. ",
            "3.14 ",
        ]
    )
).map("".join)


def sentences(text: str) -> list[str]:
    return [text[span.start : span.end] for span in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith met the U.S. Army. He left.", ["Dr. Smith met the U.S. Army.", "He left."]),
        ("See fig. 3, e.g. this. No. 5 is alive! Is it?", ["See fig. 3, e.g. this.", "No. 5 is alive!", "Is it?"]),
        ('He said "Go. Now." Then he left.', ['He said "Go. Now."', "Then he left."]),
        ("First one.Second one.", ["First one.", "Second one."]),
        ("It costs 3.14 in v2.0.1. Mail a.b@x.org now.", ["It costs 3.14 in v2.0.1.", "Mail a.b@x.org now."]),
        ("价格是一百。他说好。真的吗？", ["价格是一百。", "他说好。", "真的吗？"]),
        ("a line\r\nwraps here. Next.", ["a line\r\nwraps here.", "Next."]),
        (
            "# Head\nText one. Two.\nInvoice: A-1\n| x. y | z |",
            ["# Head", "Text one.", "Two.", "Invoice: A-1", "| x. y | z |"],
        ),
        ("para one\n\npara two", ["para one", "para two"]),
        ("- first item\n  goes on\n- second", ["- first item\n  goes on", "- second"]),
        (" \n\t", []),
        ("", []),
    ],
)
def test_borders(text, expected):
    assert sentences(text) == expected


@given(TEXTS | st.text())
def test_every_visible_character_is_in_exactly_one_sentence(text):
    spans = sentence_spans(text)
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert all(piece == piece.strip() and piece for piece in sentences(text))


def test_text_without_borders_is_cut_between_words():
    text = "word " * 5000
    assert {word for sentence in sentences(text) for word in sentence.split()} == {"word"}
    assert max(map(len, sentences(text))) <= 2000


def test_many_sentences_without_a_line_end_are_read_in_windows():
    assert sentences("这是一句话。" * 20_000) == ["这是一句话。"] * 20_000


def test_the_clause_of_what_is_too_long_is_a_sentence_and_cuts_no_number():
    rows = [f"Policy POL-{n:04d}-96 carries an excess of EUR {n + 3},055.71 for each claim." for n in range(40)]
    text = '"' + " ".join(rows) + '"'
    sentences = Sentences(text, [Span(0, len(text))])
    for n, row in enumerate(rows):
        at = text.index(f"POL-{n:04d}")
        clause = sentences.around(Span(at, at + 11))
        assert text[clause.start : clause.end].strip('"') == row
    endless = "word " * 400
    clause = sentences_of(endless).around(Span(1000, 1004))
    assert set(endless[clause.start : clause.end].split()) == {"word"}
    assert len(clause) > 300


def sentences_of(text):
    return Sentences(text, [Span(0, len(text))])
