import logging
import random
import time
from collections.abc import Callable, Iterable

import pytest
import torch
from fakes_engine import write_tokenizer
from fakes_model import TINY_CONFIG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.engine.admission import Admission
from model.engine.engine import Engine
from model.engine.request import FinishReason, GenerationRequest, RequestUsage, SamplingParams, TokenEvent
from model.engine.runner import HeldBytes, ModelRunner
from model.engine.scheduler import Scheduler, StepPlan
from model.engine.sequence import Sequence
from model.engine.stats import BuildInfo, EngineStats, PoolCounts
from model.engine.token_trie import TokenTrie
from model.errors import EngineDraining, GenerationFailed, InvalidRequest, PromptTooLong, QueueFull
from model.hybrid import HybridLM
from model.kernels import Kernels
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

FULL = AttentionPolicy()
WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64)
NUM_SLOTS, NUM_BLOCKS, CHUNK, MAX_CONTEXT = 8, 60, 64, 900


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> TokenTrie:
    return TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, kernels: Kernels) -> HybridLM:
    """Random weights; the time step's bias is low, so that the state remembers."""
    config = ModelConfig.from_dict(
        TINY_CONFIG | {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 48}
    )
    model = HybridLM(config, kernels)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".d"):
                weight.fill_(1.0)
            elif name.endswith(".a"):
                weight.copy_(-torch.rand(weight.shape, generator=generator) - 0.1)
            elif name.endswith("dt_bias"):
                weight.fill_(-4.0)
            else:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


class ScriptedRunner:
    """Answers each request with its next scripted id, by logits; counts slots as the real one does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.scripts: dict[str, list[int]] = {}
        self.failures: dict[str, Exception] = {}
        self.held: set[str] = set()

    @property
    def slots(self) -> PoolCounts:
        return PoolCounts(free=NUM_SLOTS - len(self.held), used=len(self.held))

    @property
    def blocks(self) -> PoolCounts:
        return PoolCounts(free=NUM_BLOCKS, used=0)

    def run(self, plan: StepPlan) -> list[Tensor | None]:
        rows: list[Tensor | None] = []
        for chunk in plan.chunks:
            name = chunk.sequence.request_id
            self.held.add(name)
            if name in self.failures:
                raise self.failures[name]
            if not chunk.draws_token:
                rows.append(None)
                continue
            place = chunk.sequence.num_completion_tokens
            script = self.scripts[name]
            row = torch.zeros(self.vocab_size)
            row[script[place] if place < len(script) else 2] = 50.0
            rows.append(row)
        return rows

    def held_bytes(self, sequence: Sequence) -> HeldBytes:
        return HeldBytes(kv=100, ssm_state=20, conv_state=3)

    def close(self, sequence: Sequence) -> None:
        self.held.discard(sequence.request_id)

    def check(self) -> None:
        assert not self.held


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def build(
    runner: ScriptedRunner | ModelRunner,
    tokenizer: Tokenizer,
    vocabulary: TokenTrie,
    policy: AttentionPolicy = FULL,
    clock: Callable[[], float] = time.monotonic,
    max_waiting: int = 20,
    num_slots: int = NUM_SLOTS,
    num_blocks: int = NUM_BLOCKS,
) -> Engine:
    stats = EngineStats(
        build=BuildInfo("tiny", "cpu", "reference", "float32", "full"),
        slots=runner.slots,
        blocks=runner.blocks,
        pool_bytes={},
        plan_bytes={},
        max_context_tokens=MAX_CONTEXT,
    )
    scheduler = Scheduler(num_slots, num_blocks, CHUNK, max_waiting)
    admission = Admission(runner.vocab_size, MAX_CONTEXT, num_blocks, CHUNK)
    return Engine(runner, scheduler, tokenizer, vocabulary, admission, policy, stats, clock)


@pytest.fixture
def runner(tokenizer: Tokenizer) -> ScriptedRunner:
    return ScriptedRunner(tokenizer)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(runner: ScriptedRunner, tokenizer: Tokenizer, vocabulary: TokenTrie, clock: Clock) -> Engine:
    return build(runner, tokenizer, vocabulary, clock=clock)


def request(name: str = "a", prompt: Iterable[int] = (1, 9, 9), **changes: object) -> GenerationRequest:
    evidence = changes.pop("evidence", None)
    policy = changes.pop("policy", None)
    max_spans = changes.pop("max_spans", 1)
    values: dict[str, object] = {"max_tokens": 50, "temperature": 0.0, **changes}
    sampling = SamplingParams(**values)  # type: ignore[arg-type]
    return GenerationRequest(name, tuple(prompt), sampling, evidence, policy, max_spans)  # type: ignore[arg-type]


def finish(engine: Engine, limit: int = 20_000) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    for _ in range(limit):
        if not engine.has_work():
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def text_of(events: list[TokenEvent], name: str = "a") -> str:
    return "".join(event.text for event in events if event.request_id == name)


def ids_of(events: list[TokenEvent], name: str) -> list[int]:
    return [token_id for event in events if event.request_id == name for token_id in event.token_ids]


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
    engine.step()
    clock.now += 0.25
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
    small = build(runner, tokenizer, vocabulary, num_blocks=5)
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
    engine = build(runner, tokenizer, vocabulary, max_waiting=1, num_slots=1)
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


def test_a_failure_of_one_request_leaves_the_others(
    engine: Engine, runner: ScriptedRunner, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    runner.scripts.update(a=[9, 9, 2], b=[*tokenizer.encode("goes on").ids, 2], c=[9])
    runner.failures["a"] = RuntimeError("secret words of a user")
    for name in "abc":
        engine.submit(request(name))
    with caplog.at_level(logging.DEBUG):
        events = finish(engine)
    (failed,) = [event for event in events if event.request_id == "a"]
    assert failed.finish_reason is FinishReason.ERROR
    assert isinstance(failed.error, GenerationFailed) and isinstance(failed.error.cause, RuntimeError)
    assert text_of(events, "b") == "goes on"
    assert (engine.stats().num_failed, engine.stats().num_finished, engine.stats().slots.used) == (1, 2, 0)
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_logits_that_are_no_numbers_fail_that_request_alone(
    engine: Engine, runner: ScriptedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner.run

    def poisoned(plan: StepPlan) -> list[Tensor | None]:
        rows = run(plan)
        return [torch.full((runner.vocab_size,), float("nan"))] if plan.chunks[0].sequence.request_id == "a" else rows

    monkeypatch.setattr(runner, "run", poisoned)
    runner.scripts.update(a=[9], b=[9, 2])
    engine.submit(request("a"))
    engine.submit(request("b"))
    ends = {event.request_id: event.finish_reason for event in finish(engine) if event.finish_reason}
    assert ends == {"a": FinishReason.ERROR, "b": FinishReason.STOP}


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


def real_engine(
    model: HybridLM,
    tokenizer: Tokenizer,
    vocabulary: TokenTrie,
    policy: AttentionPolicy = FULL,
    num_slots: int = NUM_SLOTS,
    num_blocks: int = NUM_BLOCKS,
) -> tuple[Engine, ModelRunner]:
    states = StatePool(model.config, num_slots)
    runner = ModelRunner(model, states, BlockPool(model.config, num_blocks, Dtype.FLOAT32))
    return build(
        runner, tokenizer, vocabulary, policy, num_slots=num_slots, num_blocks=num_blocks, max_waiting=50
    ), runner


def prompts(model: HybridLM) -> list[tuple[int, ...]]:
    dice = random.Random(5)
    lengths = [1, 3, 63, 64, 65, 150, 200, 320]
    return [tuple(dice.randrange(model.config.vocab_size) for _ in range(length)) for length in lengths]


@pytest.mark.parametrize("policy", [FULL, WINDOW], ids=["full", "window"])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 11}], ids=["greedy", "seeded"])
def test_eight_at_once_get_what_they_get_alone(
    model: HybridLM, tokenizer: Tokenizer, vocabulary: TokenTrie, policy: AttentionPolicy, sampling: dict[str, object]
) -> None:
    requests = [request(str(number), prompt, max_tokens=24, **sampling) for number, prompt in enumerate(prompts(model))]
    alone: dict[str, tuple[list[int], str]] = {}
    for each in requests:
        engine, _ = real_engine(model, tokenizer, vocabulary, policy)
        engine.submit(each)
        events = finish(engine)
        alone[each.request_id] = ids_of(events, each.request_id), text_of(events, each.request_id)
    engine, runner = real_engine(model, tokenizer, vocabulary, policy)
    events = []
    for each in requests:
        engine.submit(each)
        events += engine.step()
    events += finish(engine)
    together = {
        each.request_id: (ids_of(events, each.request_id), text_of(events, each.request_id)) for each in requests
    }
    assert together == alone
    assert len({tuple(ids) for ids, _ in alone.values()}) == 8, "the model must tell the prompts apart"
    assert (runner.slots, runner.blocks) == (PoolCounts(NUM_SLOTS, 0), PoolCounts(NUM_BLOCKS, 0))


def test_window_blocks_are_given_back_while_reading(
    model: HybridLM, tokenizer: Tokenizer, vocabulary: TokenTrie
) -> None:
    engine, runner = real_engine(model, tokenizer, vocabulary, WINDOW)
    engine.submit(request("a", [7] * 640, max_tokens=130, temperature=1.0, seed=1))
    most, events = 0, []
    while engine.has_work():
        events += engine.step()
        most = max(most, runner.blocks.used)
    # Sinks 1 block, window 1, the chunk being read or the block being filled 1, one for the border at most.
    assert most <= 4
    usage = events[-1].usage
    assert usage is not None
    per_block = 2 * 2 * BLOCK_TOKENS * model.config.kv_size * 4
    assert 2 * per_block <= usage.kv_bytes <= 3 * per_block
    assert usage.ssm_state_bytes == model.config.ssm_state_bytes
    assert usage.conv_state_bytes == model.config.conv_state_bytes


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_any_schedule_leaves_nothing_behind(
    model: HybridLM, tokenizer: Tokenizer, vocabulary: TokenTrie, seed: int
) -> None:
    dice = random.Random(seed)
    num_slots, num_blocks = dice.randint(1, 4), dice.randint(8, 20)
    engine, runner = real_engine(model, tokenizer, vocabulary, WINDOW, num_slots, num_blocks)
    accepted: list[str] = []
    events: list[TokenEvent] = []
    aborted: set[str] = set()
    for number in range(25):
        if dice.random() < 0.4:
            each = request(
                str(number),
                [dice.randrange(model.config.vocab_size) for _ in range(dice.choice([1, 5, 64, 100, 200]))],
                max_tokens=dice.randint(1, 12),
                temperature=dice.choice([0.0, 1.0]),
                policy=dice.choice([FULL, WINDOW, None]),
                evidence=dice.choice([None, None, ("the rent of flat 7B is due.",)]),
            )
            engine.submit(each)
            accepted.append(each.request_id)
        if accepted and dice.random() < 0.15:
            name = dice.choice(accepted)
            if engine.abort(name):
                aborted.add(name)
        events += engine.step()
        stats = engine.stats()
        assert (stats.slots.total, stats.blocks.total) == (num_slots, num_blocks)
        runner.check()
    events += finish(engine)
    ended = [event.request_id for event in events if event.finish_reason is not None]
    assert sorted([*ended, *aborted], key=int) == accepted
    assert not {event.finish_reason for event in events} & {FinishReason.ERROR, FinishReason.ABORT}
    assert (runner.slots, runner.blocks) == (PoolCounts(num_slots, 0), PoolCounts(num_blocks, 0))
    stats = engine.stats()
    assert (stats.num_finished, stats.num_aborted, stats.num_running, stats.num_waiting) == (
        len(ended),
        len(aborted),
        0,
        0,
    )
