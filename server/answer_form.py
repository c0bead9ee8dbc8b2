"""From which state an answer starts, and where its question stands: what is best was measured, see bench/RESULTS.md."""

from dataclasses import dataclass
from enum import StrEnum

from server.settings import Settings


class AnswerStart(StrEnum):
    """With no memory, or with what the model remembers of the one document that is asked."""

    FRESH = "fresh"
    DOCUMENT = "document"


class QuestionPlace(StrEnum):
    """After the passages, or before them as well: who knows the question reads on purpose (arXiv 2407.05483)."""

    AFTER = "after"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a document question is put to the model."""

    start: AnswerStart = AnswerStart.FRESH
    place: QuestionPlace = QuestionPlace.AFTER


def answer_form(start: str | None, place: str | None, settings: Settings) -> AnswerForm:
    """What the request wishes, else what the server does."""
    return AnswerForm(AnswerStart(start or settings.answer_start), QuestionPlace(place or settings.question_place))
