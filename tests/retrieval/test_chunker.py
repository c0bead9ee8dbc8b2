import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.chunker import HARD_LIMIT_CHARACTERS, chunk
from retrieval.passage import Span

PIECES = st.sampled_from(
    [
        "A sentence of some words. ",
        "Dr. Who ",
        "\n",
        "\r\n",
        "\n\n",
        "## Title\n",
        "CHAPTER IV\n",
        "key: value\n",
        "| a | b |\n",
        "x" * 90,
        "é\u0301",
        "👩\u200d👩\u200d👧",
        "。",
        " ",
    ]
)


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(), st.integers(1, 120), st.integers(0, 200))
def test_law_6_and_every_visible_character_in_exactly_one_chunk(text, target, more):
    chunks = chunk(text, target=target, limit=target + more)
    assert [text[piece.span.start : piece.span.end] for piece in chunks] == [piece.text for piece in chunks]
    assert all(before.span.end <= after.span.start for before, after in itertools.pairwise(chunks))
    assert "".join("".join(piece.text for piece in chunks).split()) == "".join(text.split())
    assert all(0 < len(piece.text) <= target + more for piece in chunks)


def test_chunks_fill_up_with_whole_sentences():
    chunks = chunk("The cat sat down. " * 30, target=100)
    assert {piece.text for piece in chunks} == {"The cat sat down. " * 4 + "The cat sat down."}
    assert len(chunks) == 6


def test_paragraph_ends_are_preferred_from_half_the_target_on():
    text = "One two three four five six. Seven eight.\n\nNine ten eleven."
    assert [piece.text for piece in chunk(text, target=60)] == [
        "One two three four five six. Seven eight.",
        "Nine ten eleven.",
    ]


def test_headings_open_chunks_and_form_a_path():
    text = "Preface text.\n# Book\n## First\nAlpha text.\n## Second\nBeta text.\n# Other\nGamma."
    assert [(piece.heading, piece.text) for piece in chunk(text)] == [
        ("", "Preface text."),
        ("Book > First", "# Book\n## First\nAlpha text."),
        ("Book > Second", "## Second\nBeta text."),
        ("Other", "# Other\nGamma."),
    ]


@pytest.mark.parametrize(
    "title", ["CHAPTER IV", "Chapter 12: The Storm", "THE LONG WINTER", "2.1 Scope of the Agreement", "PART ONE"]
)
def test_plain_titles_are_headings(title):
    assert [piece.heading for piece in chunk(f"Text before.\n\n{title}\n\nText after.")] == ["", title]


@pytest.mark.parametrize(
    "line", ["I saw 12 of them there", "Chapter and verse were quoted, then", "INV-2024-000123", "He said:", "NO"]
)
def test_prose_and_codes_are_no_headings(line):
    assert {piece.heading for piece in chunk(f"Text before.\n\n{line}\n\nText after.")} == {""}


def test_rows_and_pairs_are_never_split():
    rows = [f"| item {number} | {'v' * 60} | some more words. And more |" for number in range(20)]
    pairs = [f"Invoice number {number}: INV. {number} of that year" for number in range(20)]
    chunks = [piece.text for piece in chunk("\n".join(rows + pairs), target=80)]
    assert [line for text in chunks for line in text.split("\n")] == rows + pairs


def test_a_giant_line_is_cut_at_clauses_then_blanks_then_characters():
    assert {piece.text for piece in chunk("alpha beta, " * 50, target=40, limit=40)} == {
        "alpha beta, alpha beta, alpha beta,",
        "alpha beta, alpha beta,",
    }
    assert max(len(piece.text) for piece in chunk("word " * 5000)) <= HARD_LIMIT_CHARACTERS
    assert {word for piece in chunk("word " * 5000) for word in piece.text.split()} == {"word"}
    assert [len(piece.text) for piece in chunk("x" * 2000)] == [900, 900, 200]
    assert chunk("a\u0301" * 30, target=11, limit=11)[1].text[0] == "a"


def test_a_chunk_knows_the_page_it_starts_on():
    text = "Page one text.\nPage two text.\nPage three."
    pages = (Span(0, 15), Span(15, 30), Span(30, 41))
    assert [(piece.page, piece.text) for piece in chunk(text, pages, target=14)] == [
        (1, "Page one text."),
        (2, "Page two text."),
        (3, "Page three."),
    ]
    assert [piece.page for piece in chunk(text)] == [None]


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="target = 10, limit = 5"):
        chunk("text", target=10, limit=5)
