import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.request import GenerationRequest, SamplingParams
from model.engine.scheduler import Scheduler, StepPlan
from model.engine.sequence import Sequence, Status
from model.errors import QueueFull
from model.policy import AttentionPolicy, PolicyName

FULL = AttentionPolicy()
WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=128)


def sequence(name: str, num_prompt_tokens: int = 1, max_tokens: int = 1, policy: AttentionPolicy = FULL) -> Sequence:
    request = GenerationRequest(name, (1,) * num_prompt_tokens, SamplingParams(max_tokens=max_tokens))
    return Sequence(request, policy, submitted_at=0.0)


def scheduler(num_slots: int = 4, num_blocks: int = 100, max_waiting: int = 50) -> Scheduler:
    return Scheduler(num_slots, num_blocks, prefill_chunk_tokens=128, max_waiting=max_waiting)


def run(plan: StepPlan, books: Scheduler) -> tuple[str, int, int]:
    """What the engine does with a plan: read, draw a token where one is due, end at the limit."""
    (chunk,) = plan.chunks
    books.commit(plan)
    drawn = chunk.sequence
    if chunk.end == len(drawn.token_ids):
        drawn.token_ids.append(0)
        if drawn.num_completion_tokens == drawn.request.sampling.max_tokens:
            books.finish(drawn.request_id)
    return drawn.request_id, chunk.start, chunk.num_tokens


def steps(books: Scheduler, limit: int = 10_000) -> list[tuple[str, int, int]]:
    done = []
    while (plan := books.next_step()) is not None:
        done.append(run(plan, books))
        books.check()
        assert len(done) < limit
    return done


def test_a_prompt_is_read_at_absolute_borders_then_token_by_token() -> None:
    books = scheduler()
    books.submit(sequence("a", 300, max_tokens=3))
    assert steps(books) == [("a", 0, 128), ("a", 128, 128), ("a", 256, 44), ("a", 300, 1), ("a", 301, 1)]


def test_a_prefix_that_was_read_already_leads_to_the_same_borders() -> None:
    books = scheduler()
    forked = sequence("a", 300)
    forked.num_read = 100
    books.submit(forked)
    assert steps(books) == [("a", 100, 28), ("a", 128, 128), ("a", 256, 44)]


def test_decoding_goes_round_and_one_prompt_chunk_follows_each_round() -> None:
    books = scheduler()
    for name in "ab":
        books.submit(sequence(name, 1, max_tokens=4))
    assert [run(books.next_step(), books)[0] for _ in range(2)] == ["a", "b"]  # type: ignore[arg-type]
    books.submit(sequence("long", 300, max_tokens=2))
    # b had just become a decoder when long came, so a was alone in the round under way.
    assert steps(books) == [
        ("a", 1, 1),
        ("long", 0, 128),
        ("b", 1, 1),
        ("a", 2, 1),
        ("long", 128, 128),
        ("b", 2, 1),
        ("a", 3, 1),
        ("long", 256, 44),
        ("b", 3, 1),
        ("long", 300, 1),
    ]


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one() -> None:
    books = scheduler(num_blocks=110)
    books.submit(sequence("long", 128 * 50))
    run(books.next_step(), books)  # type: ignore[arg-type]
    books.submit(sequence("short", 10))
    order = [name for name, _, _ in steps(books)]
    assert order.index("short") == 1


def test_nobody_overtakes_and_blocks_are_reserved_for_the_worst_case() -> None:
    books = scheduler(num_slots=3, num_blocks=10)
    first, big, small = sequence("first", 250, 6), sequence("big", 600, 40), sequence("small", 10)
    for each in (first, big, small):
        books.submit(each)
    books.next_step()
    # 256 tokens are 4 blocks; 640 tokens are 10 and do not fit beside them; small must not overtake.
    assert books.num_reserved_blocks == 4
    assert (first.status, big.status, small.status) == (Status.RUNNING, Status.WAITING, Status.WAITING)
    books.finish("first")
    books.next_step()
    assert (books.num_reserved_blocks, big.status, small.status) == (10, Status.RUNNING, Status.WAITING)
    books.finish("big")
    books.next_step()
    assert (books.num_reserved_blocks, small.status) == (1, Status.RUNNING)


def test_a_window_needs_the_same_blocks_at_any_length() -> None:
    books = scheduler()
    # Sinks 64, window 128, one block for its border, one chunk of 128: 384 tokens.
    assert [books.blocks_needed(tokens, WINDOW) for tokens in (10, 384, 10_000, 1_000_000)] == [1, 6, 6, 6]
    assert books.blocks_needed(10_000, FULL) == 157


def test_the_line_is_bounded_and_says_when_to_come_again() -> None:
    books = scheduler(num_slots=2, max_waiting=3)
    for number in range(5):
        books.submit(sequence(str(number)))
    with pytest.raises(QueueFull) as refused:
        books.submit(sequence("late"))
    assert refused.value.retry_after_seconds == 3  # (5 + 1) / 2 slots at the assumed second each
    assert "late" not in books
    books.next_step()
    assert (books.num_running, books.num_waiting) == (2, 3)
    with pytest.raises(QueueFull):
        books.submit(sequence("late"))
    books.finish("4")
    books.submit(sequence("late"))
    for _ in range(50):
        books.finish("0", seconds=1000.0)
    books.finish("1", seconds=1000.0)
    with pytest.raises(QueueFull) as refused:
        for number in range(10, 20):
            books.submit(sequence(str(number)))
    assert refused.value.retry_after_seconds == 120


def test_without_a_line_requests_run_while_slots_are_free() -> None:
    books = scheduler(num_slots=1, max_waiting=0)
    books.submit(sequence("a"))
    with pytest.raises(QueueFull):
        books.submit(sequence("b"))


def test_finish_works_at_any_point_and_twice() -> None:
    books = scheduler(num_slots=2)
    for name in "abc":
        books.submit(sequence(name, 200, 5))
    ended = []
    for name in ("c", "a", "b", "b", "never"):
        books.next_step()
        ended.append(books.finish(name) is not None)
        books.check()
    assert ended == [True, True, True, False, False]
    assert (books.num_running, books.num_waiting, books.num_reserved_blocks) == (0, 0, 0)
    assert books.next_step() is None


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_random_schedules_keep_the_books_and_end(seed: int) -> None:
    dice = random.Random(seed)
    books = scheduler(num_slots=dice.randint(1, 4), num_blocks=dice.randint(8, 30), max_waiting=dice.randint(0, 6))
    submitted: dict[str, Sequence] = {}
    aborted: set[str] = set()
    reads: dict[str, list[tuple[int, int]]] = {}
    for number in range(40):
        if dice.random() < 0.4:
            new = sequence(str(number), dice.randint(1, 400), dice.randint(1, 20), dice.choice([FULL, WINDOW]))
            try:
                books.submit(new)
                submitted[new.request_id] = new
            except QueueFull:
                pass
        if submitted and dice.random() < 0.1:
            name = dice.choice(list(submitted))
            if books.finish(name):
                aborted.add(name)
        plan = books.next_step()
        if plan is not None:
            name, start, length = run(plan, books)
            reads.setdefault(name, []).append((start, length))
        books.check()
    for name, start, length in steps(books):
        reads.setdefault(name, []).append((start, length))
    for name, each in submitted.items():
        assert each.status is Status.FINISHED
        place = 0
        for start, length in reads.get(name, []):
            assert start == place
            place += length
            assert place % 128 == 0 or place >= each.num_prompt_tokens
        if name not in aborted:
            assert place == each.num_prompt_tokens + each.request.sampling.max_tokens - 1
    assert (books.num_running, books.num_waiting, books.num_reserved_blocks) == (0, 0, 0)
