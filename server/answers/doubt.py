"""What the model expects of an answer without documents: asked about turns of which the words do not say whether to
search.

It draws the first few tokens of that answer, the likeliest ones; how likely they were together is how certain it is. A
model that has learned much is certain of what needs no document. One that has not may be certain of anything: the
threshold belongs to the model, is measured (``bench/gate.py``), and unless it is set nobody is asked.
"""

import math
import secrets

import anyio.to_thread

from model.engine.request import GenerationRequest, Keep, SamplingParams
from model.errors import ModelError
from server.answers.inquiry import Inquiry
from server.answers.prompt import ChatTokenizer, build_chat
from server.engine_thread.bridge import EngineThread

PROBE_TOKENS = 4
# A longer conversation is not read for this alone, and nobody waits longer for it.
MOST_PROMPT_TOKENS = 1024
MOST_SECONDS = 2.0


class Doubt:
    """Asks an engine how certain it is."""

    def __init__(self, bridge: EngineThread, tokenizer: ChatTokenizer) -> None:
        self._bridge = bridge
        self._tokenizer = tokenizer

    async def certainty(self, inquiry: Inquiry) -> float | None:
        """The geometric mean of the probabilities of the first tokens of an answer to the conversation by itself.

        None where the model cannot say: the conversation is long, the engine is busy or refuses, time is up, or the
        model would say nothing. Who is cancelled while he waits takes the question back.
        """
        ids = (await anyio.to_thread.run_sync(build_chat, self._tokenizer, inquiry.turns)).ids
        if len(ids) > MOST_PROMPT_TOKENS:
            return None
        request = GenerationRequest(
            request_id=f"{inquiry.request_id}.doubt.{secrets.token_hex(4)}",
            prompt_ids=ids,
            sampling=SamplingParams(max_tokens=PROBE_TOKENS, temperature=0.0, logprobs=0),
            policy=inquiry.policy,
            tenant=inquiry.tenant,
            max_seconds=MOST_SECONDS,
            # Earlier answers may quote documents; nobody would know to forget them here when these are deleted.
            keep=Keep(nothing=True),
        )
        logprobs: list[float] = []
        has_text = False
        try:
            async with self._bridge.generate(request) as events:
                async for event in events:
                    logprobs += [each.logprob for each in event.logprobs]
                    has_text = has_text or bool(event.text.strip())
        except ModelError:
            return None
        return math.exp(sum(logprobs) / len(logprobs)) if has_text and logprobs else None
