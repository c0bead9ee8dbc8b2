"""Who runs next and how many tokens of it: policy in plain Python, no tensors.

Admission is first come, first served, and nobody overtakes: a sequence is admitted when a slot is
free and its worst case of key/value blocks fits beside the worst cases of those admitted before.
So an admitted sequence always runs to its end. Steps go round: one token for each decoding
sequence, then one chunk of one prompt. Prompts take turns, so a short one behind a long document
waits for one chunk and not for the document.
"""

import math
from collections import deque
from dataclasses import dataclass

from model.cache.plan import num_resident_blocks
from model.engine.sequence import Sequence, Status
from model.errors import QueueFull
from model.policy import BLOCK_TOKENS, AttentionPolicy

LONGEST_RETRY_SECONDS = 120
DURATION_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """The tokens ``start`` to ``start + num_tokens`` of a sequence are to be read."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """First position that is not read in this step."""
        return self.start + self.num_tokens

    @property
    def draws_token(self) -> bool:
        """Whether a token is drawn after it: a prompt chunk before the last draws none."""
        return self.end == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step reads; at present one sequence, so that no token depends on a neighbour's."""

    chunks: tuple[PlannedChunk, ...]

    @property
    def phase(self) -> str:
        """``decode`` when every sequence is past its prompt, else ``prefill``."""
        return "decode" if all(chunk.sequence.is_decoding for chunk in self.chunks) else "prefill"

    @property
    def num_tokens(self) -> int:
        """Tokens read in the step."""
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Queues, turns and the books of slots and blocks. Mutated by the engine thread alone."""

    def __init__(self, num_slots: int, num_blocks: int, prefill_chunk_tokens: int, max_waiting: int) -> None:
        assert prefill_chunk_tokens % BLOCK_TOKENS == 0, "a chunk is made of whole blocks"
        self.num_slots = num_slots
        self.num_blocks = num_blocks
        self._chunk_tokens = prefill_chunk_tokens
        self._max_waiting = max_waiting
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._decoding: deque[Sequence] = deque()
        self._num_left_in_round = 0
        self._num_reserved_blocks = 0
        self._mean_seconds = 1.0

    @property
    def num_running(self) -> int:
        """Admitted sequences: those that hold a slot."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        """Sequences that were accepted and not admitted yet."""
        return len(self._waiting)

    @property
    def num_reserved_blocks(self) -> int:
        """Blocks promised to the admitted sequences, whether they hold them yet or not."""
        return self._num_reserved_blocks

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def blocks_needed(self, num_tokens: int, policy: AttentionPolicy) -> int:
        """Most blocks a sequence of ``num_tokens`` ever holds at once."""
        return num_resident_blocks(policy, num_tokens, self._chunk_tokens)

    def submit(self, sequence: Sequence) -> None:
        """Put the sequence in the line. Raises ``QueueFull`` when it would have to wait behind too many."""
        assert sequence.request_id not in self._sequences, f"{sequence.request_id} is here already"
        assert self._need(sequence) <= self.num_blocks, "a sequence that can never fit must be refused before"
        # Slots that admission will fill in the next step do not count as waiting.
        num_free_slots = self.num_slots - self.num_running
        if len(self._waiting) >= self._max_waiting + num_free_slots:
            raise QueueFull(len(self._waiting), self._max_waiting, self._retry_after_seconds())
        self._waiting.append(sequence)
        self._sequences[sequence.request_id] = sequence

    def next_step(self) -> StepPlan | None:
        """Admit who fits, then plan one step; None when there is nothing to do."""
        self._admit()
        if self._decoding and self._num_left_in_round > 0:
            return self._plan_decode()
        if self._prefilling:
            self._num_left_in_round = len(self._decoding)
            return self._plan_prefill()
        if self._decoding:
            self._num_left_in_round = len(self._decoding)
            return self._plan_decode()
        return None

    def commit(self, plan: StepPlan) -> None:
        """The step was run: its tokens are read."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.num_read == chunk.start, f"read to {sequence.num_read}, planned from {chunk.start}"
            was_decoding = sequence.is_decoding
            sequence.num_read = chunk.end
            if not was_decoding and sequence.is_decoding:
                self._prefilling.remove(sequence)
                self._decoding.append(sequence)

    def finish(self, request_id: str, seconds: float | None = None) -> Sequence | None:
        """Take a sequence out at any point of its life; None when it is not here.

        ``seconds`` is how long a request took that ran to its end; it tunes the retry advice.
        """
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return None
        if sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        else:
            self._num_reserved_blocks -= self._need(sequence)
            if sequence in self._prefilling:
                self._prefilling.remove(sequence)
            else:
                self._decoding.remove(sequence)
                self._num_left_in_round = min(self._num_left_in_round, len(self._decoding))
        sequence.status = Status.FINISHED
        if seconds is not None:
            self._mean_seconds += DURATION_WEIGHT * (seconds - self._mean_seconds)
        return sequence

    def check(self) -> None:
        """Assert the books: every sequence in one place, reservations equal to the needs and within the pool."""
        running = [*self._prefilling, *self._decoding]
        everyone = [*self._waiting, *running]
        assert len({sequence.request_id for sequence in everyone}) == len(everyone), "a sequence stands twice"
        assert {sequence.request_id for sequence in everyone} == set(self._sequences), "a sequence got lost"
        assert len(running) <= self.num_slots, f"{len(running)} run on {self.num_slots} slots"
        assert sum(map(self._need, running)) == self._num_reserved_blocks, "reservations differ from needs"
        assert self._num_reserved_blocks <= self.num_blocks, "more blocks are promised than there are"

    def _admit(self) -> None:
        while self._waiting and self.num_running < self.num_slots:
            need = self._need(self._waiting[0])
            if self._num_reserved_blocks + need > self.num_blocks:
                return
            sequence = self._waiting.popleft()
            sequence.status = Status.RUNNING
            self._num_reserved_blocks += need
            self._prefilling.append(sequence)

    def _plan_decode(self) -> StepPlan:
        self._num_left_in_round -= 1
        sequence = self._decoding[0]
        self._decoding.rotate(-1)
        return StepPlan((PlannedChunk(sequence, sequence.num_read, 1),))

    def _plan_prefill(self) -> StepPlan:
        sequence = self._prefilling[0]
        self._prefilling.rotate(-1)
        start = sequence.num_read
        # Borders are absolute multiples, so that the same prompt is always cut the same way.
        end = min((start // self._chunk_tokens + 1) * self._chunk_tokens, sequence.num_prompt_tokens)
        return StepPlan((PlannedChunk(sequence, start, end - start),))

    def _need(self, sequence: Sequence) -> int:
        return self.blocks_needed(sequence.max_num_tokens, sequence.policy)

    def _retry_after_seconds(self) -> int:
        # The line moves by one place each time one of the running requests ends.
        estimate = self._mean_seconds * (len(self._waiting) + 1) / self.num_slots
        return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(estimate)))
