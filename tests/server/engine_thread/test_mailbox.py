"""What is taken from a mailbox is what was put in, choice by choice, however the two take turns."""

import asyncio
from collections import defaultdict

from fakes_engine import logprob_of, usage_of
from hypothesis import given
from hypothesis import strategies as st

from model.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from model.errors import GenerationFailed
from server.engine_thread.mailbox import HIGH_WATER_TOKENS, LOW_WATER_TOKENS, Mailbox

REQUEST = GenerationRequest("a", (1, 2, 3), SamplingParams(max_tokens=16))
USAGE = usage_of(REQUEST, 1)


def event(choice: int, token_id: int, finish: bool = False, last: bool = False) -> TokenEvent:
    return TokenEvent(
        "a",
        f"{token_id} ",
        (token_id,),
        FinishReason.STOP if finish else None,
        USAGE if last else None,
        choice=choice,
        logprobs=(logprob_of(token_id, 1),),
        prompt_logprobs=(None, logprob_of(2, 0)) if token_id == choice == 0 else None,
    )


async def exchange(lengths: list[int], turns: list[int]) -> None:
    """Each turn puts the next event of a choice, or takes (where it names none that goes on)."""
    mailbox = Mailbox(asyncio.get_running_loop(), len(lengths), lambda: None)
    sent, taken = [0] * len(lengths), defaultdict[int, list[TokenEvent]](list)

    async def take() -> TokenEvent:
        got = await mailbox.take()
        taken[got.choice].append(got)
        return got

    def put(choice: int) -> None:
        finish = sent[choice] + 1 == lengths[choice]
        last = finish and sum(sent) + 1 == sum(lengths)
        mailbox.put(event(choice, sent[choice], finish, last))
        sent[choice] += 1

    for turn in turns:
        if turn < len(lengths) and sent[turn] < lengths[turn]:
            put(turn)
        elif mailbox.num_unread and sum(sent) < sum(lengths):
            await take()
    for choice, length in enumerate(lengths):
        while sent[choice] < length:
            put(choice)
    while (await take()).usage is None:
        pass
    assert mailbox.num_unread == 0
    for choice, length in enumerate(lengths):
        events = taken[choice]
        assert "".join(each.text for each in events) == "".join(f"{number} " for number in range(length))
        assert [token_id for each in events for token_id in each.token_ids] == list(range(length))
        assert [each.token_id for got in events for each in got.logprobs] == list(range(length))
        assert [each.finish_reason for each in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason is FinishReason.STOP
    told = [each for events in taken.values() for each in events if each.prompt_logprobs is not None]
    assert [(each.choice, each.token_ids[0]) for each in told] == [(0, 0)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.lists(st.integers(0, 4), max_size=40))
def test_nothing_is_lost_mixed_or_turned_round(lengths: list[int], turns: list[int]) -> None:
    asyncio.run(exchange(lengths, turns))


async def test_it_is_full_at_the_mark_and_has_room_below_the_lower_one() -> None:
    rooms = 0

    def room() -> None:
        nonlocal rooms
        rooms += 1

    mailbox = Mailbox(asyncio.get_running_loop(), 2, room)
    for number in range(2 * HIGH_WATER_TOKENS - 1):
        mailbox.put(event(number % 2, number))
        assert not mailbox.is_full
    mailbox.put(event(1, 1))
    assert mailbox.is_full and mailbox.num_unread == 2 * HIGH_WATER_TOKENS
    await mailbox.take()  # the half of it, which is above the lower mark
    assert mailbox.is_full and rooms == 0 and mailbox.num_unread > 2 * LOW_WATER_TOKENS
    await mailbox.take()
    assert not mailbox.is_full and rooms == 1


async def test_an_end_never_fills_it() -> None:
    mailbox = Mailbox(asyncio.get_running_loop(), 1, lambda: None)
    for number in range(HIGH_WATER_TOKENS - 1):
        mailbox.put(event(0, number))
    mailbox.put(event(0, 0, finish=True, last=True))
    assert not mailbox.is_full


async def test_what_came_before_a_failure_is_read_before_it() -> None:
    mailbox = Mailbox(asyncio.get_running_loop(), 2, lambda: None)
    failure = GenerationFailed(MemoryError())
    mailbox.put(event(0, 1))
    mailbox.put(event(1, 2))
    mailbox.put(TokenEvent("a", "", finish_reason=FinishReason.ERROR, usage=USAGE, error=failure))
    got = [await mailbox.take() for _ in range(3)]
    assert [each.text for each in got] == ["1 ", "2 ", ""] and got[-1].error is failure
