"""From which state an answer starts, and where its question stands: bench/states.py measures what is best."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from model.policy import PolicyName

if TYPE_CHECKING:
    from server.settings import Settings


class AnswerStart(StrEnum):
    """With no memory, with what the model remembers of the one document that is asked, or with what it has read of a
    prompt that is longer than the window."""

    FRESH = "fresh"
    DOCUMENT = "document"
    PROMPT = "prompt"


class QuestionPlace(StrEnum):
    """After the passages, or before them as well: who knows the question reads on purpose (arXiv 2407.05483)."""

    AFTER = "after"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a question is put to the model: one about documents starts from ``start``, one about a prompt longer than the
    window from ``prompt_start``, where passages of it were found; None is the better one under the policy of attention.
    """

    start: AnswerStart = AnswerStart.FRESH
    place: QuestionPlace = QuestionPlace.AFTER
    prompt_start: AnswerStart | None = None


# Of the four forms the one in which the embedded model answers best, by far: F1 of 36 on 200 questions, against 30 with
# the question before the passages as well, 18 from the memory of the document and 15 with both. It was trained on
# prompts of this form alone; another model may do better in another form, which is what the settings are for.
BEST_FORM = AnswerForm()


def answer_form(start: str | None, place: str | None, settings: "Settings") -> AnswerForm:
    """What the request wishes, else what the server does."""
    of_documents = start if start in (AnswerStart.FRESH, AnswerStart.DOCUMENT) else settings.answer_start
    of_prompts = start if start in (AnswerStart.FRESH, AnswerStart.PROMPT) else settings.prompt_start
    return AnswerForm(
        AnswerStart(of_documents),
        QuestionPlace(place or settings.question_place),
        None if of_prompts == "auto" else AnswerStart(of_prompts),
    )


def start_of_prompts(form: AnswerForm, policy: PolicyName) -> AnswerStart:
    """From what the answer about a long prompt starts where the form leaves it open.

    With no memory the embedded model answers better after 8,000 and 32,000 tokens (F1 of 45 and 41 against 37 and 33),
    no worse after 128,000, and at once (bench/prompt_starts.py). Who chooses ``archive`` wants what left the window to
    be attended, of which a fresh start has nothing.
    """
    if form.prompt_start is not None:
        return form.prompt_start
    return AnswerStart.PROMPT if policy is PolicyName.ARCHIVE else AnswerStart.FRESH
