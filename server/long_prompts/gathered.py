"""What was found in a long prompt and in documents that are asked beside it, as one list of passages and one bill."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval.passage import Passage, SearchResult
from retrieval.scope import Scope
from server.answers.document_search import Looked
from server.answers.form import AnswerStart
from server.answers.gate import Reason
from server.answers.inquiry import RetrievalBill

if TYPE_CHECKING:
    from retrieval.open_prompt import OpenPrompt


@dataclass(frozen=True, slots=True)
class Gathered:
    """``passages``: first ``num_given`` that the request brings as facts, then what was found, best first."""

    passages: Sequence[Passage]
    num_given: int
    num_facts: int
    text_bytes: int
    index_bytes: int
    note: str | None
    told: str
    scope: Scope

    @staticmethod
    def of(looked: Looked | None, prompt: "OpenPrompt", result: SearchResult, max_passages: int) -> "Gathered":
        """What ``result``, of the prompt, and ``looked`` have together: at most ``max_passages`` that were found."""
        own = result.passages if result.found else ()
        num_searched = result.num_chunks_searched
        told = f"Searched {num_searched} {'passage' if num_searched == 1 else 'passages'} of the prompt."
        text_bytes, index_bytes = prompt.text_bytes, prompt.index_bytes
        if looked is None:
            return Gathered(own, 0, result.num_facts, text_bytes, index_bytes, result.reason, told, Scope())
        # Both are scored by the same ranking; what a key leads to comes first in either.
        found = sorted((*looked.found, *own), key=lambda each: (each.evidence is None, -each.score))[:max_passages]
        return Gathered(
            passages=(*looked.given, *found),
            num_given=len(looked.given),
            num_facts=result.num_facts + looked.result.num_facts,
            text_bytes=text_bytes + looked.text_bytes,
            index_bytes=index_bytes + looked.index_bytes,
            note=f"documents: {looked.result.reason}; prompt: {result.reason}",
            told=f"{looked.told} {told}",
            scope=looked.scope,
        )

    def bill(self, query: str | None) -> RetrievalBill:
        """The bill as long as nothing of it stands in a prompt; ``query`` is what was searched for, where that is more
        than what was asked."""
        is_led = any(passage.evidence is not None for passage in self.passages)
        return RetrievalBill(
            used=True,
            reason=Reason.KEY_HIT if is_led else Reason.LONG_PROMPT,
            num_facts=self.num_facts,
            text_bytes=self.text_bytes,
            index_bytes=self.index_bytes,
            start=AnswerStart.PROMPT,
            note=self.note,
            query=query,
            scope=self.scope,
        )
