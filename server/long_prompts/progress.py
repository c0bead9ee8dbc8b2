"""How far the engine is with a prompt, asked now and then while it says nothing yet."""

import time

from model.engine.request import GenerationRequest, RequestUsage
from server.answers.inquiry import AnswerProgress, Inquiry
from server.engine_thread.bridge import EngineThread
from server.engine_thread.stepped import SteppedEngine
from server.long_prompts.reading_beside import PromptReading

# The first time soon, so that a client knows where the reading begins; then about once a second.
FIRST_SECONDS = 0.1
SECONDS = 1.0


class ReadingProgress:
    """Looks at one request, which came at the monotonic time ``started``, and at what is read ``beside`` it."""

    def __init__(
        self, bridge: EngineThread, request: GenerationRequest, started: float, beside: PromptReading | None = None
    ) -> None:
        self._bridge = bridge
        self._request_id = request.request_id
        self._num_tokens = len(request.prompt_ids)
        self._started = started
        self._last = (-1, -1)
        self._num_cached = 0
        self._beside = beside
        self._num_beside = 0

    async def look(self) -> AnswerProgress | None:
        """Where it is now; None where that was told before. Raises ``EngineStopped``."""
        num_read, self._num_cached = await self._bridge.call(self._look)
        return self._told(num_read)

    async def end(self, usage: RequestUsage | None) -> AnswerProgress | None:
        """The prompt is read; None where that was told before. ``usage`` is there where the request has ended."""
        num_read, num_cached = await self._bridge.call(self._look)
        if usage is not None:
            self._num_cached = usage.num_cached_tokens
        else:
            self._num_cached = num_cached if num_read else self._num_cached  # it may have ended meanwhile
        return self._told(self._num_tokens)

    def _look(self, engine: SteppedEngine) -> tuple[int, int]:
        """Of the request; what is beside it is noted."""
        self._num_beside = 0 if self._beside is None else self._beside.num_read(engine)
        return engine.reading(self._request_id)

    def _told(self, num_read: int) -> AnswerProgress | None:
        now = (num_read + self._num_beside, self._num_cached)
        if now == self._last:
            return None
        self._last = now
        num_tokens, num_cached = self._num_tokens, self._num_cached
        if self._beside is not None:
            num_tokens += self._beside.num_tokens
            num_cached += self._beside.num_cached
        return AnswerProgress(num_tokens, num_cached, num_read + self._num_beside, time.monotonic() - self._started)


def told_progress(
    bridge: EngineThread,
    inquiry: Inquiry,
    request: GenerationRequest,
    is_long: bool,
    beside: PromptReading | None = None,
) -> ReadingProgress | None:
    """What looks at the request, where somebody is told: in streams, of long prompts unless it is not wanted."""
    is_wanted = is_long if inquiry.tells_progress is None else inquiry.tells_progress
    return ReadingProgress(bridge, request, inquiry.started, beside) if is_wanted and inquiry.is_streamed else None
