"""The engine: synchronous, one thread, the only writer of the model's memory.

A step is: end what is overdue, ask the scheduler who is next, run the model, draw tokens where they are due, tell the
scheduler, publish what happened. Text of users is never logged.
"""

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as TokenIds
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from model.cache.checkpoints import Checkpoints
from model.cache.prefix_tree import as_ids, common_length
from model.engine.admission import Admission
from model.engine.generation import Generation
from model.engine.holdings import Holding
from model.engine.request import FinishReason, GenerationRequest, RequestUsage, TokenEvent
from model.engine.running import Runner
from model.engine.sampler import Draw, Drawn, draw
from model.engine.scheduler import Scheduler
from model.engine.sequence import Sequence, SequenceGroup, Status
from model.engine.stats import EngineStats, StepRecord
from model.engine.step import StepPlan
from model.engine.token_trie import TokenTrie
from model.engine.transcript import ConstrainedTranscript, FreeTranscript, Transcript, VerbatimTranscript
from model.engine.verbatim import VerbatimConstraint
from model.errors import (
    ConstraintFailed,
    DeadlineExceeded,
    EngineDraining,
    GenerationFailed,
    InvalidRequest,
    ModelError,
)
from model.fingerprint import ARITHMETIC, Fingerprint
from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# What can go wrong with one request's own numbers. A broken law (AssertionError) is not among them: it ends the engine.
STEP_FAILURES = (ArithmeticError, LookupError, MemoryError, ModelError, OSError, RuntimeError, TypeError, ValueError)


class Engine:
    """Continues prompts. All methods belong to one thread, but ``stats``, which belongs to any.

    ``stats`` is the snapshot before the first step: build information, plan and pool bytes. ``weights`` is the digest
    of the checkpoint's files.
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
        weights: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.policy = policy
        self._runner = runner
        self._scheduler = scheduler
        self._admission = admission
        self._clock = clock
        self._weights = weights
        self._vocabulary = vocabulary
        self._running: dict[str, Generation] = {}
        self._draining = False
        self._counts = Counter[str]()
        self._prefixes = Counter[tuple[str, str]]()
        self._stats = stats
        self._publish()

    @property
    def checkpoints(self) -> Checkpoints:
        """What was kept of texts that were read, by tenant and policy."""
        return self._runner.checkpoints

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request, or raise why not, before anything of it runs.

        Raises ``EngineDraining``, ``InvalidRequest`` naming the field, ``PromptTooLong``, ``NeverFits`` or
        ``QueueFull``.
        """
        if self._draining:
            raise EngineDraining
        if request.request_id in self._running:
            raise InvalidRequest("request_id", request.request_id, "an id that is not in use")
        policy = request.policy or self.policy
        self._admission.check(request, policy)
        group = SequenceGroup(request, policy, submitted_at=self._clock())
        self._scheduler.submit(group)
        with ExitStack() as undo:
            undo.callback(self._scheduler.finish, request.request_id)
            generation = Generation.of(group, lambda: self._transcript(request))
            undo.pop_all()
        self._running[request.request_id] = generation
        self._publish()

    def abort(self, request_id: str) -> bool:
        """End a request without an event and give its memory back; False if it is not here (any more)."""
        if not self._close(request_id):
            return False
        self._counts["num_aborted"] += 1
        self._publish()
        return True

    def pause(self, request_id: str) -> None:
        """Let a request keep what it holds and rest. Who is not here is not paused."""
        self._rest(request_id, True)

    def resume(self, request_id: str) -> None:
        """Let a paused request go on."""
        self._rest(request_id, False)

    def preempt(self, request_id: str) -> bool:
        """Move a request to host memory and back in line; False if it does not run, or the host has no room."""
        group = self._scheduler.group(request_id)
        if group is None or group.status is not Status.RUNNING or not self._scheduler.preempt(group):
            return False
        self._publish()
        return True

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._draining = True
        self._publish()

    def fingerprint(self, policy: AttentionPolicy | None = None) -> Fingerprint:
        """What states that this engine makes depend on."""
        build, asked = self._stats.build, policy or self.policy
        is_indexed = build.archive_index_blocks and asked.name is PolicyName.ARCHIVE
        return Fingerprint(
            weights=self._weights,
            tokenizer=self.tokenizer.fingerprint,
            policy=f"{asked}, by indexes of {build.archive_index_blocks} blocks" if is_indexed else str(asked),
            dtype=build.dtype,
            kernels=f"{build.device}:{build.kernels}:{ARITHMETIC}",
        )

    def holding(self, tenant: str, policy: AttentionPolicy, token_ids: TokenIds[int]) -> Holding:
        """The deepest checkpoint on the path of ``token_ids``, and what it takes."""
        path = self.checkpoints.path((tenant, policy), token_ids)
        return self._runner.holding(path[-1]) if path else Holding()

    def forget(self, tenant: str, policy: AttentionPolicy, token_ids: TokenIds[int], num_general: int) -> int:
        """Drop every checkpoint of texts that have more than ``num_general`` tokens in common with ``token_ids``, but
        for what lies on the way to an anchor; requests under way with such a text leave nothing behind. How many."""
        for group in self._scheduler.groups():
            if group.tenant == tenant and group.policy == policy:
                text = as_ids(group.sequences[0].token_ids)
                if common_length(as_ids(token_ids), text, 0) > num_general:
                    group.is_forgotten = True
        num_dropped = self.checkpoints.forget((tenant, policy), token_ids, num_general)
        self._publish()
        return num_dropped

    def reading(self, request_id: str) -> tuple[int, int]:
        """How many tokens of a request's prompt are read, and how many of these were there already; noughts while it
        waits, or where it is not here."""
        group = self._scheduler.group(request_id)
        if group is None or group.prefix is None:
            return 0, 0
        return min(group.sequences[0].num_read, group.num_prompt_tokens), group.prefix.num_tokens

    def has_work(self) -> bool:
        """Whether a step would do anything; not while all requests are paused."""
        return self._scheduler.has_work

    def next_deadline(self) -> float | None:
        """Seconds until the next request must have ended, 0 if one is overdue; None when none has a limit."""
        deadlines = [group.deadline_at for group in self._scheduler.groups() if group.deadline_at is not None]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def stats(self) -> EngineStats:
        """What was true after the last step, or the last ``refresh``."""
        return self._stats

    def refresh(self) -> None:
        """Let ``stats`` tell what is true now; for whoever changed something between two steps, as checkpoints."""
        self._scheduler.wake()
        self._publish()

    def step(self) -> list[TokenEvent]:
        """Run one step; the events that it brought. A failure of one request is that request's last event."""
        events = self._end_overdue()
        started = time.perf_counter()
        plan = self._scheduler.next_step()
        if plan is not None:
            events += self._run(plan)
            self._counts["num_steps"] += 1
            self._publish(StepRecord(plan.phase, plan.num_tokens, time.perf_counter() - started))
        else:
            events += self._refuse_starved()
            self._publish()
        if not self._running:
            self.check()
        return events

    def check(self) -> None:
        """Assert the laws of conservation: of the books and of the pools."""
        self._scheduler.check()
        self._runner.check()

    def _end_overdue(self) -> list[TokenEvent]:
        now = self._clock()
        overdue = [
            (group, seconds)
            for group in self._scheduler.groups()
            if (seconds := group.request.max_seconds) is not None and now >= group.submitted_at + seconds
        ]
        return [self._end(group, DeadlineExceeded(seconds)) for group, seconds in overdue]

    def _refuse_starved(self) -> list[TokenEvent]:
        """End the first in line where it waits for room in the archive that nobody will make."""
        if (starved := self._scheduler.starved()) is None:
            return []
        return [self._end(starved[0], self._runner.archive_full(starved[1]))]

    def _run(self, plan: StepPlan) -> list[TokenEvent]:
        if (starved := self._runner.starved(plan)) is not None:
            # The next plan is without it.
            return [self._end(starved[0].group, starved[1])]
        now = self._clock()
        for chunk in plan.chunks:
            if chunk.sequence.group.admitted_at is None:
                chunk.sequence.group.admitted_at = now
        started = time.perf_counter()
        try:
            logits = self._runner.run(plan)
        except STEP_FAILURES as failure:
            return [
                self._fail(group, failure) for group in dict.fromkeys(chunk.sequence.group for chunk in plan.chunks)
            ]
        self._scheduler.commit(plan, time.perf_counter() - started)
        self._counts["num_prompt_tokens"] += plan.num_prompt_tokens
        events: list[TokenEvent] = []
        due: list[tuple[Sequence, int]] = []
        end = 0
        for chunk in plan.chunks:
            start, end = end, end + chunk.num_logits
            group = chunk.sequence.group
            try:
                if chunk.end == group.num_prompt_tokens == group.max_num_tokens:
                    events.append(self._end_reading(group, now))
                    continue
                self._running[group.request_id].keep_prompt_logprobs(chunk, logits[start:end])
                if chunk.draws_token:
                    due += [(sequence, end - 1) for sequence in self._branches(chunk.sequence)]
            except STEP_FAILURES as failure:
                events.append(self._fail(group, failure))
        return events + self._draw(logits, due)

    def _branches(self, sequence: Sequence) -> list[Sequence]:
        """All choices that draw from the sequence's last logits: itself, or at the end of the prompt everyone."""
        group = sequence.group
        if group.is_forked:
            return [sequence]
        forks = group.fork()
        self._runner.fork(sequence, forks)
        return [sequence, *forks]

    def _draw(self, logits: Tensor, due: list[tuple[Sequence, int]]) -> list[TokenEvent]:
        """The next token of each sequence from its row of ``logits``."""
        events: list[TokenEvent] = []
        sequences: list[Sequence] = []
        draws: list[Draw] = []
        rows: list[int] = []
        for sequence, row in due:
            choice = self._running[sequence.group.request_id].choice(sequence)
            try:
                draws.append(Draw(choice.sampler, choice.transcript.allowed()))
            except STEP_FAILURES as failure:
                events += self._fail_once(sequence.group, failure)
                continue
            sequences.append(sequence)
            rows.append(row)
        if not draws:
            return events
        drawn = draw(logits if rows == list(range(len(logits))) else logits[rows], draws)
        now = self._clock()
        for sequence, found in zip(sequences, drawn, strict=True):
            if sequence.group.request_id not in self._running:
                continue  # another choice of the request failed in this step, and took this one along
            try:
                if isinstance(found, ArithmeticError):
                    raise found
                events.append(self._extend(sequence, found, now))
            except STEP_FAILURES as failure:
                events += self._fail_once(sequence.group, failure)
        return events

    def _extend(self, sequence: Sequence, drawn: Drawn, now: float) -> TokenEvent:
        group = sequence.group
        generation = self._running[group.request_id]
        choice = generation.choice(sequence)
        text, reason = choice.transcript.push(drawn.token_id)
        if group.first_token_at is None:
            group.first_token_at = now
        gap_seconds = None if choice.last_at is None else now - choice.last_at
        choice.last_at = now
        sequence.token_ids.append(drawn.token_id)
        group.num_completion_tokens += 1
        self._counts["num_completion_tokens"] += 1
        event = TokenEvent(
            group.request_id,
            text,
            (drawn.token_id,),
            choice=sequence.choice,
            logprobs=() if drawn.logprob is None else (drawn.logprob,),
            prompt_logprobs=generation.take_prompt_logprobs(sequence),
            gap_seconds=gap_seconds,
        )
        if reason is None:
            return event
        return replace(
            event, finish_reason=reason, spans=choice.transcript.spans(), usage=self._end_choice(sequence, now)
        )

    def _end_reading(self, group: SequenceGroup, now: float) -> TokenEvent:
        """The last event of a request that wanted its prompt read and nothing else."""
        usage = self._end_choice(group.sequences[0], now)
        return TokenEvent(group.request_id, "", finish_reason=FinishReason.STOP, usage=usage)

    def _end_choice(self, sequence: Sequence, now: float) -> RequestUsage | None:
        """Give back what the choice holds; the bill when it was the last."""
        group = sequence.group
        generation = self._running[group.request_id]
        generation.hold(self._runner.held_bytes(group.sequences))
        if len(group.sequences) > 1:
            group.sequences.remove(sequence)
            self._runner.retire(sequence)
            return None
        usage = generation.usage(self._stats.build.dtype, now)
        self._close(group.request_id, usage.total_seconds)
        self._counts["num_finished"] += 1
        return usage

    def _fail_once(self, group: SequenceGroup, failure: BaseException) -> list[TokenEvent]:
        return [self._fail(group, failure)] if group.request_id in self._running else []

    def _fail(self, group: SequenceGroup, failure: BaseException) -> TokenEvent:
        if isinstance(failure, ConstraintFailed):  # nothing of the step went wrong
            return self._end(group, failure)
        # The exception's message may quote what a user sent, so only its kind and place are logged.
        place = "".join(traceback.format_tb(failure.__traceback__))
        logger.error("request %s failed with %s\n%s", group.request_id, type(failure).__name__, place)
        return self._end(group, GenerationFailed(failure), is_sound=False)

    def _end(self, group: SequenceGroup, error: ModelError, is_sound: bool = True) -> TokenEvent:
        generation = self._running[group.request_id]
        generation.hold(self._runner.held_bytes(group.sequences))
        usage = generation.usage(self._stats.build.dtype, self._clock())
        self._close(group.request_id, is_sound=is_sound)
        self._counts["num_failed"] += 1
        return TokenEvent(group.request_id, "", (), FinishReason.ERROR, usage, error=error)

    def _close(self, request_id: str, seconds: float | None = None, is_sound: bool = True) -> bool:
        """Take a request out; what it remembers is kept, unless a failed step left that undefined."""
        group = self._scheduler.finish(request_id, seconds)
        if group is None:
            return False
        del self._running[request_id]
        # What is read in pieces goes on from its own beginning, which spared nobody anything.
        if group.prefix is not None and not group.request.is_background:
            self._prefixes[group.prefix.result, group.prefix.reason] += 1
            self._counts["num_cached_tokens"] += group.prefix.num_tokens
        for sequence in group.sequences:
            if is_sound:
                self._runner.retire(sequence)
            else:
                self._runner.close(sequence)
        return True

    def _rest(self, request_id: str, is_paused: bool) -> None:
        group = self._scheduler.group(request_id)
        if group is not None:
            self._scheduler.pause(group, is_paused)

    def _transcript(self, request: GenerationRequest) -> Transcript:
        eos_ids = self.tokenizer.eos_ids
        if request.evidence is None:
            free = FreeTranscript(request.sampling, self.tokenizer.stream_decoder(request.continues), eos_ids)
            return free if request.constraint is None else ConstrainedTranscript(free, request.constraint())
        quoted = VerbatimConstraint(request.evidence, self._vocabulary, request.max_spans, request.whole_evidence)
        return VerbatimTranscript(request.sampling, quoted, eos_ids)

    def _pool_bytes(self) -> Mapping[str, int]:
        """All pools keep the size that they were given, but for what steps need beside them."""
        held, workspace = self._stats.pool_bytes, self._runner.workspace_bytes
        return held if held.get("workspace", 0) == workspace else MappingProxyType({**held, "workspace": workspace})

    def _publish(self, last_step: StepRecord | None = None) -> None:
        room = self._runner.archive_room
        room.num_promised = self._scheduler.num_archive_blocks_promised
        # One assignment of a frozen object: a reader on another thread sees all of it or none.
        self._stats = replace(
            self._stats,
            slots=self._runner.slots,
            blocks=self._runner.blocks,
            num_blocks_shared=self._runner.num_shared_blocks,
            pool_bytes=self._pool_bytes(),
            saved_bytes=self._runner.saved_bytes,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_saved=self._scheduler.num_saved,
            num_preemptions=self._scheduler.num_preemptions,
            num_prompt_tokens=self._counts["num_prompt_tokens"],
            num_completion_tokens=self._counts["num_completion_tokens"],
            num_cached_tokens=self._counts["num_cached_tokens"],
            num_prefixes=MappingProxyType(dict(self._prefixes)),
            checkpoint_bytes=self.checkpoints.host_bytes,
            num_checkpoints=MappingProxyType(
                {"resident": self.checkpoints.num_resident, "host": self.checkpoints.num_on_host}
            ),
            num_checkpoints_lost=self.checkpoints.num_lost,
            archive_blocks=self._runner.archive_blocks,
            num_archive_blocks_anchored=room.num_anchored,
            num_archive_blocks_promised=room.num_promised,
            archive_bytes=MappingProxyType(dict(self._runner.archive_bytes)),
            archive_disk_bytes=self._runner.archive_disk_bytes,
            num_finished=self._counts["num_finished"],
            num_aborted=self._counts["num_aborted"],
            num_failed=self._counts["num_failed"],
            num_steps=self._counts["num_steps"],
            draining=self._draining,
            last_step=last_step or self._stats.last_step,
        )
