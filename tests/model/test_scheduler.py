from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.books import Capacity
from model.engine.request import GenerationRequest, PrefixOutcome, SamplingParams
from model.engine.scheduler import Budget, Scheduler
from model.engine.sequence import Sequence, SequenceGroup, Status
from model.engine.step import StepPlan
from model.errors import QueueFull
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

FULL = AttentionPolicy()
WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=128)
CAPACITY = Capacity(num_slots=4, num_blocks=100, bytes_per_slot=10, bytes_per_block=1, saved_bytes=1000)
BUDGET = Budget(prefill_chunk_tokens=128, mixed_chunk_tokens=64, prefill_share=0.5)


@dataclass
class Pools:
    """Block counts by sequence, under policy full; the memory of a scheduler without tensors."""

    capacity: Capacity
    held: dict[Sequence, int] = field(default_factory=dict)
    saved: dict[Sequence, int] = field(default_factory=dict)

    @property
    def num_free_blocks(self) -> int:
        return self.capacity.num_blocks - sum(self.held.values())

    @property
    def saved_bytes(self) -> int:
        return self.num_bytes(self.saved)

    def num_bytes(self, blocks: dict[Sequence, int]) -> int:
        return sum(count * self.capacity.bytes_per_block + self.capacity.bytes_per_slot for count in blocks.values())

    num_archive_blocks_free = 0

    def num_archived(self, sequence: Sequence) -> int:
        return 0

    num_archived_found = num_archived

    def num_missing_blocks(self, sequence: Sequence, end: int) -> int:
        return max(0, -(-end // BLOCK_TOKENS) - self.held.get(sequence, 0))

    def num_bytes_to_save(self, sequences: list[Sequence]) -> int:
        return self.num_bytes({each: self.held[each] for each in sequences if each in self.held})

    def num_blocks_to_restore(self, sequences: list[Sequence]) -> int:
        return sum(self.saved.get(each, 0) for each in sequences)

    def advance(self, sequence: Sequence) -> None:
        pass

    def begin(self, sequence: Sequence, beside: Collection[Sequence]) -> None:
        sequence.group.begin(PrefixOutcome("miss", "empty"), 0, BUDGET.prefill_chunk_tokens)

    def save(self, sequences: list[Sequence]) -> bool:
        self.saved |= {each: self.held.pop(each) for each in sequences if each in self.held}
        return True

    def restore(self, sequences: list[Sequence]) -> None:
        self.held |= {each: self.saved.pop(each) for each in sequences if each in self.saved}
        assert self.num_free_blocks >= 0

    def read(self, plan: StepPlan) -> None:
        for chunk in plan.chunks:
            self.held[chunk.sequence] = self.held.get(chunk.sequence, 0) + self.num_missing_blocks(
                chunk.sequence, chunk.end
            )
        assert self.num_free_blocks >= 0, "a step takes more blocks than there are"

    def close(self, sequence: Sequence) -> None:
        self.held.pop(sequence, None)
        self.saved.pop(sequence, None)


class Bench:
    """A scheduler, its pools, and the part of the engine that draws tokens until the limit."""

    def __init__(self, capacity: Capacity = CAPACITY, budget: Budget = BUDGET, max_waiting: int = 50) -> None:
        self.pools = Pools(capacity)
        self.scheduler = Scheduler(self.pools, capacity, budget, max_waiting)
        self.num_submitted = 0

    def submit(
        self,
        name: str,
        num_prompt_tokens: int = 1,
        max_tokens: int = 1,
        tenant: str = "t",
        policy: AttentionPolicy = FULL,
        num_choices: int = 1,
        is_background: bool = False,
    ) -> SequenceGroup:
        request = GenerationRequest(
            name,
            (1,) * num_prompt_tokens,
            SamplingParams(max_tokens=max_tokens),
            tenant=tenant,
            num_choices=num_choices,
            is_background=is_background,
        )
        group = SequenceGroup(request, policy, submitted_at=float(self.num_submitted))
        self.scheduler.submit(group)
        self.num_submitted += 1
        return group

    def step(self, seconds: float = 1.0) -> list[tuple[str, int, int]] | None:
        """One step: (request, start, tokens) of each chunk; None when there is nothing to do."""
        plan = self.scheduler.next_step()
        self.scheduler.check()
        if plan is None:
            return None
        self.pools.read(plan)
        self.scheduler.commit(plan, seconds)
        for chunk in plan.chunks:
            if chunk.draws_token:
                self.draw(chunk.sequence)
        self.scheduler.check()
        return [(chunk.sequence.group.request_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]

    def draw(self, sequence: Sequence) -> None:
        group = sequence.group
        branches = [sequence]
        if not group.is_forked:
            branches += group.fork()
            self.pools.held |= dict.fromkeys(branches, self.pools.held[sequence])
        for each in branches:
            each.token_ids.append(0)
            if each.num_completion_tokens == group.request.sampling.max_tokens:
                self.pools.close(each)
                if len(group.sequences) == 1:
                    self.scheduler.finish(group.request_id, 1.0)
                else:
                    group.sequences.remove(each)

    def finish(self, limit: int = 10_000) -> list[list[tuple[str, int, int]]]:
        steps = []
        while (step := self.step()) is not None:
            steps.append(step)
            assert len(steps) < limit, "the scheduler does not come to an end"
        return steps


def test_a_prompt_is_read_in_chunks_then_token_by_token() -> None:
    bench = Bench()
    bench.submit("a", 300, max_tokens=3)
    assert bench.finish() == [[("a", 0, 128)], [("a", 128, 128)], [("a", 256, 44)], [("a", 300, 1)], [("a", 301, 1)]]


def test_short_prompts_share_a_step() -> None:
    bench = Bench()
    for name in "abc":
        bench.submit(name, 50)
    # What is left of the budget is less than a block of the third, so it waits.
    assert bench.finish() == [[("a", 0, 50), ("b", 0, 50)], [("c", 0, 50)]]


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one() -> None:
    bench = Bench()
    bench.submit("long", 1000)
    bench.step()
    bench.submit("short", 10)
    bench.step()
    assert bench.step() == [("short", 0, 10), ("long", 256, 64)]


def test_every_stream_gets_a_token_in_every_step_and_prompts_a_small_chunk_beside_them() -> None:
    bench = Bench()
    for name in "ab":
        bench.submit(name, 10, max_tokens=60)
    bench.step()
    bench.submit("long", 6016)
    steps = [bench.step() for _ in range(40)]
    assert all(step is not None and [name for name, _, _ in step[:2]] == ["a", "b"] for step in steps)
    chunks = [step[2] for step in steps if step is not None and len(step) > 2]
    assert chunks and all(name == "long" and tokens == 64 for name, _, tokens in chunks)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("chunk_seconds", [0.5, 8.0])
def test_prompts_take_their_share_of_the_time_beside_streams(share: float, chunk_seconds: float) -> None:
    bench = Bench(budget=replace(BUDGET, prefill_share=share))
    bench.submit("stream", 10, max_tokens=2000)
    bench.submit("long", 4000, max_tokens=1)
    bench.step()
    streaming = reading = 0.0
    while bench.scheduler.num_running == 2:
        plan = bench.scheduler.next_step()
        assert plan is not None
        reads = len(plan.chunks) > 1
        seconds = 1.0 + chunk_seconds * reads
        streaming, reading = streaming + 1.0, reading + chunk_seconds * reads
        bench.pools.read(plan)
        bench.scheduler.commit(plan, seconds)
        for chunk in plan.chunks:
            if chunk.draws_token:
                bench.draw(chunk.sequence)
    # Less only where every step reads prompts and that takes no more.
    expected = min(share, chunk_seconds / (1 + chunk_seconds))
    assert reading / (streaming + reading) == pytest.approx(expected, rel=0.15)


def test_nobody_overtakes_within_a_tenant() -> None:
    bench = Bench(replace(CAPACITY, num_blocks=12, saved_bytes=0))
    bench.submit("a", 500, max_tokens=12)  # 8 blocks at worst
    bench.submit("b", 500, max_tokens=12)
    bench.submit("c", 1, max_tokens=1)  # would fit beside a
    bench.step()
    assert bench.scheduler.num_running == 1
    done = [name for step in bench.finish() for name, _, _ in step]
    assert done.index("b") < done.index("c")


def test_a_window_needs_the_same_blocks_at_any_length() -> None:
    bench = Bench(replace(CAPACITY, num_blocks=7))
    bench.submit("a", 100_000, max_tokens=1, policy=WINDOW)
    bench.scheduler.next_step()
    assert bench.scheduler.num_running == 1


def test_tenants_get_equal_shares_whoever_came_first() -> None:
    bench = Bench(replace(CAPACITY, num_slots=1, saved_bytes=0))
    for number in range(10):
        bench.submit(f"greedy{number}", 100, max_tokens=20, tenant="greedy")
    bench.step()
    for number in range(3):
        bench.submit(f"late{number}", 100, max_tokens=20, tenant="late")
    order = list(dict.fromkeys(name for step in bench.finish() for name, _, _ in step))
    assert order[1:6] == ["late0", "greedy1", "late1", "greedy2", "late2"]


def test_who_comes_back_has_saved_nothing_up() -> None:
    bench = Bench(replace(CAPACITY, num_slots=1))
    for number in range(4):
        bench.submit(f"a{number}", 100, max_tokens=20, tenant="a")
    for _ in range(30):
        bench.step()
    for number in range(4):
        bench.submit(f"b{number}", 100, max_tokens=20, tenant="b")
    order = list(dict.fromkeys(name for step in bench.finish() for name, _, _ in step))
    assert order.index("a3") < order.index("b2"), "they take turns from here on"


def test_a_tenant_that_holds_every_slot_makes_way_for_another() -> None:
    bench = Bench()
    groups = [bench.submit(f"a{number}", 10, max_tokens=100, tenant="a") for number in range(4)]
    bench.step()
    late = bench.submit("b0", 10, max_tokens=100, tenant="b")
    bench.step()
    assert late.status is Status.RUNNING and groups[3].status is Status.SAVED
    second = bench.submit("b1", 10, max_tokens=100, tenant="b")
    for _ in range(10):
        bench.step()
    assert second.status is Status.RUNNING and groups[2].status is Status.SAVED
    third = bench.submit("b2", 10, max_tokens=100, tenant="b")
    for _ in range(10):
        bench.step()
    assert third.status is Status.WAITING and bench.scheduler.num_preemptions == 2, "they are even"
    bench.finish()
    assert not bench.pools.held and not bench.pools.saved


def test_a_paused_request_gives_its_slot_to_one_that_waits() -> None:
    bench = Bench(replace(CAPACITY, num_slots=1))
    paused = bench.submit("a", 10, max_tokens=5)
    bench.step()
    bench.scheduler.pause(paused, True)
    assert bench.step() is None and not bench.scheduler.has_work
    waiting = bench.submit("b", 10, max_tokens=5)
    assert bench.scheduler.has_work
    bench.finish()
    assert (paused.status, waiting.status) == (Status.SAVED, Status.FINISHED)
    bench.scheduler.pause(paused, False)
    bench.finish()
    assert paused.status is Status.FINISHED


def test_paused_requests_that_nothing_can_move_leave_nothing_to_do() -> None:
    bench = Bench(replace(CAPACITY, num_slots=1, saved_bytes=0))
    paused = bench.submit("a", 10, max_tokens=5)
    bench.step()
    bench.scheduler.pause(paused, True)
    bench.submit("b", 10, max_tokens=5)
    assert bench.scheduler.has_work and bench.step() is None
    assert not bench.scheduler.has_work, "else the engine would spin"
    bench.scheduler.finish("a")
    assert bench.scheduler.has_work


def test_where_blocks_run_out_the_newest_is_saved_and_comes_back() -> None:
    # Three prompts fit; their answers do not.
    bench = Bench(replace(CAPACITY, num_blocks=9))
    groups = [bench.submit(name, 64, max_tokens=300) for name in "abc"]
    bench.step()
    bench.step()
    assert bench.scheduler.num_running >= 2, "admission is by what is needed now"
    bench.finish()
    assert groups[0].num_preemptions == 0 and groups[-1].num_preemptions > 0
    assert all(group.status is Status.FINISHED for group in groups)
    assert not bench.pools.held and not bench.pools.saved


def test_without_host_memory_blocks_are_promised_for_the_worst_case() -> None:
    bench = Bench(replace(CAPACITY, num_blocks=9, saved_bytes=0))
    for name in "abc":
        bench.submit(name, 64, max_tokens=300)
    bench.step()
    assert bench.scheduler.num_running == 1
    bench.finish()
    assert bench.scheduler.num_preemptions == 0


def test_choices_hold_their_slots_from_the_start_and_give_them_back_one_by_one() -> None:
    bench = Bench()
    group = bench.submit("a", 100, max_tokens=3, num_choices=3)
    bench.submit("b", 10, max_tokens=3, num_choices=2)
    bench.step()
    assert bench.scheduler.num_running == 1 and bench.scheduler.num_free_slots == 1
    assert len(group.sequences) == 3
    bench.finish()
    assert bench.scheduler.num_free_slots == 4


def test_the_line_is_bounded_and_says_when_to_come_again() -> None:
    bench = Bench(replace(CAPACITY, num_slots=2), max_waiting=2)
    for number in range(4):
        bench.submit(str(number))
    with pytest.raises(QueueFull) as refused:
        bench.submit("more")
    assert 1 <= refused.value.retry_after_seconds <= 120
    bench.step()
    bench.submit("later")
    assert "more" not in bench.scheduler and "later" in bench.scheduler


def test_preempted_requests_do_not_fill_the_line() -> None:
    bench = Bench(replace(CAPACITY, num_slots=1), max_waiting=1)
    first = bench.submit("a", 10, max_tokens=9)
    bench.step()
    assert bench.scheduler.preempt(first)
    bench.submit("b")
    assert (bench.scheduler.num_saved, bench.scheduler.num_waiting) == (1, 2)


def test_finish_works_at_any_point_and_twice() -> None:
    bench = Bench(replace(CAPACITY, num_slots=1))
    for name in "abc":
        bench.submit(name, 10, max_tokens=9)
    bench.step()
    assert bench.scheduler.preempt(bench.scheduler.group("a"))  # type: ignore[arg-type]
    for name in "abc":
        assert bench.scheduler.finish(name) is not None
        assert bench.scheduler.finish(name) is None
        bench.scheduler.check()
    assert bench.step() is None


requests = st.tuples(
    st.integers(1, 400), st.integers(1, 200), st.sampled_from("xyz"), st.integers(1, 3), st.integers(0, 6)
)


@settings(deadline=None, max_examples=150)
@given(
    drawn=st.lists(requests, min_size=1, max_size=12),
    num_slots=st.integers(3, 6),
    num_blocks=st.integers(30, 60),
    saved_bytes=st.sampled_from([0, 30, 80, 200, 1000]),
    share=st.floats(0.1, 0.9),
    moves=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["preempt", "pause", "resume", "abort"])), max_size=20
    ),
)
def test_any_schedule_keeps_the_books_and_ends(
    drawn: list[tuple[int, int, str, int, int]],
    num_slots: int,
    num_blocks: int,
    saved_bytes: int,
    share: float,
    moves: list[tuple[int, str]],
) -> None:
    capacity = replace(CAPACITY, num_slots=num_slots, num_blocks=num_blocks, saved_bytes=saved_bytes)
    bench = Bench(capacity, replace(BUDGET, prefill_share=share))
    groups: list[SequenceGroup] = []
    for number, (prompt, answer, tenant, choices, wait) in enumerate(drawn):
        if choices * -(-(prompt + answer) // BLOCK_TOKENS) <= num_blocks:
            groups.append(bench.submit(str(number), prompt, answer, tenant, num_choices=choices))
        for _ in range(wait):
            bench.step()
            assert bench.pools.saved_bytes <= saved_bytes
        for place, move in moves[number::12]:
            if not groups:
                continue
            group = groups[place % len(groups)]
            if move == "preempt" and group.status is Status.RUNNING:
                bench.scheduler.preempt(group)
            elif move in ("pause", "resume") and group.status is not Status.FINISHED:
                bench.scheduler.pause(group, move == "pause")
            elif move == "abort":
                for each in group.sequences:
                    bench.pools.close(each)
                bench.scheduler.finish(group.request_id)
            bench.scheduler.check()
    bench.finish()
    for group in groups:
        bench.scheduler.pause(group, False)
    bench.finish()
    assert all(group.status is Status.FINISHED for group in groups), "everyone comes to an end"
    assert not bench.pools.held and not bench.pools.saved
    assert bench.scheduler.num_free_slots == num_slots


def test_a_tenant_that_holds_more_makes_no_room_for_what_is_read_in_the_background() -> None:
    """What would come back at once and take the room again."""
    bench = Bench()
    for name in "abcd":
        bench.submit(name, 10, max_tokens=20, tenant="many")
    bench.step()
    bench.submit("reading", 500, tenant="other", is_background=True)
    steps = bench.finish()
    assert bench.scheduler.num_preemptions == 0
    assert [name for name, _, _ in steps[-1]] == ["reading"]
