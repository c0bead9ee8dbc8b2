"""What is asked, and what comes back: an inquiry, and the events of its answer."""

from dataclasses import dataclass

from model.config import ReadingUnit
from model.engine.request import FinishReason, RequestUsage
from model.policy import AttentionPolicy
from server.citations import Citation
from server.prompt import Turn
from server.schemas import Recall


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers: its name, and what prompts must respect."""

    name: str
    created: int
    policy: AttentionPolicy
    dtype: str
    max_context_tokens: int
    reads: ReadingUnit = ReadingUnit.PASSAGES


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a client wants its tokens drawn; None leaves it to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A conversation whose last turn wants an answer, from ``documents`` if there are any.

    ``started`` is the monotonic time of the request's arrival. ``policy`` of None is the engine's own.
    """

    request_id: str
    tenant: str
    turns: tuple[Turn, ...]
    documents: tuple[str, ...]
    recall: Recall
    sampling: Sampling
    max_passages: int
    started: float
    policy: AttentionPolicy | None = None


@dataclass(frozen=True, slots=True)
class RetrievalBill:
    """What was searched, and how much of it stands in the prompt."""

    used: bool
    reason: str
    num_passages: int = 0
    num_facts: int = 0
    seconds: float = 0.0
    text_bytes: int = 0
    index_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerDone:
    """The whole answer: ``text`` is all pieces together. ``usage`` is None when no model was asked."""

    text: str
    found: bool
    citations: tuple[Citation, ...]
    finish_reason: FinishReason
    usage: RequestUsage | None
    retrieval: RetrievalBill
    ttft_seconds: float | None


AnswerEvent = AnswerText | Citation | AnswerDone


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of an answer whose request names none: of a chat, and from documents."""

    chat_max_tokens: int
    answer_max_tokens: int
