"""Question and passages as a prompt, within the tokens that evidence, question and answer may share.

The form is the one the embedded model was trained on. Passages stand in the order of their rank, and
their numbers are those of the reply's sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from model.errors import PromptTooLong
from server.errors import EvidenceTooLong

NOT_FOUND = "Not found in the passages."


class ChatTokenizer(Protocol):
    """What prompts and replies need of a tokenizer."""

    def encode_chat(self, messages: Sequence[Mapping[str, object]]) -> Sequence[int]:
        """Token ids of the conversation, ready for the assistant's turn."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; empty for a control token."""

    def control_token(self, token_id: int) -> str | None:
        """The name of a control token; None for any other."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits in tokens. ``window`` is what evidence, question and answer share; None is no limit but the context."""

    max_tokens: int
    max_context_tokens: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and how many of the passages, best first, are in them."""

    ids: tuple[int, ...]
    num_passages: int


def build_prompt(
    tokenizer: ChatTokenizer, history: Sequence[Turn], question: str, passages: Sequence[str], budget: Budget
) -> Prompt:
    """The question after as many of the passages, best first, as the budget allows; earlier turns come before.

    Raises ``EvidenceTooLong`` when not even one passage fits the window and ``PromptTooLong`` when
    the conversation does not fit the context.
    """
    assert passages, "a question without evidence is answered without a prompt"
    refusal: Exception | None = None
    for num_passages in range(len(passages), 0, -1):
        last = Turn("user", document_question(question, passages[:num_passages]))
        # The question's own turn must be seen whole; earlier turns may have passed into the state.
        num_tokens = len(tokenizer.encode_chat(_messages([last])))
        if budget.window is not None and num_tokens + budget.max_tokens > budget.window:
            refusal = EvidenceTooLong(num_tokens, budget.max_tokens, budget.window)
            continue
        ids = tuple(tokenizer.encode_chat(_messages([*history, last])))
        if len(ids) + budget.max_tokens <= budget.max_context_tokens:
            return Prompt(ids, num_passages)
        refusal = PromptTooLong(len(ids), budget.max_tokens, budget.max_context_tokens)
    assert refusal is not None
    raise refusal


def build_chat(tokenizer: ChatTokenizer, turns: Sequence[Turn]) -> Prompt:
    """A conversation as it is, of any length."""
    return Prompt(tuple(tokenizer.encode_chat(_messages(turns))), 0)


def document_question(question: str, passages: Sequence[str]) -> str:
    """The user turn of a document question."""
    numbered = [f"[{number}] {passage}" for number, passage in enumerate(passages, start=1)]
    return "\n\n".join([*numbered, f"Question: {question}"])


def _messages(turns: Sequence[Turn]) -> list[Mapping[str, object]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]
