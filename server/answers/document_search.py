"""The groundwork of questions about documents: passages, numbered sources, prompt, evidence, bill."""

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model.config import ReadingUnit
from model.policy import PolicyName
from retrieval.passage import Document, Passage, SearchResult
from retrieval.scope import Scope
from server.answers.certainty import Values, values_of
from server.answers.citations import Source
from server.answers.gate import Reason, decide
from server.answers.given import fact_passages
from server.answers.groundwork import Groundwork, nearest_reading, quotable, sampling_params, searched
from server.answers.inquiry import Inquiry, Limits, RetrievalBill, ServedModel
from server.answers.prompt import Budget, ChatTokenizer, Prompt, build_chat, build_prompt
from server.answers.within import scope_of, told_parts
from server.chat.conversation import History
from server.errors import EvidenceTooLong, FactsTooLong
from server.metrics import Metrics

if TYPE_CHECKING:
    from retrieval.library import Library


@dataclass(frozen=True, slots=True)
class Looked:
    """What documents have about a question: the passages with the facts that the request brings, then those that were
    found; and what they and the index take, in bytes."""

    documents: Sequence[Document]
    given: Sequence[Passage]
    found: Sequence[Passage]
    result: SearchResult
    scope: Scope
    text_bytes: int
    index_bytes: int
    told: str


class DocumentSearch:
    """Searches the documents of inquiries. Its methods take long and belong on a worker thread."""

    def __init__(
        self, library: "Library", tokenizer: ChatTokenizer, model: ServedModel, limits: Limits, metrics: Metrics
    ) -> None:
        self._library = library
        self._tokenizer = tokenizer
        self._model = model
        self._limits = limits
        self._metrics = metrics

    def has_key(self, inquiry: Inquiry) -> bool:
        """Whether a key of a decided inquiry leads into its documents."""
        assert inquiry.decision is not None, "it was decided"
        documents = self._library.get_all(inquiry.tenant, inquiry.documents)
        scope = scope_of(self._library, inquiry, documents)
        found = self._library.search(
            inquiry.tenant, inquiry.decision.query, inquiry.documents, inquiry.max_passages, scope, inquiry.cuttings
        )
        return any(passage.evidence is not None for passage in found.passages)

    def look(self, inquiry: Inquiry, query: str) -> Looked:
        """Search for ``query``. Raises what the library refuses, and ``RequestInvalid``."""
        documents = self._library.get_all(inquiry.tenant, inquiry.documents)
        scope = scope_of(self._library, inquiry, documents)
        result = self._library.search(
            inquiry.tenant, query, inquiry.documents, inquiry.max_passages, scope, inquiry.cuttings
        )
        given = fact_passages(self._library, inquiry.tenant, inquiry.documents, inquiry.facts, query, scope)
        found = tuple(each for each in result.passages if each.score >= inquiry.min_score) if result.found else ()
        text_bytes = sum(document.num_bytes for document in documents)
        index_bytes = sum(self._library.stats().host_bytes.values())
        told = searched(documents, result.num_chunks_searched, told_parts(inquiry.within, documents))
        return Looked(documents, given, found, result, scope, text_bytes, index_bytes, told)

    def groundwork(self, inquiry: Inquiry, is_asked: bool, history: History | None) -> Groundwork:
        """The groundwork of a document question; one that is not really asked is not counted.

        Raises as ``look``, and ``EvidenceTooLong``."""
        begun = time.monotonic()
        chosen = inquiry.decision or decide(inquiry.turns)
        looked = self.look(inquiry, chosen.query)
        seconds, result = time.monotonic() - begun, looked.result
        passages = (*looked.given, *looked.found)
        reason = Reason.KEY_HIT if any(passage.evidence is not None for passage in passages) else chosen.reason
        if is_asked:
            decision = "retrieved" if passages else "nothing"
            self._metrics.retrieved(decision, reason, {**result.seconds, "total": seconds}, len(result.passages))
        bill = RetrievalBill(
            used=True,
            reason=reason,
            num_facts=result.num_facts,
            seconds=seconds,
            text_bytes=looked.text_bytes,
            index_bytes=looked.index_bytes,
            note=result.reason,
            query=None if chosen.query == inquiry.turns[-1].content else chosen.query,
            scope=looked.scope,
        )
        sources = tuple(Source(number, passage) for number, passage in enumerate(passages, start=1))
        conversation = None if history is None else build_chat(self._tokenizer, inquiry.turns, history)
        unasked = Groundwork(
            prompt=Prompt(array("i"), 0),
            sampling=sampling_params(inquiry, 1, 0.0),
            sources=sources,
            readings=(),
            evidence=(),
            bill=bill,
            searched=looked.told,
            conversation=conversation,
        )
        if not passages:
            return unasked
        values = values_of(sources, chosen.query) if inquiry.recall == "verbatim" else Values()
        if values.is_certain:
            note = "; ".join(filter(None, (result.reason, values.note)))
            sampling = sampling_params(inquiry, self._max_tokens(inquiry), 0.0)
            known = replace(unasked, sampling=sampling, evidence=values.pieces, bill=replace(bill, note=note))
            return replace(known, is_whole=True, is_certain=True)
        return self._asking(inquiry, unasked, chosen.query, len(looked.given), history)

    def _asking(
        self, inquiry: Inquiry, unasked: Groundwork, query: str, num_given: int, history: History | None
    ) -> Groundwork:
        """The groundwork with a prompt for the model. The first ``num_given`` sources are facts of the request."""
        sources = readings = unasked.sources
        if self._model.reads is ReadingUnit.SENTENCE:
            searched_for = sources[num_given:]
            readings = (*sources[:num_given], *([nearest_reading(searched_for)] if searched_for else []))
        max_tokens = self._max_tokens(inquiry)
        policy = inquiry.policy or self._model.policy
        window = None if policy.name is PolicyName.FULL else policy.window
        try:
            prompt = build_prompt(
                self._tokenizer,
                inquiry.turns[:-1],
                inquiry.turns[-1].content,
                [source.passage.text for source in readings],
                Budget(max_tokens, self._model.max_context_tokens, window),
                history,
                inquiry.form.place,
                max(1, num_given),
            )
        except EvidenceTooLong as error:
            if not num_given:
                error.param = inquiry.question_param
                raise
            param = inquiry.facts[0].param.rpartition(".")[0]
            raise FactsTooLong(param, error.num_tokens, error.max_tokens, error.limit_tokens) from error
        note = unasked.bill.note
        if dropped := len(readings) - prompt.num_passages:
            note = f"{note}; {dropped} of {len(readings)} passages left out to fit"
            sources = readings = readings[: prompt.num_passages]
        if inquiry.recall == "verbatim" and (told_of := values_of(sources, query).note):
            note = f"{note}; {told_of}"
        evidence, is_whole = quotable(readings, query) if inquiry.recall == "verbatim" else ((), False)
        return replace(
            unasked,
            prompt=prompt,
            sampling=sampling_params(inquiry, max_tokens, 0.0),
            sources=sources,
            readings=readings,
            evidence=evidence,
            bill=replace(unasked.bill, num_passages=len(readings), start=inquiry.form.start, note=note),
            is_whole=is_whole,
        )

    def _max_tokens(self, inquiry: Inquiry) -> int:
        return inquiry.sampling.max_tokens or self._limits.answer_max_tokens
