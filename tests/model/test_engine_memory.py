import random

import pytest
import torch
from fakes_engine import write_tokenizer
from fakes_model import TINY_CONFIG
from fakes_runner import FULL, NUM_BLOCKS, NUM_SLOTS, SAVED_BYTES, WINDOW, build, finish, ids_of, request, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.engine.engine import Engine
from model.engine.request import FinishReason, TokenEvent
from model.engine.runner import ModelRunner
from model.engine.token_trie import TokenTrie
from model.hybrid import HybridLM
from model.kernels import Kernels
from model.policy import BLOCK_TOKENS, AttentionPolicy
from model.tokenizer import Tokenizer


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


def real_engine(
    model: HybridLM,
    tokenizer: Tokenizer,
    vocabulary: TokenTrie,
    policy: AttentionPolicy = FULL,
    num_slots: int = NUM_SLOTS,
    num_blocks: int = NUM_BLOCKS,
    saved_bytes: int = SAVED_BYTES,
) -> tuple[Engine, ModelRunner]:
    states = StatePool(model.config, num_slots)
    runner = ModelRunner(model, states, BlockPool(model.config, num_blocks, Dtype.FLOAT32))
    return build(runner, runner.capacity(saved_bytes), tokenizer, vocabulary, policy, max_waiting=50), runner


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
    assert (runner.slots.used, runner.blocks.used) == (0, 0)


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
    assert (runner.slots.used, runner.blocks.used) == (0, 0)
    stats = engine.stats()
    assert (stats.num_finished, stats.num_aborted, stats.num_running, stats.num_waiting) == (
        len(ended),
        len(aborted),
        0,
        0,
    )
