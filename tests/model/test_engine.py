import logging
from dataclasses import replace

import pytest
import torch
from fakes_engine import write_tokenizer
from fakes_runner import (
    FULL,
    MAX_CONTEXT,
    SAVED_BYTES,
    WINDOW,
    Clock,
    ScriptedRunner,
    build,
    finish,
    ids_of,
    request,
    text_of,
)
from torch import Tensor

from model.engine.engine import Engine
from model.engine.request import FinishReason, RequestUsage
from model.engine.step import StepPlan
from model.engine.token_trie import TokenTrie
from model.errors import (
    DeadlineExceeded,
    EngineDraining,
    GenerationFailed,
    InvalidRequest,
    NeverFits,
    PromptTooLong,
    QueueFull,
)
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> TokenTrie:
    return TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)


@pytest.fixture
def runner(tokenizer: Tokenizer) -> ScriptedRunner:
    return ScriptedRunner(tokenizer)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(runner: ScriptedRunner, tokenizer: Tokenizer, vocabulary: TokenTrie, clock: Clock) -> Engine:
    return build(runner, runner.capacity(SAVED_BYTES), tokenizer, vocabulary, clock=clock)


def test_text_streams_to_the_end_of_text(engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("thirty days, größer 👩").ids
    runner.scripts["a"] = [*ids, 2]
    engine.submit(request())
    events = finish(engine)
    assert text_of(events) == "thirty days, größer 👩"
    assert ids_of(events, "a") == [*ids, 2]
    assert [event.finish_reason for event in events] == [None] * len(ids) + [FinishReason.STOP]
    assert "" in [event.text for event in events[:-2]], "half a character must wait"


def test_max_tokens_ends_with_length_and_drops_half_a_character(
    engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("a 👩").ids
    runner.scripts["a"] = list(ids)
    engine.submit(request(max_tokens=len(ids) - 1))
    events = finish(engine)
    assert text_of(events) == "a "
    assert events[-1].finish_reason is FinishReason.LENGTH
    assert events[-1].usage is not None and events[-1].usage.num_completion_tokens == len(ids) - 1


def test_the_bill_tells_what_a_step_took_beside_the_pools(engine: Engine, runner: ScriptedRunner) -> None:
    runner.scripts["a"] = [9] * 50
    engine.submit(request())
    engine.step()
    assert engine.stats().pool_bytes.get("workspace", 0) == 0
    runner.workspace_bytes = 4096
    engine.step()
    assert engine.stats().pool_bytes["workspace"] == 4096
    # Between two steps somebody has to say so.
    runner.workspace_bytes = 8192
    assert engine.stats().pool_bytes["workspace"] == 4096
    engine.refresh()
    assert engine.stats().pool_bytes["workspace"] == 8192


def test_a_stop_string_across_tokens_is_never_shown(
    engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer
) -> None:
    runner.scripts["a"] = list(tokenizer.encode("clause 12.3 names 45 days").ids)
    engine.submit(request(stop=("names 46", "3 names 4")))
    events = finish(engine)
    assert text_of(events) == "clause 12."
    assert events[-1].finish_reason is FinishReason.STOP
    runner.scripts["b"] = [*tokenizer.encode("clause 12.3 nam").ids, 2]
    engine.submit(request("b", stop=("names",)))
    assert text_of(finish(engine), "b") == "clause 12.3 nam"
    ids = tokenizer.encode("clause 12.3 nam").ids
    runner.scripts["c"] = [*ids, 9]
    engine.submit(request("c", stop=("names",), max_tokens=len(ids)))
    assert text_of(finish(engine), "c") == "clause 12.3 nam"


def test_verbatim_masks_what_the_model_wants(engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer) -> None:
    wanted = tokenizer.encode("the rent").ids
    runner.scripts["a"] = [*wanted, *tokenizer.encode("zebra").ids, 2]
    evidence = ("Flat 7B: the rental", "and the rent is due.")
    engine.submit(request(evidence=evidence))
    events = finish(engine)
    final = events[-1]
    (span,) = final.spans
    quote = evidence[span.evidence_index][span.start : span.end]
    assert text_of(events) == quote
    assert quote.startswith("the rent") and final.finish_reason is FinishReason.STOP
    assert all(event.spans == () for event in events[:-1])


def test_a_verbatim_answer_that_is_cut_ends_with_a_whole_word(
    engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer
) -> None:
    evidence = ("pay invoice A-1234.5/x at once",)
    runner.scripts["a"] = runner.scripts["b"] = list(tokenizer.encode("invoice A-1234.5/x").ids)
    engine.submit(request("a", evidence=evidence, max_tokens=len(tokenizer.encode("invoice A-12").ids)))
    runner.scripts["b"] = list(tokenizer.encode("A-1234.5/x").ids)
    engine.submit(request("b", evidence=evidence, max_tokens=2))
    events = finish(engine)
    assert (text_of(events, "a"), text_of(events, "b")) == ("invoice", "A-1234.5/x")
    reasons = {event.request_id: event.finish_reason for event in events if event.finish_reason}
    assert reasons == {"a": FinishReason.LENGTH, "b": FinishReason.LENGTH}


def test_evidence_without_a_word_gives_an_empty_answer(engine: Engine, runner: ScriptedRunner) -> None:
    runner.scripts["a"] = [9, 9]
    engine.submit(request(evidence=("...",)))
    events = finish(engine)
    assert (text_of(events), events[-1].spans, events[-1].finish_reason) == ("", (), FinishReason.STOP)


def test_usage_is_the_bill(engine: Engine, runner: ScriptedRunner, clock: Clock) -> None:
    runner.scripts["a"] = [9, 9, 2]
    engine.submit(request(prompt=[9] * 100))
    clock.now += 1.0
    engine.step()
    clock.now += 0.5
    (first,) = engine.step()
    clock.now += 0.125
    (second,) = engine.step()
    assert (first.gap_seconds, second.gap_seconds) == (None, 0.125)
    clock.now += 0.125
    usage = finish(engine)[-1].usage
    assert usage == RequestUsage(
        num_prompt_tokens=100,
        num_cached_tokens=0,
        num_completion_tokens=3,
        policy=FULL,
        dtype="float32",
        kv_bytes=100,
        ssm_state_bytes=20,
        conv_state_bytes=3,
        state_capacity_bits=8 * 123,
        queue_seconds=1.0,
        ttft_seconds=1.5,
        total_seconds=1.75,
    )
    stats = engine.stats()
    assert dict(stats.tokens_by_kind) == {"prompt": 100, "cached": 0, "completion": 3}
    assert (stats.num_finished, stats.num_aborted, stats.num_failed) == (1, 0, 0)
    assert stats.last_step is not None and stats.last_step.phase == "decode"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [5, -1]}, "prompt"),
        ({"prompt": [5, 100_000]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"logit_bias": ((100_000, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((5, 101.0),)}, "logit_bias"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"num_choices": 0}, "n"),
        ({"max_seconds": 0.0}, "max_seconds"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ("a", "")}, "stop"),
        ({"stop": ("a",), "evidence": ("a",)}, "stop"),
        ({"evidence": ("a", "\ud800")}, "evidence[1]"),
        ({"max_spans": 0}, "max_spans"),
    ],
)
def test_what_cannot_work_is_refused_by_name(engine: Engine, changes: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        engine.submit(request(**changes))  # type: ignore[arg-type]
    assert refused.value.param == param
    assert not engine.has_work()


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(engine: Engine) -> None:
    engine.submit(request("fits", [9] * (MAX_CONTEXT - 50)))
    with pytest.raises(PromptTooLong) as refused:
        engine.submit(request("long", [9] * (MAX_CONTEXT - 49)))
    assert (refused.value.num_prompt_tokens, refused.value.max_tokens) == (MAX_CONTEXT - 49, 50)
    assert refused.value.max_context_tokens == MAX_CONTEXT


def test_what_the_blocks_cannot_hold_is_refused(
    runner: ScriptedRunner, tokenizer: Tokenizer, vocabulary: TokenTrie
) -> None:
    small = build(runner, replace(runner.capacity(SAVED_BYTES), num_blocks=5), tokenizer, vocabulary)
    small.submit(request("fits", [9] * (5 * BLOCK_TOKENS - 50)))
    with pytest.raises(PromptTooLong) as refused:
        small.submit(request("long", [9] * (5 * BLOCK_TOKENS - 49)))
    assert refused.value.max_context_tokens == 5 * BLOCK_TOKENS
    small.submit(request("window", [9] * 600, policy=WINDOW))
    wide = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=256)
    with pytest.raises(InvalidRequest, match="at most 192 tokens together") as named:
        small.submit(request("wide", [9] * 600, policy=wide))
    assert named.value.param == "policy.window"


def test_the_same_id_twice_a_full_line_and_draining_are_refused(
    runner: ScriptedRunner, tokenizer: Tokenizer, vocabulary: TokenTrie
) -> None:
    one = replace(runner.capacity(SAVED_BYTES), num_slots=1)
    engine = build(runner, one, tokenizer, vocabulary, max_waiting=1)
    engine.submit(request("a"))
    with pytest.raises(InvalidRequest, match="not in use"):
        engine.submit(request("a"))
    engine.submit(request("b"))
    with pytest.raises(QueueFull):
        engine.submit(request("c"))
    assert engine.stats().num_waiting == 2
    engine.drain()
    assert engine.stats().draining
    with pytest.raises(EngineDraining):
        engine.submit(request("d"))
    runner.scripts.update(a=[9, 2], b=[9, 2])
    assert {event.request_id for event in finish(engine)} == {"a", "b"}


def test_abort_gives_everything_back_at_any_time(engine: Engine, runner: ScriptedRunner) -> None:
    runner.scripts["a"] = [9] * 50
    engine.submit(request())
    assert engine.abort("a")
    assert not engine.abort("a")
    engine.submit(request())
    engine.step()
    engine.step()
    assert engine.stats().slots.used == 1
    assert engine.abort("a")
    assert (engine.stats().slots.used, engine.stats().num_aborted, engine.has_work()) == (0, 2, False)
    assert engine.step() == []


def test_a_failed_step_ends_its_requests_and_no_others(
    runner: ScriptedRunner, tokenizer: Tokenizer, vocabulary: TokenTrie, caplog: pytest.LogCaptureFixture
) -> None:
    two = replace(runner.capacity(SAVED_BYTES), num_slots=2)
    engine = build(runner, two, tokenizer, vocabulary)
    runner.scripts.update(a=[9, 9, 2], b=[9], c=[*tokenizer.encode("goes on").ids, 2])
    runner.failures["a"] = RuntimeError("secret words of a user")
    for name in "abc":
        engine.submit(request(name))
    with caplog.at_level(logging.DEBUG):
        events = finish(engine)
    failed = [event for event in events if event.finish_reason is FinishReason.ERROR]
    assert [event.request_id for event in failed] == ["a", "b"], "a step's memory is undefined once it has failed"
    for event in failed:
        assert isinstance(event.error, GenerationFailed) and isinstance(event.error.cause, RuntimeError)
        assert event.usage is not None
    assert text_of(events, "c") == "goes on"
    assert (engine.stats().num_failed, engine.stats().num_finished, engine.stats().slots.used) == (2, 1, 0)
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_logits_that_are_no_numbers_fail_that_request_alone(
    engine: Engine, runner: ScriptedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner.run

    def poisoned(plan: StepPlan) -> Tensor:
        rows = run(plan)
        for row, chunk in enumerate(plan.chunks):
            if chunk.sequence.group.request_id == "a" and chunk.sequence.choice == 0:
                rows[row] = torch.nan
        return rows

    monkeypatch.setattr(runner, "run", poisoned)
    runner.scripts.update(a=[9], b=[9, 2])
    engine.submit(request("a", num_choices=2))
    engine.submit(request("b"))
    ends = [(event.request_id, event.finish_reason) for event in finish(engine) if event.finish_reason]
    assert ends == [("a", FinishReason.ERROR), ("b", FinishReason.STOP)], "one end each, however many choices"


def test_a_broken_law_ends_the_engine(engine: Engine, runner: ScriptedRunner) -> None:
    runner.failures["a"] = AssertionError("free + used != total")  # type: ignore[assignment]
    engine.submit(request())
    with pytest.raises(AssertionError, match="total"):
        engine.step()


def test_nothing_a_user_wrote_is_logged(
    engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        runner.scripts["a"] = [*tokenizer.encode("secret").ids, 2]
        engine.submit(request(prompt=tokenizer.encode("secret question").ids, stop=("secret!",)))
        finish(engine)
    assert caplog.text == ""


def test_choices_end_one_by_one_and_the_last_brings_the_bill(
    engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer
) -> None:
    runner.scripts["a"] = [*tokenizer.encode("the same words").ids, 2]
    engine.submit(request(num_choices=3, prompt=[9] * 200))
    events = finish(engine)
    assert {text_of(events, choice=choice) for choice in range(3)} == {"the same words"}
    ends = [event for event in events if event.finish_reason is not None]
    assert sorted(event.choice for event in ends) == [0, 1, 2]
    assert [event.usage is not None for event in ends] == [False, False, True] and ends[-1] is events[-1]
    usage = ends[-1].usage
    assert usage is not None
    assert (usage.num_prompt_tokens, usage.num_completion_tokens) == (200, 3 * len(runner.scripts["a"]))
    assert usage.kv_bytes == 300, "the most that was held, by all choices"
    assert engine.stats().num_prompt_tokens == 200, "the prompt is read once"


def test_what_can_never_fit_is_refused_with_pool_need_and_capacity(engine: Engine) -> None:
    with pytest.raises(NeverFits, match=r"9 units of pool 'state', which has 8") as slots:
        engine.submit(request(num_choices=9))
    assert (slots.value.param, slots.value.pool, slots.value.needed, slots.value.capacity) == ("n", "state", 9, 8)
    with pytest.raises(NeverFits, match="pool 'kv', which has 60") as blocks:
        engine.submit(request(prompt=[9] * 800, num_choices=8))
    assert (blocks.value.pool, blocks.value.needed) == ("kv", 8 * 14)


def test_a_request_ends_at_its_deadline_wherever_it_stands(
    runner: ScriptedRunner, tokenizer: Tokenizer, vocabulary: TokenTrie, clock: Clock
) -> None:
    engine = build(runner, replace(runner.capacity(SAVED_BYTES), num_slots=2), tokenizer, vocabulary, clock=clock)
    runner.scripts.update({name: [9] * 50 for name in "abcd"})
    assert engine.next_deadline() is None
    engine.submit(request("a", max_seconds=5.0))
    engine.submit(request("b"))
    engine.submit(request("c", max_seconds=3.0))
    engine.step()
    assert engine.next_deadline() == 3.0
    clock.now += 4.0
    assert engine.next_deadline() == 0.0
    waiting, *_ = engine.step()
    assert (waiting.request_id, waiting.finish_reason) == ("c", FinishReason.ERROR)
    assert isinstance(waiting.error, DeadlineExceeded) and "3 seconds" in str(waiting.error)
    engine.pause("a")
    clock.now += 4.0
    paused, *_ = engine.step()
    assert paused.request_id == "a" and isinstance(paused.error, DeadlineExceeded)
    assert paused.usage is not None and paused.usage.num_completion_tokens > 0
    assert {event.request_id for event in finish(engine)} == {"b"}


def test_a_paused_request_rests_and_goes_on(engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer) -> None:
    runner.scripts["a"] = [*tokenizer.encode("goes on").ids, 2]
    runner.scripts["b"] = [9, 9, 2]
    engine.submit(request("a"))
    engine.submit(request("b"))
    events = engine.step()
    engine.pause("a")
    engine.pause("nobody")
    events += finish(engine)
    assert len(ids_of(events, "b")) == 3 and len(ids_of(events, "a")) == 1
    assert not engine.has_work() and engine.step() == []
    engine.resume("a")
    events += finish(engine)
    assert text_of(events) == "goes on"


def test_a_preempted_request_goes_on_where_it_was(engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer) -> None:
    runner.scripts["a"] = [*tokenizer.encode("goes on").ids, 2]
    assert not engine.preempt("a")
    engine.submit(request("a"))
    assert not engine.preempt("a"), "it waits"
    events = engine.step()
    assert engine.preempt("a") and not engine.preempt("a")
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_saved, stats.num_preemptions) == (0, 1, 1, 1)
    assert stats.slots.used == 0
    events += finish(engine)
    assert text_of(events) == "goes on"
    usage = events[-1].usage
    assert usage is not None and usage.num_preemptions == 1


def test_log_probabilities_of_prompt_and_answer(engine: Engine, runner: ScriptedRunner) -> None:
    runner.scripts["a"] = [9, 7, 2]
    prompt = [9, 5, *[9] * 98]
    engine.submit(request(prompt=prompt, logprobs=2, prompt_logprobs=1, num_choices=2))
    events = finish(engine)
    first = [event for event in events if event.choice == 0]
    told = first[0].prompt_logprobs
    assert told is not None and len(told) == 100 and told[0] is None
    assert [each.token_id for each in told[1:] if each] == prompt[1:]
    assert all(event.prompt_logprobs is None for event in events if event is not first[0])
    for event in events:
        assert [each.token_id for each in event.logprobs] == list(event.token_ids)
        assert all(len(each.top) == 2 and each.top[0][0] == each.token_id for each in event.logprobs)
    assert max(chunk.num_logits for plan in runner.plans for chunk in plan.chunks) <= BLOCK_TOKENS
