"""Prompts that are longer than the window: read whole, and what of them has to do with what they ask put before it.

What has left the window is in the state, which cannot hold it word for word. So the prompt itself is searched as a
document would be, and the passages found are put before the last paragraph, where they are seen.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model.config import ReadingUnit
from model.policy import PolicyName
from server.answers.certainty import values_of
from server.answers.citations import Source
from server.answers.document_search import Looked
from server.answers.form import AnswerStart, start_of_prompts
from server.answers.gate import Decision, Reason, decide
from server.answers.groundwork import Groundwork, nearest_reading, quotable, sampling_params
from server.answers.inquiry import Inquiry, Limits, RetrievalBill, ServedModel
from server.answers.prompt import ChatTokenizer, Prompt, Turn, build_chat, document_question, messages_of
from server.chat.conversation import Conversation
from server.errors import FactsTooLong, RequestInvalid
from server.long_prompts.asking import QUERY_TOKENS, Asking, asking_of, pasted_parts, prompt_parts, recent_turns
from server.long_prompts.fresh_start import fresh_turns
from server.long_prompts.gathered import Gathered
from server.long_prompts.splicing import spliced
from server.metrics import Metrics

if TYPE_CHECKING:
    from retrieval.prompt_archive import PromptArchive

Look = Callable[[str], Looked]
# No token of any text that people write is longer.
MOST_TOKEN_CHARACTERS = 32


# What messages bring is searched beside documents where it takes more than this share of the window: less is seen.
BROUGHT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Case:
    """One prompt, as it came, and what it asks."""

    inquiry: Inquiry
    conversation: Conversation
    asking: Asking
    decision: Decision
    max_tokens: int


class LongPrompts:
    """The groundwork of prompts that are longer than the window. Its methods take long and belong on a worker
    thread."""

    def __init__(
        self,
        archive: "PromptArchive",
        tokenizer: ChatTokenizer,
        model: ServedModel,
        limits: Limits,
        metrics: Metrics,
        reads_beside: bool = True,
    ) -> None:
        """With ``reads_beside`` a prompt is read also where its answer does not start from that."""
        self._reads_beside = reads_beside
        self._archive = archive
        self._tokenizer = tokenizer
        self._model = model
        self._limits = limits
        self._metrics = metrics

    def covers(self, inquiry: Inquiry, num_tokens: int) -> bool:
        """Whether a prompt of so many tokens is longer than the window it is read through."""
        policy = inquiry.policy or self._model.policy
        return policy.name is not PolicyName.FULL and num_tokens > policy.window

    def brings_text(self, inquiry: Inquiry) -> bool:
        """Whether messages bring so much text that it is searched beside the documents that are asked."""
        policy = inquiry.policy or self._model.policy
        most = int(BROUGHT_SHARE * policy.window)
        if inquiry.question_param is not None or policy.name is PolicyName.FULL:
            return False
        if sum(len(turn.content.encode()) for turn in inquiry.turns) <= most:
            return False
        asking = asking_of(self._tokenizer, inquiry.turns)
        if asking is None:
            return False
        num_tokens = 0
        for part in pasted_parts(self._tokenizer, inquiry.turns, asking, policy.window):
            # The beginning of a text is enough to see that there are more.
            num_tokens += len(self._tokenizer.encode_ids(part.text[: MOST_TOKEN_CHARACTERS * most]))
            if num_tokens > most:
                return True
        return False

    def select_from(self, inquiry: Inquiry, conversation: Conversation) -> tuple[int, ...]:
        """The places from which on the request for a conversation may select blocks. Of a long one, that is known when
        it was searched: in its last tokens, or, where passages are put before what it asks, nowhere in what came."""
        ids = conversation.ids
        if not self.covers(inquiry, len(ids)):
            return (conversation.prelude_tokens,)
        return _whole(conversation).select_from, len(ids)

    def groundwork(
        self, inquiry: Inquiry, conversation: Conversation, is_asked: bool, look: "Look | None" = None
    ) -> Groundwork:
        """What stands before the model is asked. ``conversation`` is the prompt as it came; with ``look`` documents are
        searched as well, and what was found in either shares the window.

        Raises ``RequestInvalid``, ``PromptMemoryFull`` and what ``look`` raises.
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
            bill=RetrievalBill(False, Reason.NO_DOCUMENTS, start=AnswerStart.PROMPT),
            searched="Nothing was searched, for the prompt asks nothing.",
            conversation=conversation,
            is_long=True,
        )
        if asking is None:
            if is_asked:
                self._metrics.retrieved("skipped", plain.bill.reason, {})
            return plain
        decision = decide(recent_turns(self._tokenizer, inquiry.turns, asking))
        is_spared = not decision.is_searched and inquiry.recall == "free" and not self._limits.always_retrieve
        if look is None and is_spared:
            if is_asked:
                self._metrics.retrieved("skipped", decision.reason, {})
            return replace(plain, bill=replace(plain.bill, reason=decision.reason))
        case = _Case(inquiry, conversation, asking, decision, max_tokens)
        looked = None if look is None else look(decision.query)
        if looked is None:
            parts = prompt_parts(self._tokenizer, inquiry.turns, asking)
        else:
            parts = pasted_parts(self._tokenizer, inquiry.turns, asking, self._window(inquiry))
        with self._archive.opened(inquiry.tenant, parts) as prompt:
            result = prompt.search(decision.query, inquiry.max_passages)
            ground = self._found(case, Gathered.of(looked, prompt, result, inquiry.max_passages), plain)
        seconds = time.monotonic() - begun
        if is_asked:
            what = "retrieved" if ground.bill.num_passages or ground.is_certain else "nothing"
            spent = {**result.seconds, "total": seconds}
            self._metrics.retrieved(what, ground.bill.reason, spent, len(result.passages))
        return replace(ground, bill=replace(ground.bill, seconds=seconds))

    def max_tokens(self, inquiry: Inquiry, num_tokens: int) -> int:
        """Most tokens of an answer after so many: what was asked for, else the limit of a chat or of an answer from
        documents, or what the context leaves."""
        left = self._model.max_context_tokens - num_tokens
        most = self._limits.answer_max_tokens if inquiry.documents else self._limits.chat_max_tokens
        return inquiry.sampling.max_tokens or max(1, min(most, left))

    def _window(self, inquiry: Inquiry) -> int:
        return (inquiry.policy or self._model.policy).window

    def _found(self, case: _Case, gathered: Gathered, plain: Groundwork) -> Groundwork:
        """The groundwork after the search."""
        inquiry, query, max_tokens = case.inquiry, case.decision.query, case.max_tokens
        bill = gathered.bill(None if query == case.asking.text else query)
        plain = replace(plain, bill=bill, searched=gathered.told)
        if not gathered.passages:
            return plain
        sources = tuple(Source(number, passage) for number, passage in enumerate(gathered.passages, start=1))
        sampling = sampling_params(inquiry, max_tokens, 0.0)
        if inquiry.recall == "verbatim" and (values := values_of(sources, query)).is_certain:
            noted = "; ".join(filter(None, (bill.note, values.note)))
            return replace(
                plain,
                prompt=Prompt(array("i"), 0),
                sampling=sampling,
                sources=sources,
                evidence=values.pieces,
                bill=replace(bill, note=noted, start=AnswerStart.FRESH),
                is_whole=True,
                is_certain=True,
            )
        num_given = gathered.num_given
        nearest = (*sources[:num_given], *([nearest_reading(sources[num_given:])] if sources[num_given:] else []))
        readings = nearest if self._model.reads is ReadingUnit.SENTENCE else sources
        made = self._prompt(case, readings)
        if not made.num_passages and readings is not nearest:
            # Better a sentence than nothing.
            readings = nearest
            made = self._prompt(case, readings)
        if made.num_passages < num_given:
            num_tokens = self._num_tokens(case, sources[:num_given])
            param = inquiry.facts[0].param.rpartition(".")[0]
            raise FactsTooLong(param, num_tokens, max_tokens, self._window(inquiry))
        note = bill.note
        if dropped := len(readings) - made.num_passages:
            note = f"{note}; {dropped} of {len(readings)} passages left out to fit"
            sources = readings = readings[: made.num_passages]
        bill = replace(bill, num_passages=len(readings), note=note)
        if not readings:
            return replace(plain, bill=bill)
        evidence, is_whole = quotable(readings, query) if inquiry.recall == "verbatim" else ((), False)
        to_read, fresh = None, self._fresh(case, readings)
        if fresh is not None:
            if self._reads_beside:
                to_read = Prompt(made.ids[: made.select_from], 0, made.borders[:-1], made.select_from)
            made, bill = fresh, replace(bill, start=AnswerStart.FRESH)
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
            to_read=to_read,
        )

    def _prompt(self, case: _Case, readings: Sequence[Source]) -> Prompt:
        """The prompt with as many of the passages, best first, as the window holds beside question and answer."""
        inquiry, conversation, asking = case.inquiry, case.conversation, case.asking
        for num_passages in range(len(readings), 0, -1):
            if self._num_tokens(case, readings[:num_passages]) > self._room(case):
                continue
            ids, num_kept = spliced(
                self._tokenizer,
                conversation,
                messages_of(inquiry.turns),
                messages_of(_put_before(inquiry.turns, asking, _asked(case, readings[:num_passages]))),
                inquiry.tools,
            )
            if len(ids) + case.max_tokens <= self._model.max_context_tokens:
                borders = [border for border in conversation.borders if border < num_kept]
                return Prompt(ids, num_passages, (*borders, num_kept), num_kept)
        return _whole(conversation)

    def _fresh(self, case: _Case, readings: Sequence[Source]) -> Prompt | None:
        """The prompt of an answer that starts with no memory; None where it starts from all of the prompt, for that is
        wanted, or because what must be seen does not fit the window."""
        inquiry = case.inquiry
        wants_logprobs = inquiry.sampling.prompt_logprobs is not None  # They are those of the prompt as it came.
        start = start_of_prompts(inquiry.form, (inquiry.policy or self._model.policy).name)
        if start is not AnswerStart.FRESH or wants_logprobs:
            return None

        def chat(turns: Sequence[Turn]) -> Conversation:
            return build_chat(self._tokenizer, turns, tools=inquiry.tools)

        def fits(turns: Sequence[Turn]) -> bool:
            # No text of so many characters has as few tokens as the window, and to count those of others takes long.
            if sum(len(turn.content) for turn in turns) > MOST_TOKEN_CHARACTERS * self._window(inquiry):
                return False
            return len(chat(turns).ids) <= self._room(case)

        turns = fresh_turns(self._tokenizer, inquiry.turns, case.asking, _asked(case, readings), fits)
        if turns is None:
            return None
        made = chat(turns)
        return Prompt(made.ids, len(readings), made.borders, made.prelude_tokens)

    def _room(self, case: _Case) -> int:
        """Most tokens beside the answer, for which half of the window at most is set aside."""
        window = self._window(case.inquiry)
        return window - min(case.max_tokens, window // 2)

    def _num_tokens(self, case: _Case, readings: Sequence[Source]) -> int:
        return len(build_chat(self._tokenizer, [Turn("user", _asked(case, readings))]).ids)


def _asked(case: _Case, readings: Sequence[Source]) -> str:
    """What is asked, with the passages before it."""
    texts = [source.passage.text for source in readings]
    return document_question(case.asking.text, texts, case.inquiry.form.place)


def _whole(conversation: Conversation) -> Prompt:
    """The prompt as it came: what it asks stands in its last tokens, and only these select blocks."""
    ids = conversation.ids
    return Prompt(ids, 0, conversation.borders, max(conversation.prelude_tokens, len(ids) - QUERY_TOKENS))


def check_seen_whole(inquiry: Inquiry, model: ServedModel) -> None:
    """Refuse what means nothing where the prompt is not longer than the window, and so is seen whole.

    Raises ``RequestInvalid``.
    """
    policy = inquiry.policy or model.policy
    is_full = policy.name is PolicyName.FULL
    if inquiry.needs_long is not None:
        there = "there is none under policy full" if is_full else f"the window has {policy.window} tokens"
        raise RequestInvalid(
            f"{inquiry.needs_long} is 'prompt', the memory of a prompt longer than the window, and {there}; leave it "
            "out",
            inquiry.needs_long,
        )
    if inquiry.documents or (param := inquiry.needs_search) is None:
        return
    other = "" if is_full else f" or a prompt longer than the window of {policy.window} tokens"
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
