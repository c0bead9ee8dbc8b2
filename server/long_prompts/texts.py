"""The texts that a long prompt's answer is cited from: its messages, and the documents that are asked beside them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.answers.prompt import Turn
from server.long_prompts.asking import is_message, message_number

if TYPE_CHECKING:
    from retrieval.library import Library


class PromptTexts:
    """The texts of a prompt by the names of its messages, and those of a library. Messages have no pages."""

    def __init__(self, turns: Sequence[Turn], library: "Library") -> None:
        self._turns = turns
        self._library = library

    def text(self, tenant: str, document_id: str, start: int = 0, end: int | None = None) -> str:
        """Characters ``start`` to ``end`` of a message, or of a document."""
        if is_message(document_id):
            return self._turns[message_number(document_id)].content[start:end]
        return self._library.text(tenant, document_id, start, end)

    def page(self, tenant: str, document_id: str, position: int) -> int | None:
        """The page of a character of a document, if there are pages; None of a message."""
        return None if is_message(document_id) else self._library.page(tenant, document_id, position)
