"""How fast the model reads prompts here, as it did of late: what a prompt will take before it is read."""

import asyncio
import secrets
from array import array

from model.engine.request import GenerationRequest, Keep, SamplingParams
from model.engine.stats import EngineStats
from model.errors import ModelError
from server.engine_thread.bridge import EngineThread

# Weight of the newest step in the running mean.
FRESHNESS = 0.1
# A step of fewer tokens says little about long prompts.
LEAST_TOKENS = 256
TRIAL_TOKENS = 2048
MOST_TRIAL_SECONDS = 5.0


class ReadingPace:
    """Knows the tokens a second of steps that did nothing but read; ``stepped`` is called on the engine's thread."""

    def __init__(self) -> None:
        self._seconds_per_token: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """None where nothing was read yet."""
        return None if self._seconds_per_token is None else 1.0 / self._seconds_per_token

    def stepped(self, stats: EngineStats) -> None:
        """The engine made a step."""
        step = stats.last_step
        if step is None or step.phase != "prefill" or step.num_tokens < LEAST_TOKENS or step.seconds <= 0:
            return
        seconds, before = step.seconds / step.num_tokens, self._seconds_per_token
        self._seconds_per_token = seconds if before is None else before + FRESHNESS * (seconds - before)

    def seconds(self, num_tokens: int) -> float | None:
        """What reading so many tokens would take if nobody else asked anything; None where that is not known."""
        return None if self._seconds_per_token is None else self._seconds_per_token * num_tokens

    async def measure(self, bridge: EngineThread) -> None:
        """Let the engine read something, where it has read nothing yet; leaves nothing behind, and may fail."""
        if self._seconds_per_token is not None:
            return
        request = GenerationRequest(
            request_id=f"pace.{secrets.token_hex(4)}",
            prompt_ids=array("i", [1]) * min(TRIAL_TOKENS, bridge.stats().max_context_tokens),
            sampling=SamplingParams(max_tokens=0),
            keep=Keep(nothing=True),
            is_background=True,
        )
        try:
            async with asyncio.timeout(MOST_TRIAL_SECONDS), bridge.generate(request) as events:
                async for _ in events:
                    pass
        except (ModelError, TimeoutError):
            return
