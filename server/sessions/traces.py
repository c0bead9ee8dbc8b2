"""Which prompts quoted which documents, so that the engine forgets them when a document is deleted.

The engine keeps what it read, to read it once. A prompt with passages is such a text, but not one of any session: it is
noted here while the engine may still have it.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from model.policy import AttentionPolicy
from server.engine_thread.bridge import EngineThread

MOST_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class Trace:
    """A prompt that quotes ``documents`` after its first ``num_general`` tokens."""

    tenant: str
    policy: AttentionPolicy
    ids: "array[int]"
    num_general: int
    documents: tuple[str, ...]


class Traces:
    """The last prompts with passages. Of an older one the engine keeps nothing. Belongs to the event loop."""

    def __init__(self, bridge: EngineThread, most: int = MOST_PROMPTS) -> None:
        self._bridge = bridge
        self._most = most
        self._traces: deque[Trace] = deque()

    async def note(self, trace: Trace) -> None:
        """Remember a prompt, before it is read."""
        self._traces.append(trace)
        if len(self._traces) > self._most:
            await self._forget([self._traces.popleft()])

    async def forget(self, tenant: str, document_id: str) -> None:
        """Let the engine forget every prompt that quotes the document."""
        quoting = [each for each in self._traces if each.tenant == tenant and document_id in each.documents]
        await self._forget(quoting)
        self._traces = deque(each for each in self._traces if each not in quoting)

    async def _forget(self, traces: Sequence[Trace]) -> None:
        if traces:
            await self._bridge.call(
                lambda engine: [engine.forget(each.tenant, each.policy, each.ids, each.num_general) for each in traces]
            )
