"""What a session has read keeps its token ids for as long as its text is the same."""

from array import array
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from server.chat.conversation import Conversation, History, converse

Messages = list[dict[str, object]]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["The rent of flat 7B", " a  b ", "<|end|>", "größer als zuvor", "<|end", "", "\n"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}), min_size=1, max_size=5
)


def message(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content}


@cache
def byte_ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {tokenizer.token_bytes(place): place for place in range(tokenizer.vocab_size - 1, -1, -1)}


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text in single bytes: ids that the tokenizer would not choose, and a model may."""
    return [byte_ids(tokenizer)[bytes([byte])] for byte in f" {text}".encode()]


def pieces(tokenizer: Tokenizer, conversation: Conversation) -> list[object]:
    """Control tokens, and the texts of the ids between them."""
    found: list[object] = []
    start = conversation.prelude_tokens
    for part in conversation.parts:
        ids = conversation.ids[start : part.end]
        found.append(part.key if isinstance(part.key, int) else tokenizer.decode(ids))
        start = part.end
    assert start == len(conversation.ids)
    return found


def said(tokenizer: Tokenizer, conversation: Conversation, text: str) -> History:
    """The history after an answer in tokens that are not canonical."""
    end = next(iter(tokenizer.chat_parts([message("user", "x")])[3:4]))
    assert isinstance(end, int)
    return conversation.answered(tokenizer, [*spelled(tokenizer, text), end])


@pytest.fixture(scope="module")
def history(tokenizer: Tokenizer) -> History:
    first = converse(tokenizer, [message("system", "Be brief."), message("user", "Which clause?")])
    return said(tokenizer, first, "clause 12.3")


def test_the_same_text_keeps_the_ids_that_the_model_drew(tokenizer: Tokenizer, history: History) -> None:
    turns = [message("system", "Be brief."), message("user", "Which clause?"), message("assistant", "clause 12.3")]
    again = converse(tokenizer, [*turns, message("user", "Thanks.")], history)
    assert again.ids[: len(history.ids)] == history.ids
    assert again.num_kept == len(history.ids)
    assert tuple(again.ids) != tokenizer.encode_chat([*turns, message("user", "Thanks.")])
    assert tokenizer.decode(again.ids) == tokenizer.decode(tokenizer.encode_chat([*turns, message("user", "Thanks.")]))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_from_the_first_text_that_differs_everything_is_encoded_anew(
    tokenizer: Tokenizer, history: History, place: int
) -> None:
    turns = [message("system", "Be brief."), message("user", "Which clause?"), message("assistant", "clause 12.3")]
    turns[place]["content"] = "something else"
    edited = converse(tokenizer, turns, history)
    fresh = tokenizer.encode_chat(turns)
    assert edited.num_kept < len(history.ids)
    assert edited.ids[: edited.num_kept] == history.ids[: edited.num_kept]
    assert tuple(edited.ids[edited.num_kept :]) == fresh[len(fresh) - len(edited.ids) + edited.num_kept :]


def test_only_what_is_new_is_encoded(tokenizer: Tokenizer, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    own = Tokenizer.encode_ids
    monkeypatch.setattr(Tokenizer, "encode_ids", lambda self, text: encoded.append(text) or own(self, text))
    turns = [message("system", "Be brief."), message("user", "Which clause?"), message("assistant", "clause 12.3")]
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: pytest.fail("a history was decoded"))
    converse(tokenizer, [*turns, message("user", "Thanks.")], history)
    assert encoded == ["Thanks."]


def test_a_stored_history_is_the_same_as_the_one_in_memory(tokenizer: Tokenizer, history: History) -> None:
    assert History.of_ids(tokenizer, history.ids) == history


def test_an_answer_goes_on_with_the_text_before_it() -> None:
    class Plain:
        """A template that begins the answer itself: with a letter, after which the model goes on."""

        bos_id = None
        eos_ids = frozenset({0})

        def chat_parts(self, messages: Any) -> list[int | str]:
            return [part for each in messages for part in (1, str(each["content"]), 0)] + [1, "A"]

        def encode_ids(self, text: str) -> list[int]:
            return [ord(each) for each in text]

        def decode(self, ids: Any) -> str:
            return "".join(map(chr, ids))

        def control_token(self, token_id: int) -> str | None:
            return "control" if token_id < 2 else None

    first = converse(Plain(), [message("user", "Q")])
    history = first.answered(Plain(), [ord("n"), ord("o"), 0])
    assert list(history.ids) == [1, ord("Q"), 0, 1, ord("A"), ord("n"), ord("o"), 0]
    again = converse(Plain(), [message("user", "Q"), message("user", "Ano"), message("user", "R")], history)
    assert again.num_kept == len(history.ids)


def test_a_document_stands_before_the_conversation_and_a_text_begins_once(tokenizer: Tokenizer) -> None:
    document = array("i", tokenizer.encode_chat([message("user", "The rent is due.")], False))
    prompt = converse(tokenizer, [message("user", "When?")], History(document, (), len(document)))
    assert prompt.ids[: len(document)] == document and prompt.num_kept == len(document)
    assert tokenizer.decode(prompt.ids[len(document) :]) == "When?"
    assert list(prompt.ids).count(tokenizer.bos_id or -1) == 1
    assert prompt.borders[0] == len(document)
    answered = said(tokenizer, prompt, "on the first day")
    stored = History.of_ids(tokenizer, answered.ids, len(document))
    assert stored == answered


@given(first=MESSAGES, answer=TEXTS, second=MESSAGES, keeps=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_ids_stand_for_the_same_text_as_a_fresh_encoding_and_reuse_is_a_beginning(
    tokenizer: Tokenizer, first: Messages, answer: str, second: Messages, keeps: int
) -> None:
    opened = converse(tokenizer, first)
    assert tuple(opened.ids) == tokenizer.encode_chat(first)
    history = said(tokenizer, opened, answer)
    told = [*first, message("assistant", tokenizer.decode(spelled(tokenizer, answer)))]
    messages = [*told[:keeps], *second]
    prompt = converse(tokenizer, messages, history)
    fresh = converse(tokenizer, messages)
    assert pieces(tokenizer, prompt) == pieces(tokenizer, fresh)
    assert prompt.ids[: prompt.num_kept] == history.ids[: prompt.num_kept]
    ends = [place + 1 for place, each in enumerate(prompt.ids) if each in tokenizer.eos_ids]
    assert list(prompt.borders) == ends and len(ends) == len(messages)
    if keeps >= len(told) and told[-1]["content"]:
        assert prompt.num_kept >= len(history.ids)
