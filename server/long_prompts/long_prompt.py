"""Prompts that are longer than the window: read whole, and what of them has to do with what they ask put before it.

What has left the window is in the state, which cannot hold it word for word. So the prompt itself is searched as a
document would be, and the passages found are put before the last paragraph, where they are seen.
"""

import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from model.config import ReadingUnit
from model.policy import PolicyName
from retrieval.passage import SearchResult
from server.answers.certainty import values_of
from server.answers.citations import Source
from server.answers.gate import Decision, Reason, decide
from server.answers.groundwork import Groundwork, nearest_reading, quotable, sampling_params
from server.answers.inquiry import Inquiry, Limits, RetrievalBill, ServedModel
from server.answers.prompt import ChatTokenizer, Prompt, Turn, build_chat, document_question, messages_of
from server.chat.conversation import Conversation
from server.errors import RequestInvalid
from server.long_prompts.asking import QUERY_TOKENS, Asking, asking_of, message_number, prompt_parts, recent_turns
from server.long_prompts.splicing import spliced
from server.metrics import Metrics

if TYPE_CHECKING:
    from retrieval.open_prompt import OpenPrompt
    from retrieval.prompt_archive import PromptArchive


class PromptTurns:
    """The texts of a prompt by the names of its messages, as a library has those of documents. There are no pages."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns

    def text(self, _tenant: str, document_id: str, start: int = 0, end: int | None = None) -> str:
        """Characters ``start`` to ``end`` of a message."""
        return self._turns[message_number(document_id)].content[start:end]

    def page(self, _tenant: str, _document_id: str, _position: int) -> int | None:
        """None."""
        return None


class LongPrompts:
    """The groundwork of prompts that are longer than the window. Its methods take long and belong on a worker
    thread."""

    def __init__(
        self, archive: "PromptArchive", tokenizer: ChatTokenizer, model: ServedModel, limits: Limits, metrics: Metrics
    ) -> None:
        self._archive = archive
        self._tokenizer = tokenizer
        self._model = model
        self._limits = limits
        self._metrics = metrics

    def covers(self, inquiry: Inquiry, num_tokens: int) -> bool:
        """Whether a prompt of so many tokens is longer than the window it is read through."""
        policy = inquiry.policy or self._model.policy
        return policy.name is not PolicyName.FULL and num_tokens > policy.window

    def select_from(self, inquiry: Inquiry, conversation: Conversation) -> tuple[int, ...]:
        """The places from which on the request for a conversation may select blocks. Of a long one, that is known when
        it was searched: in its last tokens, or, where passages are put before what it asks, nowhere in what came."""
        ids = conversation.ids
        if not self.covers(inquiry, len(ids)):
            return (conversation.prelude_tokens,)
        return _whole(conversation).select_from, len(ids)

    def groundwork(self, inquiry: Inquiry, conversation: Conversation, is_asked: bool) -> Groundwork:
        """What stands before the model is asked. ``conversation`` is the prompt as it came.

        Raises ``RequestInvalid`` and ``PromptMemoryFull``.
        """
        _check_quoting(inquiry)
        max_tokens = self.max_tokens(inquiry, len(conversation.ids))
        begun = time.monotonic()
        asking = asking_of(self._tokenizer, inquiry.turns)
        plain = Groundwork(
            prompt=_whole(conversation),
            sampling=sampling_params(inquiry, max_tokens, 1.0),
            sources=(),
            readings=(),
            evidence=(),
            bill=RetrievalBill(False, Reason.NO_DOCUMENTS),
            searched="Nothing was searched, for the prompt asks nothing.",
            conversation=conversation,
            is_long=True,
        )
        if asking is None:
            if is_asked:
                self._metrics.retrieved("skipped", plain.bill.reason, {})
            return plain
        decision = decide(recent_turns(self._tokenizer, inquiry.turns, asking))
        if not decision.is_searched and inquiry.recall == "free" and not self._limits.always_retrieve:
            if is_asked:
                self._metrics.retrieved("skipped", decision.reason, {})
            return replace(plain, bill=RetrievalBill(False, decision.reason))
        with self._archive.opened(inquiry.tenant, prompt_parts(self._tokenizer, inquiry.turns, asking)) as prompt:
            result = prompt.search(decision.query, inquiry.max_passages)
            ground = self._found(inquiry, conversation, asking, decision, prompt, result, plain)
        seconds = time.monotonic() - begun
        if is_asked:
            what = "retrieved" if result.found and result.passages else "nothing"
            spent = {**result.seconds, "total": seconds}
            self._metrics.retrieved(what, ground.bill.reason, spent, len(result.passages))
        return replace(ground, bill=replace(ground.bill, seconds=seconds))

    def max_tokens(self, inquiry: Inquiry, num_tokens: int) -> int:
        """Most tokens of a chat's answer after so many: what was asked for, else the chat's own limit or what the
        context leaves."""
        left = self._model.max_context_tokens - num_tokens
        return inquiry.sampling.max_tokens or max(1, min(self._limits.chat_max_tokens, left))

    def _found(
        self,
        inquiry: Inquiry,
        conversation: Conversation,
        asking: Asking,
        decision: Decision,
        prompt: "OpenPrompt",
        result: SearchResult,
        plain: Groundwork,
    ) -> Groundwork:
        """The groundwork after the search of the prompt."""
        passages = result.passages if result.found else ()
        is_led = any(passage.evidence is not None for passage in passages)
        bill = RetrievalBill(
            used=True,
            reason=Reason.KEY_HIT if is_led else Reason.LONG_PROMPT,
            num_facts=result.num_facts,
            text_bytes=prompt.text_bytes,
            index_bytes=prompt.index_bytes,
            note=result.reason,
            query=None if decision.query == asking.text else decision.query,
        )
        num_searched = result.num_chunks_searched
        told = f"Searched {num_searched} {'passage' if num_searched == 1 else 'passages'} of the prompt."
        plain = replace(plain, bill=bill, searched=told)
        if not passages:
            return plain
        sources = tuple(Source(number, passage) for number, passage in enumerate(passages, start=1))
        max_tokens = plain.sampling.max_tokens
        sampling = sampling_params(inquiry, max_tokens, 0.0)
        if inquiry.recall == "verbatim" and (values := values_of(sources, decision.query)).is_certain:
            note = "; ".join(filter(None, (result.reason, values.note)))
            return replace(
                plain,
                prompt=Prompt(array("i"), 0),
                sampling=sampling,
                sources=sources,
                evidence=values.pieces,
                bill=replace(bill, note=note),
                is_whole=True,
                is_certain=True,
            )
        readings = (nearest_reading(sources),) if self._model.reads is ReadingUnit.SENTENCE else sources
        made = self._prompt(inquiry, conversation, asking, readings, max_tokens)
        if not made.num_passages and self._model.reads is not ReadingUnit.SENTENCE:
            # Better a sentence than nothing.
            readings = (nearest_reading(sources),)
            made = self._prompt(inquiry, conversation, asking, readings, max_tokens)
        note = result.reason
        if dropped := len(readings) - made.num_passages:
            note = f"{note}; {dropped} of {len(readings)} passages left out to fit"
            sources = readings = readings[: made.num_passages]
        bill = replace(bill, num_passages=len(readings), note=note)
        if not readings:
            return replace(plain, bill=bill)
        evidence, is_whole = quotable(readings, decision.query) if inquiry.recall == "verbatim" else ((), False)
        if inquiry.sampling.num_choices > 1:  # Citations are those of one reply.
            sources = readings = ()
        return replace(
            plain,
            prompt=made,
            sampling=sampling,
            sources=sources,
            readings=readings,
            evidence=evidence,
            bill=bill,
            is_whole=is_whole,
        )

    def _prompt(
        self,
        inquiry: Inquiry,
        conversation: Conversation,
        asking: Asking,
        readings: Sequence[Source],
        max_tokens: int,
    ) -> Prompt:
        """The prompt with as many of the passages, best first, as the window holds beside question and answer: half of
        it at most is set aside for the answer."""
        policy = inquiry.policy or self._model.policy
        room = policy.window - min(max_tokens, policy.window // 2)
        for num_passages in range(len(readings), 0, -1):
            texts = [source.passage.text for source in readings[:num_passages]]
            question = document_question(asking.text, texts, inquiry.form.place)
            if len(build_chat(self._tokenizer, [Turn("user", question)]).ids) > room:
                continue
            ids, num_kept = spliced(
                self._tokenizer,
                conversation,
                messages_of(inquiry.turns),
                messages_of(_put_before(inquiry.turns, asking, question)),
                inquiry.tools,
            )
            if len(ids) + max_tokens <= self._model.max_context_tokens:
                borders = [border for border in conversation.borders if border < num_kept]
                return Prompt(ids, num_passages, (*borders, num_kept), num_kept)
        return _whole(conversation)


def _whole(conversation: Conversation) -> Prompt:
    """The prompt as it came: what it asks stands in its last tokens, and only these select blocks."""
    ids = conversation.ids
    return Prompt(ids, 0, conversation.borders, max(conversation.prelude_tokens, len(ids) - QUERY_TOKENS))


def check_seen_whole(inquiry: Inquiry, model: ServedModel) -> None:
    """Refuse what means nothing where nothing is searched, for the prompt is seen whole. Raises ``RequestInvalid``."""
    if (param := inquiry.needs_search) is None:
        return
    policy = inquiry.policy or model.policy
    other = "" if policy.name is PolicyName.FULL else f" or a prompt longer than the window of {policy.window} tokens"
    what = f"{param} is {inquiry.recall!r}, which" if param == "fano.recall" else param
    raise RequestInvalid(f"{what} needs fano.documents{other}", param)


def _put_before(turns: Sequence[Turn], asking: Asking, question: str) -> list[Turn]:
    """The turns with ``question``, which has passages, in place of what is asked."""
    asked = turns[asking.turn]
    content = f"{asked.content[: asking.start]}{question}{asked.content[asking.end :]}"
    return [*turns[: asking.turn], replace(asked, content=content), *turns[asking.turn + 1 :]]


def _check_quoting(inquiry: Inquiry) -> None:
    """Refuse what does not go together with quotations, as for documents."""
    if inquiry.recall != "verbatim":
        return
    for is_there, param, why in (
        (inquiry.sampling.num_choices > 1, "n", "one answer is searched for and cited"),
        (bool(inquiry.sampling.stop), "stop", "quotes are not cut"),
        (inquiry.sampling.logprobs is not None, "logprobs", "the reply is the prompt's text, not tokens"),
        (inquiry.constraint is not None, "response_format", "an answer that is a quotation has no other form"),
        (bool(inquiry.tools), "tools", "an answer that is a quotation calls no function"),
    ):
        if is_there:
            raise RequestInvalid(f"{param} cannot be used with fano.recall 'verbatim': {why}", param)
