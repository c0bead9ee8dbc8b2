"""The use case of a question: search, prompt, generate, cite. Everything refusable happens before the first event."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from model.engine.request import GenerationRequest, Keep
from model.errors import PromptTooLong
from server.answers.document_search import DocumentSearch, Looked
from server.answers.doubt import Doubt
from server.answers.form import AnswerStart
from server.answers.gate import Decision, Reason, decide, reason_to_search
from server.answers.groundwork import Groundwork, is_unanswerable, sampling_params
from server.answers.inquiry import Inquiry, Limits, RetrievalBill, ServedModel
from server.answers.prompt import ChatTokenizer, Prompt, build_chat, worthwhile
from server.answers.recording import Recording
from server.answers.replies import Answer, Generated, LookedUp, NothingFound
from server.chat.conversation import Conversation, History
from server.documents.reading import reading_policy
from server.engine_thread.bridge import EngineThread
from server.long_prompts.asking import recent_asked
from server.long_prompts.long_prompt import LongPrompts, check_seen_whole
from server.long_prompts.progress import told_progress
from server.long_prompts.reading_beside import PromptReading, PromptReadings
from server.long_prompts.stream_rule import StreamRule
from server.long_prompts.texts import PromptTexts
from server.metrics import Metrics
from server.sessions.book import Book, SessionPreview, SessionTurn
from server.sessions.readings import Readings
from server.sessions.traces import Trace, Traces

if TYPE_CHECKING:
    from retrieval.library import Library


# A search is mostly Python, which one thread of a process runs at a time: more of them at once are no sooner done, and
# each step of the engine waits for its turn behind all of them.
SEARCHES_AT_ONCE = 2


class Answering:
    """Answers inquiries; one for the whole server."""

    def __init__(
        self,
        library: "Library",
        bridge: EngineThread,
        tokenizer: ChatTokenizer,
        model: ServedModel,
        metrics: Metrics,
        limits: Limits,
        book: Book,
        readings: Readings,
        traces: Traces,
        long_prompts: LongPrompts,
        stream_rule: StreamRule,
        prompt_readings: PromptReadings,
    ) -> None:
        self._prompt_readings = prompt_readings
        self._book = book
        self._long = long_prompts
        self._stream_rule = stream_rule
        self._readings = readings
        self._traces = traces
        self._library = library
        self._documents = DocumentSearch(library, tokenizer, model, limits, metrics)
        self._bridge = bridge
        self._tokenizer = tokenizer
        self._doubt = Doubt(bridge, tokenizer)
        self._model = model
        self._metrics = metrics
        self.limits = limits
        self._searches = anyio.CapacityLimiter(SEARCHES_AT_ONCE)

    @asynccontextmanager
    async def answer(self, inquiry: Inquiry) -> AsyncIterator[Answer]:
        """An accepted inquiry's answer, ready to be read; what it holds is given back on leaving.

        Raises on entry whatever refuses it: ``UnknownDocument``, ``DocumentNotReady``,
        ``EvidenceTooLong``, what the session refuses, and what the engine refuses.
        """
        async with self._turn(inquiry) as turn:
            inquiry = self.decided(inquiry)
            inquiry, history = await self.begin(inquiry) if turn is None else self.go_on(inquiry, turn)
            found = await self.groundwork(inquiry, history=history)
            documents = found.documents(inquiry.documents)
            recording = Recording(turn, found.conversation, self._tokenizer, documents, found.is_long)
            texts = PromptTexts(inquiry.turns, self._library) if found.is_long else self._library
            if is_unanswerable(inquiry, found):
                yield NothingFound(found, recording)
                return
            if found.is_certain:
                yield LookedUp(inquiry, found, texts, recording)
                return
            request = self.request(inquiry, found)
            if inquiry.documents:
                await self._traces.note(self._trace(inquiry, found.prompt))
            async with self._bridge.generate(request) as events:
                beside = await self._beside(inquiry, found)
                progress = told_progress(self._bridge, inquiry, request, found.is_long, beside)
                told = None if beside is None else partial(self._prompt_readings.told, beside, inquiry.started)
                yield Generated(inquiry, found, events, texts, self._metrics, recording, progress, told)

    async def groundwork(self, inquiry: Inquiry, is_asked: bool = True, history: History | None = None) -> Groundwork:
        """What stands before the model is asked: documents are searched. Raises as ``answer``.

        One that is not really asked is not counted among the questions, and may be longer than the context.
        ``history`` is that of the inquiry's session.
        """
        look: Callable[[str], Looked] | None = None
        if inquiry.documents:
            if not await anyio.to_thread.run_sync(self._long.brings_text, inquiry, limiter=self._searches):
                check_seen_whole(inquiry, self._model)
                search = self._documents.groundwork
                return await anyio.to_thread.run_sync(search, inquiry, is_asked, history, limiter=self._searches)
            look = partial(self._documents.look, inquiry)
            if inquiry.form.start is AnswerStart.DOCUMENT:
                history = None  # It is the document's, which is not all that is asked.
        conversation = await anyio.to_thread.run_sync(
            build_chat, self._tokenizer, inquiry.turns, history, inquiry.tools
        )
        ids = conversation.ids
        max_tokens = self._long.max_tokens(inquiry, len(ids))
        if is_asked and len(ids) + max_tokens > self._model.max_context_tokens:
            raise PromptTooLong(len(ids), max_tokens, self._model.max_context_tokens)
        if is_asked:
            information = self.limits.measure_information
            asked = inquiry.tenant, inquiry.policy, ids, information
            places = self._long.select_from(inquiry, conversation)
            await self._stream_rule.check(inquiry.is_streamed, *asked, places)
        if look is not None or self._long.covers(inquiry, len(ids)):
            return await anyio.to_thread.run_sync(
                self._long.groundwork, inquiry, conversation, is_asked, look, limiter=self._searches
            )
        check_seen_whole(inquiry, self._model)
        if is_asked:
            self._metrics.retrieved("skipped", self._skipped(inquiry), {})
        return self._converse(inquiry, conversation, max_tokens)

    def decided(self, inquiry: Inquiry) -> Inquiry:
        """The inquiry once it is known whether its documents are searched; without them if they are not.

        Who wants quotes from documents, or put a question to them, is not answered without them.
        """
        if not inquiry.documents or inquiry.decision is not None:
            return inquiry
        turns = recent_asked(self._tokenizer, inquiry.turns)
        decision = decide(turns)
        if decision.is_searched or not inquiry.may_skip or self.limits.always_retrieve:
            return replace(inquiry, decision=replace(decision, is_searched=True, reason=reason_to_search(turns)))
        return self._skipping(inquiry, decision)

    def is_in_doubt(self, inquiry: Inquiry) -> bool:
        """Whether the model is to be asked if the documents of a decided inquiry need be searched: its words do not say
        so, and an operator has told from when on the model is certain."""
        is_unclear = inquiry.decision is not None and inquiry.decision.reason is Reason.UNCLEAR
        is_open = inquiry.may_skip and not self.limits.always_retrieve and self.limits.certain_from is not None
        return is_unclear and is_open and bool(inquiry.documents)

    async def weighed(self, inquiry: Inquiry) -> Inquiry:
        """An inquiry in doubt once the model was asked; as it is where the model cannot say or a key of it leads into
        the documents. Raises what the search raises."""
        assert inquiry.decision is not None and self.limits.certain_from is not None, "it is not in doubt"
        if await anyio.to_thread.run_sync(self._documents.has_key, inquiry, limiter=self._searches):
            return inquiry
        certainty = await self._doubt.certainty(inquiry)
        if certainty is None:
            return inquiry
        if certainty < self.limits.certain_from:
            return replace(inquiry, decision=replace(inquiry.decision, reason=Reason.UNCERTAIN))
        return self._skipping(inquiry, replace(inquiry.decision, is_searched=False, reason=Reason.CERTAIN))

    def _skipping(self, inquiry: Inquiry, decision: Decision) -> Inquiry:
        """The inquiry without its documents."""
        # Another turn of the same conversation: drawn as the others are.
        sampling = inquiry.sampling
        sampling = replace(
            sampling,
            temperature=0.0 if sampling.temperature is None else sampling.temperature,
            max_tokens=sampling.max_tokens or self.limits.answer_max_tokens,
        )
        return replace(inquiry, documents=(), recall="free", decision=decision, sampling=sampling)

    def _skipped(self, inquiry: Inquiry) -> Reason:
        return inquiry.decision.reason if inquiry.decision else Reason.NO_DOCUMENTS

    async def begin(self, inquiry: Inquiry) -> tuple[Inquiry, History | None]:
        """The inquiry as it can be answered, and what its prompt begins with: what was read of its one document, if it
        is to start there and that was read, under the policy that is asked for."""
        policy, form = reading_policy(self._model.policy), inquiry.form
        is_whole = len(inquiry.documents) == 1 and not inquiry.within
        if form.start is AnswerStart.DOCUMENT and is_whole and inquiry.policy in (None, policy):
            ids = await self._readings.whole_document(inquiry.tenant, inquiry.documents[0])
            # The question and its passages may fill the window.
            if ids is not None and len(ids) + policy.window <= self._model.max_context_tokens:
                return replace(inquiry, policy=policy), History(ids, (), len(ids))
        return replace(inquiry, form=replace(form, start=AnswerStart.FRESH)), None

    def go_on(self, inquiry: Inquiry, turn: SessionTurn | SessionPreview) -> tuple[Inquiry, History]:
        """As ``begin``, with the memory of a session."""
        form = replace(inquiry.form, start=AnswerStart.FRESH)
        return replace(inquiry, policy=turn.policy, form=form), turn.history

    def request(self, inquiry: Inquiry, found: Groundwork) -> GenerationRequest:
        """What the engine is asked."""
        return GenerationRequest(
            # Two clients may choose the same id for their requests.
            request_id=f"{inquiry.request_id}.{secrets.token_hex(4)}",
            prompt_ids=found.prompt.ids,
            sampling=found.sampling,
            evidence=tuple(piece.text for piece in found.evidence) or None,
            whole_evidence=found.is_whole,
            policy=inquiry.policy,
            num_choices=inquiry.sampling.num_choices,
            tenant=inquiry.tenant,
            max_seconds=self.limits.max_request_seconds,
            constraint=inquiry.constraint,
            measure_information=self.limits.measure_information,
            select_from=found.prompt.select_from,
            keep=Keep(worthwhile(found.prompt), tail=inquiry.session is not None and found.bill.num_passages == 0),
        )

    async def _beside(self, inquiry: Inquiry, found: Groundwork) -> PromptReading | None:
        """The reading of a long prompt beside its answer, or none, where the answer is what reads it."""
        if found.to_read is None:
            if found.is_long:
                self._prompt_readings.make_way(inquiry.tenant, inquiry.policy, found.prompt)
            return None
        num_cached = await self.num_cached(inquiry, found.to_read)
        return self._prompt_readings.begin(inquiry.tenant, inquiry.policy, found.to_read, num_cached)

    async def num_cached(self, inquiry: Inquiry, prompt: Prompt) -> int:
        """How many tokens of the prompt the engine would not read again."""
        asked = inquiry.tenant, inquiry.policy, prompt.ids, self.limits.measure_information
        return (await self._stream_rule.remembered(*asked, prompt.select_from)).num_tokens

    def _turn(self, inquiry: Inquiry) -> AbstractAsyncContextManager[SessionTurn | None]:
        if inquiry.session is None:
            return nullcontext()
        return self._book.turn(inquiry.tenant, inquiry.session, inquiry.policy)

    def _trace(self, inquiry: Inquiry, prompt: Prompt) -> Trace:
        """What the engine must forget of the prompt with any of its documents: all after the question's role."""
        num_general = prompt.borders[-2] if len(prompt.borders) > 1 else 0
        while self._tokenizer.control_token(prompt.ids[num_general]) is not None:
            num_general += 1
        policy = inquiry.policy or self._model.policy
        return Trace(inquiry.tenant, policy, prompt.ids, num_general, inquiry.documents)

    def _converse(self, inquiry: Inquiry, conversation: Conversation, max_tokens: int) -> Groundwork:
        """The groundwork of a plain chat."""
        return Groundwork(
            prompt=Prompt(conversation.ids, 0, conversation.borders, conversation.prelude_tokens),
            sampling=sampling_params(inquiry, max_tokens, 1.0),
            sources=(),
            readings=(),
            evidence=(),
            bill=RetrievalBill(False, self._skipped(inquiry)),
            searched="There was no file to search." if inquiry.searches_nothing else "",
            conversation=conversation,
        )
