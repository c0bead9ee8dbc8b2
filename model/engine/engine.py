"""The engine: synchronous, one thread, the only writer of the model's memory.

A step is: ask the scheduler who is next, run the model, draw a token where one is due, tell the
scheduler, publish what happened. Text of users is never logged.
"""

import logging
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from model.engine.admission import Admission
from model.engine.request import FinishReason, GenerationRequest, RequestUsage, TokenEvent
from model.engine.runner import HeldBytes
from model.engine.sampler import Sampler
from model.engine.scheduler import Scheduler, StepPlan
from model.engine.sequence import Sequence
from model.engine.stats import EngineStats, PoolCounts, StepRecord
from model.engine.token_trie import TokenTrie
from model.engine.transcript import FreeTranscript, Transcript, VerbatimTranscript
from model.engine.verbatim import VerbatimConstraint
from model.errors import EngineDraining, GenerationFailed, InvalidRequest, ModelError
from model.policy import AttentionPolicy
from model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# What can go wrong with one request's own numbers. A broken law (AssertionError) is not among them: it ends the engine.
STEP_FAILURES = (ArithmeticError, LookupError, MemoryError, ModelError, OSError, RuntimeError, TypeError, ValueError)


class Runner(Protocol):
    """What the engine needs of ``model.engine.runner.ModelRunner``."""

    @property
    def slots(self) -> PoolCounts:
        """State slots by status."""

    @property
    def blocks(self) -> PoolCounts:
        """Key/value blocks by status."""

    def run(self, plan: StepPlan) -> list[Tensor | None]:
        """Read the planned tokens; logits [V] for each chunk after which a token is drawn."""

    def held_bytes(self, sequence: Sequence) -> HeldBytes:
        """What the sequence holds now."""

    def close(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds."""

    def check(self) -> None:
        """Assert conservation."""


class Engine:
    """Continues prompts. ``submit``, ``abort`` and ``step`` belong to one thread, ``stats`` to any.

    ``stats`` is the snapshot before the first step: build information, plan and pool bytes.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        vocabulary: TokenTrie,
        admission: Admission,
        policy: AttentionPolicy,
        stats: EngineStats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokenizer = tokenizer
        self.policy = policy
        self._runner = runner
        self._scheduler = scheduler
        self._admission = admission
        self._clock = clock
        self._vocabulary = vocabulary
        self._running: dict[str, _Generation] = {}
        self._draining = False
        self._stats = stats
        self._publish()

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request, or raise why not, before anything of it runs.

        Raises ``EngineDraining``, ``InvalidRequest`` naming the field, ``PromptTooLong`` or ``QueueFull``.
        """
        if self._draining:
            raise EngineDraining
        if request.request_id in self._running:
            raise InvalidRequest("request_id", request.request_id, "an id that is not in use")
        policy = request.policy or self.policy
        self._admission.check(request, policy)
        sequence = Sequence(request, policy, submitted_at=self._clock())
        self._scheduler.submit(sequence)
        with ExitStack() as undo:
            undo.callback(self._scheduler.finish, request.request_id)
            generation = _Generation(sequence, Sampler(request.sampling), self._transcript(request))
            undo.pop_all()
        self._running[request.request_id] = generation
        self._publish()

    def abort(self, request_id: str) -> bool:
        """End a request without an event and give its memory back; False if it is not here (any more)."""
        if not self._close(request_id):
            return False
        self._stats = replace(self._stats, num_aborted=self._stats.num_aborted + 1)
        self._publish()
        return True

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._draining = True
        self._publish()

    def has_work(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self._running)

    def stats(self) -> EngineStats:
        """What was true after the last step."""
        return self._stats

    def step(self) -> list[TokenEvent]:
        """Run one step; the events that it brought. A failure of one request is that request's last event."""
        started = time.perf_counter()
        plan = self._scheduler.next_step()
        if plan is None:
            return []
        phase = plan.phase
        events = self._run(plan)
        self._stats = replace(
            self._stats,
            num_steps=self._stats.num_steps + 1,
            last_step=StepRecord(phase, plan.num_tokens, time.perf_counter() - started),
        )
        self._publish()
        if not self._running:
            self._scheduler.check()
            self._runner.check()
        return events

    def _run(self, plan: StepPlan) -> list[TokenEvent]:
        now = self._clock()
        for chunk in plan.chunks:
            if chunk.sequence.admitted_at is None:
                chunk.sequence.admitted_at = now
        try:
            rows = self._runner.run(plan)
        except STEP_FAILURES as failure:
            return [self._fail(chunk.sequence, failure) for chunk in plan.chunks]
        num_prompt_tokens = sum(chunk.num_tokens for chunk in plan.chunks if not chunk.sequence.is_decoding)
        self._stats = replace(self._stats, num_prompt_tokens=self._stats.num_prompt_tokens + num_prompt_tokens)
        self._scheduler.commit(plan)
        return [
            self._extend(chunk.sequence, row) for chunk, row in zip(plan.chunks, rows, strict=True) if row is not None
        ]

    def _extend(self, sequence: Sequence, logits: Tensor) -> TokenEvent:
        generation = self._running[sequence.request_id]
        try:
            token_id = generation.sampler.draw(logits, generation.transcript.allowed())
            text, reason = generation.transcript.push(token_id)
        except STEP_FAILURES as failure:
            return self._fail(sequence, failure)
        if sequence.first_token_at is None:
            sequence.first_token_at = self._clock()
        sequence.token_ids.append(token_id)
        self._stats = replace(self._stats, num_completion_tokens=self._stats.num_completion_tokens + 1)
        if reason is None:
            return TokenEvent(sequence.request_id, text, (token_id,))
        usage = self._usage(sequence)
        self._close(sequence.request_id, usage.total_seconds)
        self._stats = replace(self._stats, num_finished=self._stats.num_finished + 1)
        return TokenEvent(sequence.request_id, text, (token_id,), reason, usage, spans=generation.transcript.spans())

    def _fail(self, sequence: Sequence, failure: BaseException) -> TokenEvent:
        # The exception's message may quote what a user sent, so only its kind and place are logged.
        place = "".join(traceback.format_tb(failure.__traceback__))
        logger.error("request %s failed with %s\n%s", sequence.request_id, type(failure).__name__, place)
        usage = self._usage(sequence)
        self._close(sequence.request_id)
        self._stats = replace(self._stats, num_failed=self._stats.num_failed + 1)
        error = GenerationFailed(failure)
        return TokenEvent(sequence.request_id, "", (), FinishReason.ERROR, usage, error=error)

    def _close(self, request_id: str, seconds: float | None = None) -> bool:
        sequence = self._scheduler.finish(request_id, seconds)
        if sequence is None:
            return False
        del self._running[request_id]
        self._runner.close(sequence)
        return True

    def _transcript(self, request: GenerationRequest) -> Transcript:
        eos_ids = self.tokenizer.eos_ids
        if request.evidence is None:
            return FreeTranscript(request.sampling, self.tokenizer.stream_decoder(), eos_ids)
        constraint = VerbatimConstraint(request.evidence, self._vocabulary, request.max_spans)
        return VerbatimTranscript(request.sampling, constraint, eos_ids)

    def _usage(self, sequence: Sequence) -> RequestUsage:
        now, held = self._clock(), self._runner.held_bytes(sequence)
        admitted, first = sequence.admitted_at, sequence.first_token_at
        return RequestUsage(
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=0,
            num_completion_tokens=sequence.num_completion_tokens,
            policy=sequence.policy,
            dtype=self._stats.build.dtype,
            kv_bytes=held.kv,
            ssm_state_bytes=held.ssm_state,
            conv_state_bytes=held.conv_state,
            state_capacity_bits=8 * held.total,
            queue_seconds=(now if admitted is None else admitted) - sequence.submitted_at,
            ttft_seconds=None if first is None else first - sequence.submitted_at,
            total_seconds=now - sequence.submitted_at,
        )

    def _publish(self) -> None:
        # One assignment of a frozen object: a reader on another thread sees all of it or none.
        self._stats = replace(
            self._stats,
            slots=self._runner.slots,
            blocks=self._runner.blocks,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            draining=self._draining,
        )


@dataclass(frozen=True, slots=True)
class _Generation:
    """A sequence with what draws its tokens and what makes text of them."""

    sequence: Sequence
    sampler: Sampler
    transcript: Transcript
