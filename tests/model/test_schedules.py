"""Laws 2 to 4 over whole schedules: whatever is admitted, cut, paused, preempted, forked and aborted, every pool is
conserved after every step, and every sequence says what it says alone."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from fakes_engine import write_tokenizer
from fakes_model import TINY_CONFIG, Reader
from fakes_runner import FULL, MAX_CONTEXT, WINDOW, build

from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.engine.engine import Engine
from model.engine.request import FinishReason, GenerationRequest, SamplingParams
from model.engine.runner import ModelRunner
from model.engine.stats import PoolCounts
from model.engine.token_trie import TokenTrie
from model.hybrid import HybridLM
from model.kernels import REFERENCE, choose
from model.tokenizer import Tokenizer

NUM_SCHEDULES = 1000
# Of one in so many schedules all greedy tokens are also asked of the reference kernels, one sequence at a time.
REFEREED = 20
LEAST_GAP = 1e-4

WANTED = [
    SamplingParams(max_tokens=1, temperature=0.0),
    SamplingParams(max_tokens=1, temperature=0.0, repetition_penalty=1.3, logprobs=2),
    SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1),
    SamplingParams(max_tokens=1, temperature=1.0, seed=7),
    SamplingParams(max_tokens=1, temperature=0.8, top_k=9, seed=8, presence_penalty=0.7),
    SamplingParams(max_tokens=1, temperature=1.2, top_p=0.8, min_p=0.02, seed=9, logit_bias=((5, 2.0),)),
]


@dataclass
class World:
    """A model with its tokenizer, and what requests get alone."""

    model: HybridLM
    referee: HybridLM
    tokenizer: Tokenizer
    vocabulary: TokenTrie
    alone: dict[GenerationRequest, dict[int, list[int]]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    def engine(self, num_slots: int, num_blocks: int, saved_bytes: int) -> tuple[Engine, ModelRunner]:
        runner = ModelRunner(
            self.model, StatePool(self.model.config, num_slots), BlockPool(self.model.config, num_blocks, Dtype.FLOAT32)
        )
        capacity = runner.capacity(saved_bytes)
        return build(runner, capacity, self.tokenizer, self.vocabulary, WINDOW, max_waiting=99), runner

    def said_alone(self, request: GenerationRequest) -> dict[int, list[int]]:
        """Token ids by choice."""
        request = replace(request, request_id="alone", tenant="t")
        if request not in self.alone:
            engine, _ = self.engine(4, 80, 0)
            engine.submit(request)
            said: dict[int, list[int]] = {choice: [] for choice in range(request.num_choices)}
            while engine.has_work():
                for event in engine.step():
                    said[event.choice] += event.token_ids
            self.alone[request] = said
        return self.alone[request]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    kernels, reason = choose("cpu", 1)
    if kernels is REFERENCE:
        pytest.skip(f"no native kernels here: {reason}")
    tokenizer = Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    config = ModelConfig.from_dict(
        TINY_CONFIG | {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 48}
    )
    generator = torch.Generator().manual_seed(3)
    model, referee = HybridLM(config, kernels), HybridLM(config, REFERENCE)
    for (name, weight), twin in zip(model.named_parameters(), referee.parameters(), strict=True):
        if name.endswith("norm.weight") or name.endswith(".d"):
            weight.fill_(1.0)
        elif name.endswith(".a"):
            weight.copy_(-torch.rand(weight.shape, generator=generator) - 0.1)
        elif name.endswith("dt_bias"):
            weight.fill_(-4.0)
        else:
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        twin.copy_(weight)
    vocabulary = TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)
    return World(model, referee, tokenizer, vocabulary)


def drawn_request(name: str, dice: random.Random, world: World) -> GenerationRequest:
    # Few different requests, so that most of what they say alone is known already.
    number = dice.randrange(40)
    own = random.Random(number)
    length = own.choice([1, 2, 30, 63, 64, 65, 130, 200, 300])
    prompt = tuple(own.randrange(3, world.model.config.vocab_size) for _ in range(length))
    sampling = replace(own.choice(WANTED), max_tokens=own.choice([1, 2, 5, 12, 70]))
    return GenerationRequest(
        name,
        prompt,
        sampling,
        policy=own.choice([FULL, WINDOW, None]),
        num_choices=own.choice([1, 1, 1, 2, 3]),
        tenant=dice.choice("abc"),
    )


def assert_conserved(engine: Engine, runner: ModelRunner, num_slots: int, num_blocks: int) -> None:
    engine.check()
    stats = engine.stats()
    assert (stats.slots.total, stats.blocks.total) == (num_slots, num_blocks)
    assert (stats.slots, stats.blocks, stats.saved_bytes) == (runner.slots, runner.blocks, runner.saved_bytes)


def run_schedule(world: World, seed: int) -> None:
    dice = random.Random(seed)
    num_slots, num_blocks = dice.randint(3, 5), dice.choice([20, 26, 40])
    saved_bytes = dice.choice([0, 300_000, 2_000_000])
    engine, runner = world.engine(num_slots, num_blocks, saved_bytes)
    requests: dict[str, GenerationRequest] = {}
    said: dict[tuple[str, int], list[int]] = {}
    ended: set[tuple[str, int]] = set()
    aborted: set[str] = set()
    paused: set[str] = set()
    forced = 0

    def step() -> None:
        for event in engine.step():
            assert event.finish_reason is not FinishReason.ERROR, event.error
            said.setdefault((event.request_id, event.choice), []).extend(event.token_ids)
            if event.finish_reason is not None:
                ended.add((event.request_id, event.choice))
                world.happened["choice ended"] += 1
            world.happened["fork"] += event.choice > 0
        record = engine.stats().last_step
        world.happened[f"{record.phase} step" if record else "no step"] += 1

    for _ in range(dice.randint(20, 60)):
        action = dice.choices(["submit", "step", "abort", "pause", "resume", "preempt"], [5, 14, 1, 1, 2, 2])[0]
        name = dice.choice(list(requests)) if requests else ""
        if action == "submit":
            request = drawn_request(str(len(requests)), dice, world)
            worst = request.num_choices * -(-(len(request.prompt_ids) + request.sampling.max_tokens) // 64)
            if request.num_choices <= num_slots and worst <= num_blocks:
                engine.submit(request)
                requests[request.request_id] = request
        elif action == "abort" and engine.abort(name):
            aborted.add(name)
            world.happened["abort"] += 1
        elif action == "pause":
            engine.pause(name)
            paused.add(name)
            world.happened["pause"] += 1
        elif action == "resume":
            engine.resume(name)
            paused.discard(name)
        elif action == "preempt" and engine.preempt(name):
            forced += 1
            world.happened["forced preemption"] += 1
        else:
            step()
        assert_conserved(engine, runner, num_slots, num_blocks)
    for name in paused:
        engine.resume(name)
    for _ in range(20_000):
        if not engine.has_work():
            break
        step()
        assert_conserved(engine, runner, num_slots, num_blocks)
    world.happened["preemption"] += engine.stats().num_preemptions - forced
    assert (runner.slots, runner.blocks, runner.saved_bytes) == (PoolCounts(num_slots, 0), PoolCounts(num_blocks, 0), 0)
    for name, request in requests.items():
        alone = world.said_alone(request)
        for choice, expected in alone.items():
            found = said.get((name, choice), [])
            if name in aborted:
                assert found == expected[: len(found)]
            else:
                assert (name, choice) in ended
                assert found == expected, f"schedule {seed}, request {name}, choice {choice}"
        if seed % REFEREED == 0 and request.sampling == SamplingParams(request.sampling.max_tokens, temperature=0.0):
            referee(world, request, alone[0])


def referee(world: World, request: GenerationRequest, said: list[int]) -> None:
    """Each token is the most probable one, or as good as, for the reference kernels that read the sequence alone."""
    reader = Reader(world.referee, num_blocks=MAX_CONTEXT // 64)
    logits = reader.open(request.policy or WINDOW).read([*request.prompt_ids, *said[:-1]])[-len(said) :]
    gaps = logits.amax(dim=1) - logits.gather(1, torch.tensor(said)[:, None])[:, 0]
    assert float(gaps.max()) <= LEAST_GAP * float(logits.std())
    world.happened["refereed"] += 1


def assert_all_happened(world: World) -> None:
    kinds = ["choice ended", "fork", "abort", "pause", "forced preemption", "preemption", "refereed"]
    kinds += ["prefill step", "decode step", "mixed step"]
    assert all(world.happened[kind] for kind in kinds), world.happened


def test_a_hundred_schedules(world: World) -> None:
    for seed in range(100):
        run_schedule(world, seed)
    assert_all_happened(world)


@pytest.mark.slow
def test_a_thousand_schedules(world: World) -> None:
    for seed in range(100, NUM_SCHEDULES + 100):
        run_schedule(world, seed)
    assert_all_happened(world)
