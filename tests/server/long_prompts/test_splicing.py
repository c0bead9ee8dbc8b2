"""Passages put into a prompt: the same text as if all of it were encoded, and the same ids before the passages."""

from array import array
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from server.chat.conversation import converse
from server.long_prompts.splicing import spliced
from server.services import embedded_checkpoint


@pytest.fixture(scope="module")
def reader() -> Tokenizer:
    return Tokenizer(embedded_checkpoint())


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What the ids say, control tokens by their names, and spaces between texts as they are."""
    return "".join(
        tokenizer.control_token(each) or tokenizer.token_bytes(each).decode("utf-8", "backslashreplace") for each in ids
    )


def message(content: str) -> Mapping[str, object]:
    return {"role": "user", "content": content}


TEXTS = st.text(st.sampled_from(list("ab. \n0é🜁<|end|>")), max_size=60)


@given(head=TEXTS, passages=TEXTS, asked=TEXTS, tail=TEXTS)
def test_it_says_what_the_whole_would(reader: Tokenizer, head: str, passages: str, asked: str, tail: str) -> None:
    before = [message("First."), message(head + asked), message(tail)]
    after = [message("First."), message(head + passages + asked), message(tail)]
    if not head + asked or head + passages + asked == head + asked:
        return
    conversation = converse(reader, before)
    ids, num_kept = spliced(reader, conversation, before, after)
    assert ids[:num_kept] == conversation.ids[:num_kept]
    whole = converse(reader, after).ids
    assert text_of(reader, ids) == text_of(reader, whole)
    assert list(ids) == list(whole) or len(ids) <= len(whole) + 2


def test_only_the_end_is_encoded_anew(reader: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pasted = "The harbour was closed in winter.\nNobody came. " * 2000
    before, after = [message(f"{pasted}\n\nWho?")], [message(f"{pasted}\n\n[1] Passage.\n\nQuestion: Who?")]
    conversation = converse(reader, before)
    encoded: list[int] = []
    encode_ids = reader.encode_ids

    def counted(text: str) -> list[int]:
        encoded.append(len(text))
        return encode_ids(text)

    monkeypatch.setattr(reader, "encode_ids", counted)
    ids, num_kept = spliced(reader, conversation, before, after)
    assert sum(encoded) < 400 and len(ids) - num_kept < 60
    assert ids == converse(reader, after).ids


def test_a_tokenizer_that_knows_no_words_is_encoded_whole(reader: Tokenizer) -> None:
    class Pairs:
        """Two characters are a token, so that a cut anywhere may shift all that comes after it."""

        bos_id = None
        eos_ids = frozenset[int]()
        adds_leading_space = False

        def chat_parts(self, messages: Sequence[Mapping[str, object]]) -> list[int | str]:
            return ["".join(str(each["content"]) for each in messages)]

        def encode_ids(self, text: str) -> list[int]:
            return [hash(text[at : at + 2]) % 1000 for at in range(0, len(text), 2)]

    tokenizer = Pairs()
    before, after = [message("odd and even Who?")], [message("odd and even [1] Who?")]
    conversation = converse(tokenizer, before)  # type: ignore[arg-type]
    ids, num_kept = spliced(tokenizer, conversation, before, after)  # type: ignore[arg-type]
    assert ids == array("i", tokenizer.encode_ids("odd and even [1] Who?"))
    assert ids[:num_kept] == conversation.ids[:num_kept] and num_kept >= len("odd and even ") // 2
