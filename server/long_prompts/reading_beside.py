"""Long prompts that are read beside their answers, which do not wait for it: as documents are, in the background.

One at a time, the newest first, and everyone else before it. What is read stays in checkpoints, as far as it came: the
same call again, and answers that start from what was read, go on from there.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass

from model.engine.request import GenerationRequest, Keep, SamplingParams
from model.errors import EngineStopped, ModelError
from model.policy import AttentionPolicy
from server.answers.inquiry import AnswerProgress
from server.answers.prompt import Prompt, worthwhile
from server.engine_thread.bridge import EngineThread
from server.engine_thread.stepped import SteppedEngine

logger = logging.getLogger(__name__)

# What waits behind these is given up: whoever asks again brings it along.
MOST_WAITING = 8
# Two prompts that begin with so many equal tokens are taken for the same text, one of them with more behind it.
SAME_TOKENS = 1024


@dataclass(slots=True)
class PromptReading:
    """One prompt that is read, was, or waits for it. ``num_cached`` of its tokens were read before it was asked for."""

    request: GenerationRequest
    policy: AttentionPolicy
    num_cached: int
    is_done: bool = False

    @property
    def num_tokens(self) -> int:
        """How many there are to be read."""
        return len(self.request.prompt_ids)

    def num_read(self, engine: SteppedEngine) -> int:
        """How many are by now. On the engine's thread."""
        if self.is_done:
            return self.num_tokens
        return max(self.num_cached, engine.reading(self.request.request_id)[0])

    def is_of(self, tenant: str, policy: AttentionPolicy) -> bool:
        """Whether it is of the tenant's, under that policy."""
        return (self.request.tenant, self.policy) == (tenant, policy)

    def is_like(self, other: "PromptReading") -> bool:
        """Whether both are of the same text, as far as their beginnings tell."""
        same = self.request.prompt_ids[:SAME_TOKENS] == other.request.prompt_ids[:SAME_TOKENS]
        return self.is_of(other.request.tenant, other.policy) and same


class PromptReadings:
    """Reads what it is given. For the event loop."""

    def __init__(self, bridge: EngineThread, policy: AttentionPolicy, measure_information: bool) -> None:
        self._bridge = bridge
        self._policy = policy
        self._measure_information = measure_information
        self._waiting: deque[PromptReading] = deque()
        self._current: PromptReading | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    def begin(self, tenant: str, policy: AttentionPolicy | None, prompt: Prompt, num_cached: int) -> PromptReading:
        """Read the prompt soon, unless that is under way or done."""
        made = PromptReading(self._request(tenant, policy, prompt), policy or self._policy, num_cached)
        if num_cached >= made.num_tokens:
            made.is_done = True
            return made
        current = self._current
        if current is not None and current.is_like(made) and current.request.prompt_ids == made.request.prompt_ids:
            return current
        self._waiting = deque((each for each in self._waiting if not each.is_like(made)), MOST_WAITING)
        self._waiting.appendleft(made)  # and the last one, which waits for longest, is forgotten
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return made

    def make_way(self, tenant: str, policy: AttentionPolicy | None, prompt: Prompt) -> None:
        """A request reads this prompt itself: what is read of the same text stops, and keeps what it has."""
        asked = PromptReading(self._request(tenant, policy, prompt), policy or self._policy, 0)
        self._waiting = deque((each for each in self._waiting if not each.is_like(asked)), MOST_WAITING)
        if self._reading is not None and self._current is not None and self._current.is_like(asked):
            self._reading.cancel()

    async def told(self, reading: PromptReading, started: float) -> AnswerProgress:
        """How far one is, for a request that came at the monotonic time ``started``."""
        try:
            num_read = await self._bridge.call(reading.num_read)
        except EngineStopped:
            num_read = reading.num_cached
        return AnswerProgress(reading.num_tokens, reading.num_cached, num_read, time.monotonic() - started)

    async def stop(self) -> None:
        """End; what was read so far is kept for as long as the engine runs. Idempotent."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _request(self, tenant: str, policy: AttentionPolicy | None, prompt: Prompt) -> GenerationRequest:
        return GenerationRequest(
            request_id=f"read.prompt.{secrets.token_hex(8)}",
            prompt_ids=prompt.ids,
            sampling=SamplingParams(max_tokens=0),
            policy=policy,
            tenant=tenant,
            keep=Keep(worthwhile(prompt)),
            measure_information=self._measure_information,
            select_from=prompt.select_from,
            is_background=True,
        )

    async def _run(self) -> None:
        while self._waiting:
            self._current = self._waiting.popleft()
            self._reading = asyncio.create_task(self._read(self._current))
            try:
                await asyncio.wait({self._reading})
            finally:
                self._reading.cancel()
                await asyncio.wait({self._reading})
                self._current = self._reading = None

    async def _read(self, reading: PromptReading) -> None:
        try:
            async with self._bridge.generate(reading.request) as events:
                async for _ in events:
                    pass
        except ModelError as refusal:
            # The answer does not depend on it.
            logger.info("a prompt is not read beside its answer: %s", refusal)
            return
        reading.is_done = True
