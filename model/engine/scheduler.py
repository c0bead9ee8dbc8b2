"""Who runs next and how many tokens of it: policy in plain Python, no tensors.

**A step** takes one token of every stream, then fills what is left of its token budget with prompts, in turns, so
that a short one behind a long document waits for one chunk and not for the document. Beside streams, prompts get
small chunks and a share of the time (``Pacing``).

**Admission** goes by slots and bytes (``Books``), tenant by tenant (``FairShare``), and nobody overtakes, but for one
that was admitted before and that the first in line waits for; what is admitted always runs to its end. **Preemption**
saves a request's state and blocks to host memory and gives them back later. It happens when blocks run out, when a
paused request holds a slot that another waits for, and when a tenant waits while another holds at least two slots more.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from model.engine.books import Books, Capacity, Memory
from model.engine.fairness import FairShare
from model.engine.line import WaitingLine
from model.engine.pacing import Pacing
from model.engine.sequence import Sequence, SequenceGroup, Status
from model.engine.step import PlannedChunk, StepPlan
from model.errors import QueueFull
from model.policy import BLOCK_TOKENS
from model.tiles import PROMPT_LOGPROB_ROWS

LONGEST_RETRY_SECONDS = 120
DURATION_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Budget:
    """Most prompt tokens of a step, without and beside streams, and the share of the time beside them."""

    prefill_chunk_tokens: int
    mixed_chunk_tokens: int
    prefill_share: float


class Scheduler:
    """Queues, turns and the books of slots and blocks. Mutated by the engine thread alone."""

    def __init__(self, memory: Memory, capacity: Capacity, budget: Budget, max_waiting: int) -> None:
        assert budget.prefill_chunk_tokens % BLOCK_TOKENS == 0, "a chunk is made of whole blocks"
        self.capacity = capacity
        self._books = Books(memory, capacity, budget.prefill_chunk_tokens)
        self._memory = memory
        self._budget = budget
        self._max_waiting = max_waiting
        self._shares = FairShare()
        self._pacing = Pacing(budget.prefill_share)
        self._groups: dict[str, SequenceGroup] = {}
        self._waiting = WaitingLine(self._shares)
        # By arrival: the first one is the oldest, which is never preempted for want of blocks.
        self._running: list[SequenceGroup] = []
        self._turns: list[SequenceGroup] = []
        self._mean_seconds = 1.0
        # Nothing could be planned, and nothing has changed since.
        self._is_stuck = False
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Requests that hold slots."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that were accepted and do not run: not admitted yet, or preempted."""
        return len(self._waiting)

    @property
    def num_saved(self) -> int:
        """Requests that were preempted and wait to go on."""
        return self.num_waiting - self._waiting.num_new

    @property
    def num_free_slots(self) -> int:
        """Slots that no running request holds or is going to fork into."""
        return self._books.num_free_slots(self._running)

    @property
    def num_archive_blocks_promised(self) -> int:
        """Blocks of the archive that those admitted may still come to need."""
        return sum(map(self._books.archive_blocks_missing, self._admitted()))

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: somebody runs or waits, is not paused, and is not kept out by those who
        are."""
        return not self._is_stuck and any(not group.is_paused for group in self._groups.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    def group(self, request_id: str) -> SequenceGroup | None:
        """The request, if it is here."""
        return self._groups.get(request_id)

    def groups(self) -> Collection[SequenceGroup]:
        """All requests that are here."""
        return self._groups.values()

    def submit(self, group: SequenceGroup) -> None:
        """Put the request in the line. Raises ``QueueFull`` when it would have to wait behind too many."""
        assert group.request_id not in self._groups, f"{group.request_id} is here already"
        assert self._books.worst_blocks(group) <= self.capacity.num_blocks, "what can never fit must be refused before"
        assert group.num_slots <= self.capacity.num_slots, "what can never fit must be refused before"
        # Slots that admission will fill in the next step do not count as waiting.
        num_new = self._waiting.num_new
        if num_new >= self._max_waiting + max(0, self.num_free_slots):
            raise QueueFull(num_new, self._max_waiting, self._retry_after_seconds())
        self._shares.arrive(group.tenant, {each.tenant for each in self._groups.values()})
        self._waiting.add(group)
        self._groups[group.request_id] = group
        self._is_stuck = False

    def next_step(self) -> StepPlan | None:
        """Preempt and admit, then plan one step; None when there is nothing to do. Moves sequences in and out of host
        memory."""
        self._admit()
        decodes = [PlannedChunk.of(sequence, 1) for sequence in self._streams()]
        prompts = self._plan_prompts(beside_streams=bool(decodes))
        chunks = self._secure_blocks([*decodes, *prompts])
        self._is_stuck = not chunks
        return StepPlan(tuple(chunks)) if chunks else None

    def starved(self) -> tuple[SequenceGroup, int] | None:
        """The first in line, where the archive has no room for it and nobody was admitted whose end could make some;
        and the number of blocks that it needs."""
        first = self._waiting.first()
        if first is None or self._admitted() or self._books.has_archive_room(first, ()):
            return None
        return first, self._books.archive_blocks_missing(first)

    def wake(self) -> None:
        """Something changed that may let somebody in."""
        self._is_stuck = False

    def commit(self, plan: StepPlan, seconds: float) -> None:
        """The step was run in ``seconds``: its tokens are read."""
        if plan.num_decodes:
            self._pacing.record(seconds, reads_prompts=plan.num_decodes < len(plan.chunks))
        else:
            self._pacing.rest()
        for chunk in plan.chunks:
            sequence, group = chunk.sequence, chunk.sequence.group
            assert sequence.num_read == chunk.start, f"read to {sequence.num_read}, planned from {chunk.start}"
            if chunk.is_decode:
                self._shares.serve(group.tenant, 0, chunk.num_tokens)
            else:
                self._shares.serve(group.tenant, chunk.num_tokens, 0)
                self._turns.remove(group)
                self._turns.append(group)
            sequence.num_read = chunk.end

    def finish(self, request_id: str, seconds: float | None = None) -> SequenceGroup | None:
        """Take a request out at any point of its life; None when it is not here.

        ``seconds`` is how long a request took that ran to its end; it tunes the retry advice.
        """
        group = self._groups.pop(request_id, None)
        if group is None:
            return None
        if group.status is Status.RUNNING:
            self._running.remove(group)
            self._turns.remove(group)
        else:
            self._waiting.remove(group)
        group.status = Status.FINISHED
        self._is_stuck = False
        if seconds is not None:
            self._mean_seconds += DURATION_WEIGHT * (seconds - self._mean_seconds)
        return group

    def pause(self, group: SequenceGroup, is_paused: bool) -> None:
        """Let the request keep what it holds and rest, or go on."""
        group.is_paused = is_paused
        self._is_stuck = False

    def preempt(self, group: SequenceGroup) -> bool:
        """Save a running request and put it back in line; False where host memory has no room for it."""
        assert group.status is Status.RUNNING, f"{group.request_id} is {group.status}"
        if not self._books.can_save(group) or not self._memory.save(group.sequences):
            return False
        self._is_stuck = False
        self._running.remove(group)
        self._turns.remove(group)
        group.status = Status.SAVED
        group.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.add(group)
        return True

    def check(self) -> None:
        """Assert the books: every request in one place, slots within the pool, and progress guaranteed."""
        everyone = [*self._waiting, *self._running]
        assert len({group.request_id for group in everyone}) == len(everyone), "a request stands twice"
        assert {group.request_id for group in everyone} == set(self._groups), "a request got lost"
        assert sorted(map(id, self._turns)) == sorted(map(id, self._running)), "a request lost its turn"
        assert self.num_free_slots >= 0, "more slots are held than there are"
        assert self._books.is_safe(self._running, self._saved()), "more was admitted than can run to its end"

    def _streams(self) -> list[Sequence]:
        awake = [group for group in self._running if not group.is_paused]
        return [sequence for group in awake for sequence in group.sequences if sequence.is_decoding]

    def _prompts(self) -> list[SequenceGroup]:
        """Running requests whose prompt is not read to its end, who waited longest for a turn first; those in the
        background only while nobody else runs."""
        awake = [group for group in self._turns if not group.is_paused]
        if not all(group.request.is_background for group in awake):
            awake = [group for group in awake if not group.request.is_background]
        return [group for group in awake if not group.sequences[0].is_decoding]

    # Planning a step.

    def _plan_prompts(self, beside_streams: bool) -> list[PlannedChunk]:
        prompts = self._prompts()
        # What is there already needs no reading, and costs nobody time.
        planned = [PlannedChunk.of(group.sequences[0], 0) for group in prompts if group.sequences[0].is_recalled]
        unread = [group for group in prompts if not group.sequences[0].is_recalled]
        if beside_streams and not self._pacing.allows_prompts:
            return planned
        num_left = self._budget.mixed_chunk_tokens if beside_streams else self._budget.prefill_chunk_tokens
        # Stable: between tenants by service, within one in turns.
        for group in sorted(unread, key=lambda group: self._shares.served(group.tenant)):
            sequence = group.sequences[0]
            if len(prompts) > 1:
                self._memory.advance(sequence)
            if sequence.is_recalled:
                planned.append(PlannedChunk.of(sequence, 0))
                continue
            if sequence.group.request.sampling.prompt_logprobs is not None:
                num_left = min(num_left, PROMPT_LOGPROB_ROWS)
            pause = group.next_cut(sequence.num_read)
            end = min(sequence.num_read + num_left, pause)
            if end < pause:
                # Whole blocks, so that the next chunk begins at a block border.
                end = max(end // BLOCK_TOKENS * BLOCK_TOKENS, sequence.num_read)
            if end > sequence.num_read:
                planned.append(PlannedChunk.of(sequence, end - sequence.num_read))
                num_left -= end - sequence.num_read
            if num_left <= 0:
                break
        return planned

    def _secure_blocks(self, chunks: list[PlannedChunk]) -> list[PlannedChunk]:
        """The chunks whose blocks are to be had; preempts the newest requests where they lack."""
        while chunks:
            reading = [chunk for chunk in chunks if chunk.num_tokens]
            missing = sum(self._memory.num_missing_blocks(chunk.sequence, chunk.end) for chunk in reading)
            if missing <= self._memory.num_free_blocks:
                return chunks
            victim = self._victim()
            if victim is None:
                # The books promise it its blocks; if they are wrong, the pool says so to this request alone.
                return chunks
            if not self.preempt(victim):
                # The host gave less than it was to: the newest waits a step, in which others may end.
                victim = max((chunk.sequence.group for chunk in chunks), key=lambda group: group.submitted_at)
                if all(chunk.sequence.group is victim for chunk in chunks):
                    return chunks
            chunks = [chunk for chunk in chunks if chunk.sequence.group is not victim]
        return chunks

    def _victim(self) -> SequenceGroup | None:
        """Who gives up blocks: a paused request, else the newest, but never the oldest of those that go on."""
        paused = [group for group in self._running if group.is_paused]
        if paused:
            return paused[-1]
        return self._running[-1] if len(self._running) > 1 else None

    # Admission.

    def _admit(self) -> None:
        while (group := self._next()) is not None:
            if not self._fits(group) and not self._make_room(group):
                return
            if group.status is Status.SAVED:
                self._memory.restore(group.sequences)
            elif not self._begin(group):
                return
            self._waiting.remove(group)
            group.status = Status.RUNNING
            place = sum(each.submitted_at <= group.submitted_at for each in self._running)
            self._running.insert(place, group)
            self._turns.append(group)

    def _next(self) -> SequenceGroup | None:
        """The first in line; where the archive has no room for it yet, the first of those that were preempted, which
        hold what it waits for and need no more of it than they were promised."""
        first = self._waiting.first()
        if first is None or first.status is Status.SAVED or self._books.has_archive_room(first, self._admitted()):
            return first
        return self._waiting.first(is_saved=True)

    def _begin(self, group: SequenceGroup) -> bool:
        """Take up the beginning of a prompt; False where what was to be taken up of the archive could not be, and there
        is no room to read it again."""
        (sequence,) = group.sequences
        self._memory.begin(sequence, [each.sequences[0] for each in self._running])
        if self._books.has_archive_room(group, self._admitted()):
            return True
        self._memory.close(sequence)
        sequence.num_read, group.prefix = 0, None
        return False

    def _admitted(self) -> list[SequenceGroup]:
        """Those that run, and those that were preempted."""
        return [*self._running, *self._saved()]

    def _fits(self, group: SequenceGroup) -> bool:
        return self._books.fits(group, self._running, [each for each in self._saved() if each is not group])

    def _saved(self) -> list[SequenceGroup]:
        return [group for group in self._waiting if group.status is Status.SAVED]

    def _make_room(self, group: SequenceGroup) -> bool:
        """Preempt for slots: paused requests first, then those of a tenant that holds more than its share."""
        if group.num_slots <= self.num_free_slots:
            return False
        slots: dict[str, int] = {}
        for each in self._running:
            slots[each.tenant] = slots.get(each.tenant, 0) + each.num_slots
        own = slots.get(group.tenant, 0) + group.num_slots
        freed, victims = self.num_free_slots, list[SequenceGroup]()

        def gives_way(each: SequenceGroup) -> bool:
            return each.request.is_background and not group.request.is_background

        def holds_more(each: SequenceGroup) -> bool:
            # One that gives way to all others would have to give the room back at once.
            is_equal = each.request.is_background or not group.request.is_background
            return is_equal and slots[each.tenant] - each.num_slots >= own

        for each in sorted(
            reversed(self._running), key=lambda each: (not each.is_paused, not gives_way(each), -slots[each.tenant])
        ):
            if freed >= group.num_slots:
                break
            if each.is_paused or gives_way(each) or holds_more(each):
                victims.append(each)
                freed += each.num_slots
                slots[each.tenant] -= each.num_slots
        rest = [each for each in self._running if each not in victims]
        saved = [*victims, *(each for each in self._saved() if each is not group)]
        if freed < group.num_slots or not self._books.is_safe([*rest, group], saved):
            return False
        return all(self.preempt(victim) for victim in victims) and self._fits(group)

    def _retry_after_seconds(self) -> int:
        # The line moves by one place each time one of the running requests ends.
        estimate = self._mean_seconds * (self.num_waiting + 1) / self.capacity.num_slots
        return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(estimate)))
