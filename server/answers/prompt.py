"""Question and passages as a prompt, within the tokens that evidence, question and answer may share.

The form is the one the embedded model was trained on. Passages stand in the order of their rank, and
their numbers are those of the reply's sources.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from model.errors import PromptTooLong
from server.answers.form import QuestionPlace
from server.chat.conversation import Conversation, History, PartTokenizer, converse
from server.errors import EvidenceTooLong

if TYPE_CHECKING:
    from model.tokenizer import Encoding

NOT_FOUND = "Not found in the passages."
# To read fewer tokens than this again takes as long as to read one.
NEAR_TOKENS = 32


class ChatTokenizer(PartTokenizer, Protocol):
    """What prompts and replies need of a tokenizer."""

    @property
    def tool_template(self) -> str | None:
        """The source of a chat template that tells the model of functions; None where it does not."""

    @property
    def text_start(self) -> tuple[int, ...]:
        """The tokens before a text that is no chat."""

    @property
    def adds_leading_space(self) -> bool:
        """Whether a text is encoded with a space before it."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def encode(self, text: str) -> "Encoding":
        """Ids of a text, and where each token stands in it. Raises ``InvalidRequest`` for half a surrogate pair."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; empty for a control token."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; ``role`` is system, user, assistant or tool. ``more`` is what else the template gets:
    an assistant's calls of functions, or which call a result belongs to."""

    role: str
    content: str
    more: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits in tokens. ``window`` is what evidence, question and answer share; None is no limit but the context."""

    max_tokens: int
    max_context_tokens: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, how many of the passages, best first, are in them, and numbers of tokens at which messages end.

    The tokens before ``select_from`` are a document's, read as under ``window`` also where the others select.
    """

    ids: "array[int]"
    num_passages: int
    borders: tuple[int, ...] = ()
    select_from: int = 0


def build_prompt(
    tokenizer: PartTokenizer,
    earlier: Sequence[Turn],
    question: str,
    passages: Sequence[str],
    budget: Budget,
    history: History | None = None,
    place: QuestionPlace = QuestionPlace.AFTER,
    num_needed: int = 1,
) -> Prompt:
    """The question after as many of the passages, best first, as the budget allows; earlier turns come before.
    The first ``num_needed`` are never left out.

    Earlier turns that are in ``history``, a session's, keep its token ids.

    Raises ``EvidenceTooLong`` when the needed passages do not fit the window and ``PromptTooLong`` when
    the conversation does not fit the context.
    """
    assert passages, "a question without evidence is answered without a prompt"
    refusal: Exception | None = None
    for num_passages in range(len(passages), num_needed - 1, -1):
        last = Turn("user", document_question(question, passages[:num_passages], place))
        # The question's own turn must be seen whole; earlier turns may have passed into the state.
        num_tokens = len(build_chat(tokenizer, [last]).ids)
        if budget.window is not None and num_tokens + budget.max_tokens > budget.window:
            refusal = EvidenceTooLong(num_tokens, budget.max_tokens, budget.window)
            continue
        chat = build_chat(tokenizer, [*earlier, last], history)
        if len(chat.ids) + budget.max_tokens <= budget.max_context_tokens:
            return Prompt(chat.ids, num_passages, chat.borders, chat.prelude_tokens)
        refusal = PromptTooLong(len(chat.ids), budget.max_tokens, budget.max_context_tokens)
    assert refusal is not None
    raise refusal


def build_chat(
    tokenizer: PartTokenizer,
    turns: Sequence[Turn],
    history: History | None = None,
    tools: Sequence[Mapping[str, object]] = (),
) -> Conversation:
    """A conversation as it is, of any length, with the token ids of ``history`` as far as the text is the same."""
    return converse(tokenizer, messages_of(turns), history, tools)


def worthwhile(prompt: Prompt) -> tuple[int, ...]:
    """The borders at which to keep what was read: but for those by the end of the prompt, which is kept anyway."""
    return tuple(border for border in prompt.borders if len(prompt.ids) - border >= NEAR_TOKENS)


def document_question(question: str, passages: Sequence[str], place: QuestionPlace = QuestionPlace.AFTER) -> str:
    """The user turn of a document question."""
    numbered = [f"[{number}] {passage}" for number, passage in enumerate(passages, start=1)]
    asked = f"Question: {question}"
    return "\n\n".join([*([asked] if place is QuestionPlace.BOTH else []), *numbered, asked])


def messages_of(turns: Sequence[Turn]) -> list[Mapping[str, object]]:
    """The turns as chat templates take them."""
    return [{"role": turn.role, "content": turn.content, **dict(turn.more)} for turn in turns]
