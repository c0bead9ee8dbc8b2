"""What an answer adds to the session that it belongs to."""

import logging
from collections.abc import Sequence

import anyio.to_thread

from server.chat.conversation import Conversation, PartTokenizer
from server.sessions.book import SessionTurn
from server.sessions.errors import SessionError
from server.sessions.register import RESPONSE_PREFIX

logger = logging.getLogger(__name__)


class Recording:
    """Collects an answer's tokens and makes them the session's at its end; without a session it does nothing.

    Retrieved passages stand in the prompt for one answer only. So a question about ``documents`` enters the history as
    the client sent it, with the answer's text encoded like any other.
    """

    def __init__(
        self,
        turn: SessionTurn | None,
        conversation: Conversation | None,
        tokenizer: PartTokenizer,
        documents: Sequence[str],
        is_told_anew: bool = False,
    ) -> None:
        """``is_told_anew``: passages stand in the prompt though no documents were asked."""
        self._turn = turn
        self._conversation = conversation
        self._tokenizer = tokenizer
        self._documents = documents
        self._is_told_anew = is_told_anew
        self._drawn_ids: list[int] = []

    def note(self, token_ids: Sequence[int]) -> None:
        """The model drew these."""
        if self._turn is not None:
            self._drawn_ids += token_ids

    async def end(self, text: str) -> None:
        """The answer is complete: ``text`` is what the client gets. Durable on return; raises what the vault raises."""
        if self._turn is None or self._conversation is None:
            return
        conversation, tokenizer = self._conversation, self._tokenizer
        drawn_ids = tokenizer.encode_ids(text) if self._documents or self._is_told_anew else self._drawn_ids
        history = await anyio.to_thread.run_sync(conversation.answered, tokenizer, drawn_ids)
        try:
            await self._turn.commit(history, self._documents)
        except SessionError as error:
            # A conversation of stored responses is read again where it is not remembered.
            if not self._turn.name.startswith(RESPONSE_PREFIX):
                raise
            logger.warning("a response is not remembered: %s", error)
