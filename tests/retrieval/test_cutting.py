"""Pieces of a number of tokens: what they are, that they are kept with their document, and that passages are them."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.cutting import Pieces, pieces_of
from retrieval.errors import UnknownDocument
from retrieval.library import Library
from retrieval.passage import Cutting, Document, Span
from retrieval.scope import Scope

TENANT = "acme"
WORDS = st.lists(st.sampled_from(["a", "of", "lamp", "lighthouse", "QX-7741-B", "\n\n", "été", "灯塔"]), max_size=200)
TEXTS = st.one_of(WORDS.map(" ".join), WORDS.map("".join), st.text(max_size=300))
CUTTINGS = st.integers(1, 40).flatmap(lambda most: st.builds(Cutting, st.just(most), st.integers(0, most // 2)))
PAGES = [
    f"Entry {n}. The lamp of tower {n} was lit by keeper number {n}, and the log of that night says nothing else. "
    f"Permit KX-{n:04d}-Z was given for it in the harbour office."
    for n in range(60)
]


def starts_of(text: str) -> list[int]:
    """Where the tokens of a text begin: three characters of a word at most, each with the blanks before it."""
    starts, at = [], 0
    while at < len(text):
        starts.append(at)
        end = at
        while end < len(text) and text[end].isspace():
            end += 1
        at = end
        while at < min(end + 3, len(text)) and not text[at].isspace():
            at += 1
    return starts


def count(text: str) -> int:
    return len(starts_of(text))


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, cutting=CUTTINGS)
def test_pieces_are_as_long_as_they_may_be_and_cover_the_text(text: str, cutting: Cutting) -> None:
    pieces = pieces_of(text, cutting, starts_of(text), count)
    covered = set()
    for piece in pieces:
        own = text[piece.start : piece.end]
        assert own == own.strip() and 0 < count(own) <= cutting.max_tokens
        covered.update(range(piece.start, piece.end))
    assert all(place in covered for place, character in enumerate(text) if not character.isspace())
    for before, after in pairwise(pieces):
        assert before.start < after.start and before.end < after.end


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, cutting=CUTTINGS)
def test_a_piece_that_has_more_tokens_by_itself_than_in_the_text_is_shorter(text: str, cutting: Cutting) -> None:
    """Tokenizers see the edge of a piece; here each character of one is a token, up to three of a word in the text."""
    pieces = pieces_of(text, cutting, starts_of(text), len)
    longest = max((len(text[a:b].strip()) for a, b in pairwise([*starts_of(text), len(text)])), default=0)
    assert all(0 < len(piece) <= max(cutting.max_tokens, longest) for piece in pieces)
    covered = {place for piece in pieces for place in range(piece.start, piece.end)}
    assert all(place in covered for place, character in enumerate(text) if not character.isspace())
    for before, after in pairwise(pieces):
        assert before.start < after.start and before.end < after.end


@settings(deadline=None, max_examples=100)
@given(words=st.lists(st.sampled_from(["a", "of", "and"]), max_size=300), cutting=CUTTINGS)
def test_of_words_of_one_token_pieces_are_full_and_share_what_they_are_to(words: list[str], cutting: Cutting) -> None:
    """There every token is a word, so nothing need be rounded."""
    text = " ".join(words)
    pieces = pieces_of(text, cutting, starts_of(text), count)
    assert all(count(text[piece.start : piece.end]) == cutting.max_tokens for piece in pieces[:-1])
    for before, after in pairwise(pieces):
        assert count(text[after.start : before.end]) == cutting.overlap_tokens


def test_pieces_begin_and_end_between_words() -> None:
    text = " ".join(["lighthouse"] * 50)
    for overlap in (0, 7, 10):
        pieces = pieces_of(text, Cutting(21, overlap), starts_of(text), count)
        assert {text[piece.start : piece.end] for piece in pieces[:-1]} == {" ".join(["lighthouse"] * 5)}
        for before, after in pairwise(pieces):
            assert count(text[after.start : before.end]) == {0: 0, 7: 8, 10: 12}[overlap]


def test_the_piece_around_a_place_has_the_most_of_it_and_the_most_around_it() -> None:
    class Kept:
        def pieces(self, number: int, cutting: Cutting) -> list[Span]:
            return [Span(0, 100), Span(50, 150), Span(100, 200), Span(210, 300)]

    kept: Any = Kept()
    pieces = Pieces(kept)
    for span, expected in (
        (Span(10, 20), Span(0, 100)),
        (Span(95, 99), Span(50, 150)),
        (Span(60, 70), Span(0, 100)),
        (Span(140, 190), Span(100, 200)),
        (Span(90, 160), Span(50, 150)),
        (Span(202, 205), Span(100, 200)),
        (Span(299, 300), Span(210, 300)),
    ):
        assert pieces.around(1, Cutting(2, 1), span) == expected, span


def cut(library: Library, document: Document, cutting: Cutting) -> list[Span]:
    text = library.text(TENANT, document.id)
    pieces = pieces_of(text, cutting, starts_of(text), count)
    library.cut(TENANT, document.id, cutting, pieces)
    return pieces


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 59), cutting=st.sampled_from([Cutting(60, 20), Cutting(200, 0), Cutting(90, 45)]))
def test_passages_are_pieces_and_hold_what_was_asked_for(
    library: Library, add_text: Callable[..., Document], number: int, cutting: Cutting
) -> None:
    document = add_text(library, "\n".join(PAGES))
    pieces = cut(library, document, cutting)
    for cuttings in ([cutting], [None, cutting]):
        told: Any = {document.id: cuttings}
        found = library.search(TENANT, f"What is permit KX-{number:04d}-Z?", [document.id], 4, cuttings=told)
        own = [passage for passage in found.passages if passage.cutting == cutting]
        assert {passage.span for passage in own} <= set(pieces)
        assert f"KX-{number:04d}-Z" in own[0].text and own[0].evidence is not None
        assert len({passage.span for passage in own}) == len(own)
        assert ({passage.cutting for passage in found.passages} == set(cuttings)) and found.found
        for passage in found.passages:
            assert passage.text == library.text(TENANT, document.id, passage.span.start, passage.span.end)
            for span in [*(value.span for value in passage.values), passage.evidence or passage.span]:
                assert passage.span.start <= span.start <= span.end <= passage.span.end


def test_of_a_sentence_longer_than_a_piece_only_what_stands_in_it_is_evidence(
    library: Library, add_text: Callable[..., Document]
) -> None:
    words = ["lantern"] * 25
    document = add_text(library, " ".join(["The keeper lit", *words, "by permit KX-0001-Z", *words, "and went home."]))
    cut(library, document, Cutting(20, 0))
    for question in ("What is permit KX-0001-Z?", "Who lit the lantern and went home?"):
        found = library.search(TENANT, question, [document.id], 9, cuttings={document.id: [Cutting(20, 0)]})
        assert found.passages and ("KX" not in question or "KX-0001-Z" in found.passages[0].text)
        for passage in found.passages:
            spans = [value.span for value in passage.values]
            spans += [passage.evidence] if passage.evidence else []
            spans += [passage.nearest.span] if passage.nearest else []
            assert all(passage.span.start <= span.start < span.end <= passage.span.end for span in spans)
    assert library.search(TENANT, "What is permit KX-0001-Z?", [document.id]).passages[0].evidence is not None


def test_what_is_found_is_the_same_however_it_is_cut(library: Library, add_text: Callable[..., Document]) -> None:
    document = add_text(library, "\n".join(PAGES))
    before = library.search(TENANT, "Who lit the lamp of tower 7?", [document.id])
    cut(library, document, Cutting(60, 0))
    assert library.search(TENANT, "Who lit the lamp of tower 7?", [document.id]).passages == before.passages
    cuttings = {document.id: [Cutting(60, 0)]}
    after = library.search(TENANT, "Who lit the lamp of tower 7?", [document.id], cuttings=cuttings)
    assert after.passages[0].score == before.passages[0].score and after.confidence == before.confidence


def test_a_piece_is_shown_as_far_as_the_part_that_is_asked_goes(
    library: Library, add_text: Callable[..., Document]
) -> None:
    document = add_text(library, "\n".join(PAGES))
    cutting = Cutting(200, 0)
    cut(library, document, cutting)
    start = len("\n".join(PAGES[:30])) + 1
    part = Span(start, start + len(PAGES[30]))
    scope = Scope({document.id: (part,)})
    found = library.search(TENANT, "permit KX-0030-Z", [document.id], 5, scope, {document.id: [cutting]})
    assert [passage.span for passage in found.passages] == [part]


def test_pieces_are_kept_and_go_with_their_document(
    library: Library, open_library: Callable[..., Library], add_text: Callable[..., Document]
) -> None:
    document, cutting = add_text(library, PAGES[0]), Cutting(30, 10)
    assert not library.is_cut(TENANT, document.id, cutting)
    pieces = cut(library, document, cutting)
    library = open_library()
    assert library.is_cut(TENANT, document.id, cutting) and not library.is_cut(TENANT, document.id, Cutting(30, 0))
    assert library.pieces(TENANT, document.id, cutting) == pieces
    with pytest.raises(UnknownDocument):
        library.is_cut("other", document.id, cutting)
    library.delete(TENANT, document.id)
    with pytest.raises(UnknownDocument):
        library.is_cut(TENANT, document.id, cutting)
    with library._store.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM pieces").fetchone() == (0,)
