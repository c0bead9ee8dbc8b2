import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.engine.stopping import StopMatcher

STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple)


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    matcher, shown = StopMatcher(stops), ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + matcher.flush(), False


def expected(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """The first stop string to become complete, letter by letter."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


@given(stops=STOPS, pieces=st.lists(st.text("ab\nc", max_size=5), max_size=8))
def test_the_cut_does_not_depend_on_the_pieces(stops: tuple[str, ...], pieces: list[str]) -> None:
    assert run(stops, pieces) == expected(stops, "".join(pieces))
    assert run(stops, list("".join(pieces))) == expected(stops, "".join(pieces))


@given(stops=STOPS, pieces=st.lists(st.text("ab\nc", max_size=5), max_size=8))
def test_no_stop_string_is_ever_shown_and_little_is_held(stops: tuple[str, ...], pieces: list[str]) -> None:
    matcher, shown, pushed = StopMatcher(stops), "", ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown, pushed = shown + text, pushed + piece
        assert not any(stop in shown for stop in stops)
        if stopped:
            return
        held = pushed[len(shown) :]
        assert pushed == shown + held
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "result"),
    [
        (("\n\n",), ["one\n", "two", "\n", "\nthree"], ("one\ntwo", True)),
        (("END",), ["the E", "N", "Glish"], ("the ENGlish", False)),
        (("END",), ["the E", "N"], ("the EN", False)),
        (("abcd", "bc"), ["abcd"], ("a", True)),
        (("bc", "abc"), ["xab", "c"], ("x", True)),
        ((), ["any", "thing"], ("anything", False)),
    ],
)
def test_by_hand(stops: tuple[str, ...], pieces: list[str], result: tuple[str, bool]) -> None:
    assert run(stops, pieces) == result
