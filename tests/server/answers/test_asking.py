"""What a long prompt asks, and what of it is searched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from server.answers.prompt import Turn
from server.long_prompts.asking import QUERY_TOKENS, Asking, asking_of, prompt_parts, recent_turns

LONG = "The harbour was closed in winter. " * 200


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ("Who?", "Who?"),
        ("Text.\n\nWho paid?\n", "Who paid?"),
        ("Text.\n \t\n  Who\npaid?\n\n \n", "Who\npaid?"),
        ("Text.\r\n\r\nWho paid?", "Who paid?"),
        (f"{LONG}\nWho paid?", "Who paid?"),  # of a paragraph that is too long the last line
        (f"{LONG}\n\n{LONG}\n\nWho paid?", "Who paid?"),
    ],
)
def test_the_last_paragraph(tokenizer: Tokenizer, content: str, asked: str) -> None:
    asking = asking_of(tokenizer, [Turn("system", "Be brief."), Turn("user", content)])
    assert asking is not None and asking.text == asked
    assert (asking.turn, content[asking.start : asking.end]) == (1, asked)


def test_of_a_line_that_is_too_long_whole_sentences(tokenizer: Tokenizer) -> None:
    asking = asking_of(tokenizer, [Turn("user", f"{LONG}Who paid the captain?")])
    assert asking is not None
    assert asking.text.startswith("The harbour was") and asking.text.endswith("Who paid the captain?")
    assert len(tokenizer.encode_ids(asking.text)) <= QUERY_TOKENS
    assert len(tokenizer.encode_ids("The harbour was closed in winter. " + asking.text)) > QUERY_TOKENS


def test_of_a_sentence_that_is_too_long_whole_words(tokenizer: Tokenizer) -> None:
    content = "harbour lantern " * 1000 + "who"
    asking = asking_of(tokenizer, [Turn("user", content)])
    assert asking is not None and asking.text.split()[0] in ("harbour", "lantern")
    assert len(tokenizer.encode_ids(asking.text)) <= QUERY_TOKENS


@pytest.mark.parametrize("character", ["x", "港", "🜁"])
def test_of_a_text_without_any_border_no_more_than_may_be_asked(tokenizer: Tokenizer, character: str) -> None:
    asking = asking_of(tokenizer, [Turn("user", character * 20_000)])
    assert asking is not None and len(tokenizer.encode_ids(asking.text)) <= QUERY_TOKENS


def test_where_nothing_is_said_nothing_is_asked(tokenizer: Tokenizer) -> None:
    assert asking_of(tokenizer, [Turn("user", " \n ")]) is None
    assert asking_of(tokenizer, [Turn("assistant", "Hello")]) is None


def test_the_users_last_turn_asks_wherever_it_stands(tokenizer: Tokenizer) -> None:
    turns = [Turn("user", "First.\n\nWho?"), Turn("assistant", "Me"), Turn("user", "And then?"), Turn("tool", "42")]
    assert asking_of(tokenizer, turns) == Asking(2, 0, 9, "And then?")


TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["user", "assistant", "system"]), st.text(" \n.aé🜁", max_size=40)), min_size=1
)


@given(turns=TURNS)
def test_everything_but_what_is_asked_is_searched_once(tokenizer: Tokenizer, turns: list[Turn]) -> None:
    asking = asking_of(tokenizer, turns)
    if asking is None:
        return
    said = {f"messages.{place}": turn.content for place, turn in enumerate(turns)}
    found = dict.fromkeys(said, "")
    for part in prompt_parts(tokenizer, turns, asking):
        assert said[part.name][part.start : part.start + len(part.text)] == part.text != ""
        assert part.start == len(found[part.name])
        found[part.name] += part.text
    said[f"messages.{asking.turn}"] = turns[asking.turn].content[: asking.start]
    assert found == said


def test_what_stands_before_a_question_is_the_same_part_in_the_next_turn(tokenizer: Tokenizer) -> None:
    first = [Turn("user", f"{LONG}\n\nWho paid?")]
    then = [*first, Turn("assistant", "Margarethe."), Turn("user", "When?")]
    parts = [
        prompt_parts(tokenizer, turns, asking) for turns in (first, then) if (asking := asking_of(tokenizer, turns))
    ]
    # The question itself says nothing, and another one is most like it.
    assert parts[0] == parts[1][:1] and [part.text for part in parts[1][1:]] == ["Margarethe."]
    asking = asking_of(tokenizer, then)
    assert asking is not None
    recent = recent_turns(tokenizer, then, asking)
    assert [turn.content for turn in recent] == ["Who paid?", "Margarethe.", "When?"]
