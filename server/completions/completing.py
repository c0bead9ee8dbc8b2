"""Texts gone on with as they stand: no template, no documents, no session."""

import asyncio
import secrets
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread

from model.engine.request import GenerationRequest
from model.errors import PromptTooLong
from server.answers.gate import Reason
from server.answers.groundwork import Groundwork, sampling_params
from server.answers.inquiry import AnswerEvent, Inquiry, Limits, RetrievalBill
from server.answers.prompt import ChatTokenizer, Prompt
from server.answers.recording import Recording
from server.answers.replies import Answer, Generated
from server.completions.schema import Prompt as AskedPrompt
from server.engine_thread.bridge import EngineThread
from server.errors import RequestInvalid
from server.long_prompts.asking import QUERY_TOKENS
from server.long_prompts.long_prompt import LongPrompts
from server.long_prompts.progress import told_progress
from server.long_prompts.stream_rule import StreamRule
from server.metrics import Metrics

if TYPE_CHECKING:
    from retrieval.library import Library


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt as text and as token ids, and what is written after it."""

    text: str
    ids: "array[int]"
    answer: Answer


class Completing:
    """Goes on with texts; one for the whole server."""

    def __init__(
        self,
        library: "Library",
        bridge: EngineThread,
        tokenizer: ChatTokenizer,
        metrics: Metrics,
        limits: Limits,
        stream_rule: StreamRule,
        long_prompts: LongPrompts,
    ) -> None:
        self._stream_rule = stream_rule
        self._long = long_prompts
        self._library = library
        self._bridge = bridge
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._limits = limits

    @asynccontextmanager
    async def complete(self, inquiry: Inquiry, prompts: Sequence[AskedPrompt]) -> AsyncIterator[list[Continuation]]:
        """Every prompt accepted and under way, or none: what they hold is given back on leaving.

        Raises on entry ``RequestInvalid`` for a prompt without a token, ``PromptTooLong``, ``StreamRequired`` and what
        the engine refuses. A prompt of any length is gone on with as it stands: it asks nothing that could be searched.
        """
        read = await anyio.to_thread.run_sync(lambda: [self._read(*each) for each in enumerate(prompts)])
        async with AsyncExitStack() as stack:
            begun: list[Continuation] = []
            for text, ids in read:
                request = self._request(inquiry, ids)
                asked = request.tenant, request.policy, ids, request.measure_information
                await self._stream_rule.check(inquiry.is_streamed, *asked, (request.select_from,))
                try:
                    events = await stack.enter_async_context(self._bridge.generate(request))
                except PromptTooLong as error:
                    error.param = "prompt"
                    raise
                bill = RetrievalBill(False, Reason.NO_DOCUMENTS)
                ground = Groundwork(Prompt(ids, 0), request.sampling, (), (), (), bill, "")
                recording = Recording(None, None, self._tokenizer, ())
                is_long = self._long.covers(inquiry, len(ids))
                progress = told_progress(self._bridge, inquiry, request, is_long)
                answer = Generated(inquiry, ground, events, self._library, self._metrics, recording, progress)
                begun.append(Continuation(text, ids, answer))
            yield begun

    def _request(self, inquiry: Inquiry, ids: "array[int]") -> GenerationRequest:
        max_tokens = inquiry.sampling.max_tokens
        assert max_tokens is not None, "completions have a limit of their own"
        return GenerationRequest(
            request_id=f"{inquiry.request_id}.{secrets.token_hex(4)}",
            prompt_ids=ids,
            sampling=sampling_params(inquiry, max_tokens, 1.0),
            num_choices=inquiry.sampling.num_choices,
            tenant=inquiry.tenant,
            max_seconds=self._limits.max_request_seconds,
            measure_information=self._limits.measure_information,
            continues=True,
            # It asks nothing, so what it goes on from is its end, as of a chat whose last turn is too long a question:
            # the text before is read as documents are, at the same cost whatever its length.
            select_from=max(0, len(ids) - QUERY_TOKENS),
        )

    def _read(self, place: int, prompt: AskedPrompt) -> tuple[str, "array[int]"]:
        """The prompt's text and ids. A text begins as the checkpoint wants, an empty one with its first token."""
        if isinstance(prompt, str):
            ids = array("i", [*self._tokenizer.text_start, *self._tokenizer.encode_ids(prompt)])
            if not ids and self._tokenizer.bos_id is not None:
                ids.append(self._tokenizer.bos_id)
            text = prompt
        else:
            ids = array("i", prompt)
            text = self._tokenizer.decode([each for each in prompt if each < self._tokenizer.vocab_size])
        if not ids:
            raise RequestInvalid(f"prompt.{place} is empty, and this model has no token to begin with", "prompt")
        return text, ids


async def together(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, AnswerEvent]]:
    """The events of several answers as they come, each with its answer's place. Raises the first failure of any."""
    # One place in line: an answer that nobody reads waits, and so does its request.
    line: asyncio.Queue[tuple[int, AnswerEvent | BaseException | None]] = asyncio.Queue(maxsize=1)

    async def follow(place: int, answer: Answer) -> None:
        try:
            async for each in answer.events():
                await line.put((place, each))
        except Exception as error:  # noqa: BLE001  (raised again where the events are read)
            await line.put((place, error))
        else:
            await line.put((place, None))

    tasks = [asyncio.create_task(follow(*each)) for each in enumerate(answers)]
    try:
        num_left = len(tasks)
        while num_left:
            place, event = await line.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                num_left -= 1
            else:
                yield place, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
