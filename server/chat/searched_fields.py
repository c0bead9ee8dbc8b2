"""Fields of the extension object that mean something only where documents, or a long prompt, are searched."""

from server.answers.form import AnswerStart
from server.chat.schema import FanoOptions
from server.errors import RequestInvalid

OF_DOCUMENTS = ("facts", "within", "fact_kinds")
OF_ANY_SEARCH = ("recall", "max_passages", "question_place", "start")


def check_without_documents(fano: FanoOptions, sources: str) -> None:
    """Refuse what needs documents, where there are none; ``sources`` is how a request names some.

    Raises ``RequestInvalid``.
    """
    named = next((key for key in OF_DOCUMENTS if getattr(fano, key) is not None), None)
    if named is None and fano.start == AnswerStart.DOCUMENT.value:
        named = "start"
    if named is not None:
        raise RequestInvalid(f"fano.{named} needs {sources}", f"fano.{named}")


def needs_search(fano: FanoOptions) -> str | None:
    """The first field that means nothing where neither documents nor a long prompt are searched."""
    named = (key for key in OF_ANY_SEARCH if getattr(fano, key) not in (None, "free", AnswerStart.PROMPT.value))
    return next((f"fano.{key}" for key in named), None)


def needs_long(fano: FanoOptions) -> str | None:
    """The field that means nothing where the prompt is not longer than the window."""
    return "fano.start" if fano.start == AnswerStart.PROMPT.value else None
