"""The prompt's form, and what gives way when tokens are scarce."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import PromptTooLong
from server.answers.prompt import Budget, Turn, build_chat, build_prompt, document_question
from server.errors import EvidenceTooLong


class WordTokenizer:
    """A word is a token; a turn costs two more, and the conversation's frame one."""

    bos_id = 0
    eos_ids = frozenset({2})

    def __init__(self) -> None:
        self.messages: list[Mapping[str, object]] = []

    def chat_parts(self, messages: Sequence[Mapping[str, object]]) -> list[int | str]:
        self.messages = list(messages)
        return [0, *(part for message in messages for part in (1, str(message["content"]), 2))]

    def encode_ids(self, text: str) -> list[int]:
        return [3] * len(text.split())

    def decode(self, ids: Sequence[int]) -> str:
        return " w" * len(ids)

    def control_token(self, token_id: int) -> str | None:
        return None if token_id == 3 else f"<{token_id}>"


def test_the_form() -> None:
    text = document_question("Who?", ["First passage.", "Second\npassage."])
    assert text == "[1] First passage.\n\n[2] Second\npassage.\n\nQuestion: Who?"


def test_earlier_turns_come_first_and_as_they_are() -> None:
    tokenizer = WordTokenizer()
    history = [Turn("system", "Be brief."), Turn("user", "Hello"), Turn("assistant", "Hi")]
    prompt = build_prompt(tokenizer, history, "Who?", ["A b."], Budget(10, 1000, 100))
    assert tokenizer.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "[1] A b.\n\nQuestion: Who?"},
    ]
    assert (len(prompt.ids), prompt.num_passages) == (18, 1)
    assert prompt.borders == (5, 8, 11, 18)


def test_the_last_ranked_passages_give_way() -> None:
    passages = ["w " * 10] * 5
    # Frame 1, turn 2, question 2, each passage 10 words and its number.
    for window, kept in ((5 + 5 * 11 + 10, 5), (5 + 5 * 11 + 9, 4), (5 + 11 + 10, 1)):
        assert build_prompt(WordTokenizer(), [], "Who?", passages, Budget(10, 1000, window)).num_passages == kept


def test_history_is_not_counted_against_the_window_but_against_the_context() -> None:
    history = [Turn("user", "w " * 500)]
    assert build_prompt(WordTokenizer(), history, "Who?", ["A b."], Budget(10, 1000, 100)).num_passages == 1
    with pytest.raises(PromptTooLong) as refused:
        build_prompt(WordTokenizer(), history, "Who?", ["A b."], Budget(10, 500, 100))
    assert (refused.value.num_prompt_tokens, refused.value.max_context_tokens) == (510, 500)


def test_not_even_one_passage_is_refused_with_the_numbers() -> None:
    with pytest.raises(EvidenceTooLong, match=r"have 106 tokens and 10 more were asked for.*share 100 tokens"):
        build_prompt(WordTokenizer(), [], "Who?", ["w " * 100, "w"], Budget(10, 1000, 100))


def test_a_plain_chat_is_left_as_it_is() -> None:
    tokenizer = WordTokenizer()
    assert len(build_chat(tokenizer, [Turn("user", "one two")]).ids) == 5
    assert tokenizer.messages == [{"role": "user", "content": "one two"}]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 40), st.integers(20, 300), st.integers(0, 50)
)
def test_evidence_question_and_answer_fit_the_window_and_no_more_is_dropped_than_must(
    sizes: list[int], max_tokens: int, window: int, history: int
) -> None:
    passages = [" ".join(["w"] * size) for size in sizes]
    turns = [Turn("user", " ".join(["h"] * history))]
    needed = [5 + sum(size + 1 for size in sizes[:count]) + max_tokens for count in range(1, len(sizes) + 1)]
    fitting = [count for count, tokens in enumerate(needed, start=1) if tokens <= window]
    if not fitting:
        with pytest.raises(EvidenceTooLong):
            build_prompt(WordTokenizer(), turns, "Who?", passages, Budget(max_tokens, 10_000, window))
    else:
        prompt = build_prompt(WordTokenizer(), turns, "Who?", passages, Budget(max_tokens, 10_000, window))
        assert prompt.num_passages == fitting[-1]
