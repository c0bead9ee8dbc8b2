"""Which prompts are answered in streams alone: those of which so much is to be read that a client would give up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from model.policy import AttentionPolicy
from server.engine_thread.bridge import EngineThread
from server.engine_thread.stepped import SteppedEngine
from server.errors import StreamRequired
from server.long_prompts.pace import ReadingPace


@dataclass(frozen=True, slots=True)
class Remembered:
    """The tokens at the beginning of a prompt that need not be read, and the blocks of theirs in the attention archive
    that are no room for others, since a request or a name holds them."""

    num_tokens: int = 0
    num_archived: int = 0


class StreamRule:
    """Refuses replies that are not streamed where more than ``most`` tokens are to be read; ``policy`` is that of
    requests which name none."""

    def __init__(self, bridge: EngineThread, pace: ReadingPace, policy: AttentionPolicy, most: int) -> None:
        self._bridge = bridge
        self._pace = pace
        self._policy = policy
        self._most = most

    async def check(
        self,
        is_streamed: bool,
        tenant: str,
        policy: AttentionPolicy | None,
        prompt_ids: Sequence[int],
        measures_information: bool,
        select_from: Iterable[int],
    ) -> None:
        """Raises ``StreamRequired``. What of the prompt is remembered is not read again; ``select_from`` are the places
        from which on it may select blocks, several as long as the prompt was not searched."""
        if is_streamed or len(prompt_ids) <= self._most:
            return
        asked = tenant, policy, prompt_ids, measures_information
        found = [await self.remembered(*asked, place) for place in select_from]
        num_tokens = len(prompt_ids) - max(each.num_tokens for each in found)
        if num_tokens > self._most:
            await self._pace.measure(self._bridge)
            raise StreamRequired(num_tokens, self._most, self._pace.seconds(num_tokens))

    def is_needed(self, num_tokens: int) -> bool:
        """Whether a prompt of which so many tokens are to be read is answered in a stream alone."""
        return num_tokens > self._most

    async def remembered(
        self,
        tenant: str,
        policy: AttentionPolicy | None,
        prompt_ids: Sequence[int],
        measures_information: bool,
        select_from: int,
    ) -> Remembered:
        """What of the prompt the engine would not read again in a request that selects blocks from ``select_from``
        on."""
        policy = policy or self._policy
        selected_from = partial(policy.selected_from, select_from=select_from)

        def look(engine: SteppedEngine) -> Remembered:
            kept = engine.checkpoints
            found = kept.find((tenant, policy), prompt_ids, measures_information, selected_from).checkpoint
            return Remembered() if found is None else Remembered(found.num_tokens, kept.num_archived_held(found))

        return await self._bridge.call(look)
