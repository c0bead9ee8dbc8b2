"""Laws 6 and 8 over citations: every quote stands in the document, inside a source that was in the prompt."""

import itertools
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval.passage import Passage, Span
from server.answers.citations import Citation, Quoting, Source, cite

DOCUMENT = (
    "The custodian of the northern archive is Wilhelmina Thackeray-Oduya. She was paid $1,234.50 on 2024-01-02,\n"
    "for order A-1234.5/x and\r\nnothing else. Größe und Maß: 50 % von zwölf naïve Cafés. 東京は日本の首都です。"
)


def source(start: int, end: int, number: int = 1, document: str = "doc_1", text: str = DOCUMENT) -> Source:
    return Source(number, Passage(document, "a.txt", Span(start, end), text[start:end], 2, 1.0, ("lexical",)))


WHOLE = source(0, len(DOCUMENT))


def quotes(answer: str, *sources: Source) -> list[str]:
    return [citation.quote for citation in cite(answer, sources or (WHOLE,))]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Wilhelmina Thackeray-Oduya", ["Wilhelmina Thackeray-Oduya"]),
        ("It is Wilhelmina Thackeray-Oduya, I think.", ["is Wilhelmina Thackeray-Oduya"]),
        ("the northern archive", ["the northern archive"]),
        ("The northern lights", []),
        ("She got $1,234.50 then.", ["$1,234.50"]),
        ("1,234", []),
        ("1,234.50", ["1,234.50"]),
        ("order A-1234.5", []),
        ("order A-1234.5/x", ["order A-1234.5/x"]),
        ("on 2024-01-02, for order", ["on 2024-01-02,\nfor order"]),
        ("and nothing.", []),
        ("A-1234.5/x and nothing else", ["A-1234.5/x and\r\nnothing else"]),
        ("50 %", ["50 %"]),
        ("Wilhelmina", ["Wilhelmina"]),
        ("wilhelmina", []),
        ("Thackeray", []),
        ("the of is on and", []),
        ("", []),
        (" \n", []),
        ("naïve Cafés", ["naïve Cafés"]),
        ("nai\u0308ve", []),
        ("東京は日本", ["東京は日本"]),
        ("東", []),
        ("2024-01-02 and Wilhelmina Thackeray-Oduya", ["2024-01-02", "Wilhelmina Thackeray-Oduya"]),
    ],
)
def test_what_is_marked(answer: str, expected: list[str]) -> None:
    assert quotes(answer) == expected


def test_a_citation_says_where_in_answer_and_document() -> None:
    start = DOCUMENT.index("Wilhelmina")
    passage = source(start - 10, start + 40, number=3)
    (citation,) = cite("By Wilhelmina Thackeray-Oduya.", [passage])
    end = start + len("Wilhelmina Thackeray-Oduya")
    assert citation == Citation(3, "doc_1", start, end, DOCUMENT[start:end], 2, 3, 29)


def test_the_best_ranked_of_equal_sources_is_cited_and_a_longer_match_beats_rank() -> None:
    first = source(0, 10, 1, "doc_a", "Tuesday 5 ")
    second = source(0, 22, 2, "doc_b", "Tuesday 5 at the ferry")
    assert [c.source for c in cite("Tuesday 5", [first, second])] == [1]
    assert [c.source for c in cite("Tuesday 5 at the ferry", [first, second])] == [2]


WORDS = st.sampled_from(
    [
        "the",
        "of",
        "ferry",
        "Tuesday",
        "A-1",
        "12,345.67",
        "x",
        "é",
        "e\u0301",
        "東京",
        "$5",
        "(",
        ",",
        ".",
        "\n",
        "\r\n",
    ]
)
TEXTS = st.lists(WORDS, max_size=30).map(" ".join) | st.text(max_size=60)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str, list[Source]]:
    document = draw(TEXTS)
    sources = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        start = draw(st.integers(0, len(document)))
        end = draw(st.integers(start, len(document)))
        sources.append(source(start, end, number, text=document))
    cut = draw(st.integers(0, len(document)))
    answer = draw(TEXTS) + draw(st.sampled_from(["", " "])) + document[cut : draw(st.integers(cut, len(document)))]
    return document, answer, sources


@given(cases())
def test_every_quote_is_true_and_inside_its_source(case: tuple[str, str, list[Source]]) -> None:
    document, answer, sources = case
    last = 0
    for citation in cite(answer, sources):
        passage = sources[citation.source - 1].passage
        assert document[citation.start : citation.end] == citation.quote != ""
        assert passage.span.start <= citation.start < citation.end <= passage.span.end
        assert citation.document == passage.document_id
        shown = answer[citation.answer_start : citation.answer_end]
        assert shown.split() == citation.quote.split()
        assert last <= citation.answer_start < citation.answer_end
        last = citation.answer_end


@example(
    ("0000\U00020000", "0", [Source(1, Passage("doc_1", "a.txt", Span(3, 5), "0\U00020000", 2, 1.0, ("lexical",)))])
)
@given(cases())
def test_no_quote_ends_inside_a_word(case: tuple[str, str, list[Source]]) -> None:
    _, answer, sources = case
    for citation in cite(answer, sources):
        text = sources[citation.source - 1].passage.text
        offset = sources[citation.source - 1].passage.span.start
        for where, start, end in (
            (answer, citation.answer_start, citation.answer_end),
            (text, citation.start - offset, citation.end - offset),
        ):
            for border in (start, end):
                if 0 < border < len(where):
                    both = where[border - 1].isalnum() and where[border].isalnum()
                    assert not both or any(map(is_written_without_spaces, where[border - 1 : border + 1]))


def is_written_without_spaces(character: str) -> bool:
    name = unicodedata.name(character, "")
    return name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER"))


@st.composite
def adversarial(draw: st.DrawFn) -> tuple[str, str, list[Source], list[str]]:
    """An answer of pieces of its sources, noise and marks that look like citations, and how it is cut on the way."""
    document, _, sources = draw(cases())
    noise = st.sampled_from(
        ["[1]", "[2]", " [12]", "(source 1)", "“", ".", ",", "-", "\u0301", "\u200d", " ", "1", "A"]
    )
    pieces = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(document)))
        pieces.append(document[start : draw(st.integers(start, len(document)))])
        pieces.append(draw(noise | TEXTS))
    answer = "".join(pieces)
    cuts = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    borders = [0, *cuts, len(answer)]
    return document, answer, sources, [answer[a:b] for a, b in itertools.pairwise(borders)]


@given(adversarial())
def test_however_an_answer_arrives_its_citations_are_the_same(case: tuple[str, str, list[Source], list[str]]) -> None:
    _, answer, sources, pieces = case
    quoting = Quoting(sources)
    arrived = [citation for piece in pieces for citation in quoting.add(piece)]
    assert [*arrived, *quoting.add("", is_last=True)] == cite(answer, sources)


@given(adversarial())
def test_no_citation_is_invented(case: tuple[str, str, list[Source], list[str]]) -> None:
    document, answer, sources, pieces = case
    quoting = Quoting(sources)
    arrived = ""
    for number, piece in enumerate(pieces, start=1):
        arrived += piece
        for citation in quoting.add(piece, is_last=number == len(pieces)):
            passage = sources[citation.source - 1].passage
            assert document[citation.start : citation.end] == citation.quote
            assert passage.span.start <= citation.start < citation.end <= passage.span.end
            # What is cited has been said, and says something.
            assert citation.answer_end <= len(arrived)
            assert answer[citation.answer_start : citation.answer_end].split() == citation.quote.split()
            assert any(character.isalnum() for character in citation.quote)


def test_a_citation_comes_as_soon_as_its_match_can_grow_no_more() -> None:
    text = "The ferry to Skellig leaves on Tuesday at 12,345.67 hours."
    quoting = Quoting([source(0, len(text), text=text)])
    assert quoting.add("On Tuesday") == []
    assert quoting.add(" at 12") == []
    assert quoting.add(",") == []  # a comma may join two numbers
    assert [c.quote for c in quoting.add(" no")] == ["Tuesday at"]
    assert quoting.add("thing of Skellig leaves") == []
    assert [c.quote for c in quoting.add("", is_last=True)] == ["Skellig leaves"]


def test_a_mark_that_looks_like_a_citation_is_none() -> None:
    assert quotes("It is so [1], says【2】the book (source 1) [^3] <|file-doc_1|>.") == []
