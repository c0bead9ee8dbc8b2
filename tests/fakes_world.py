"""A small random model, requests to it, and what each of them says alone, as the reference kernels confirm."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from fakes_engine import write_tokenizer
from fakes_model import TINY_CONFIG, Reader
from fakes_runner import FULL, MAX_CONTEXT, WINDOW

from model.cache.block_pool import BlockPool
from model.cache.kv_archive import KvArchive
from model.cache.plan import MemoryPlan
from model.cache.state_pool import StatePool
from model.config import EngineConfig, ModelConfig
from model.engine.admission import Admission
from model.engine.engine import Engine
from model.engine.request import FinishReason, GenerationRequest, Keep, SamplingParams, TokenEvent, TokenLogprob
from model.engine.runner import ModelRunner
from model.engine.scheduler import Budget, Scheduler
from model.engine.stats import BuildInfo, EngineStats
from model.engine.token_trie import TokenTrie
from model.hybrid import HybridLM
from model.kernels import REFERENCE, Kernels
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

NUM_REQUESTS = 200
ARCHIVE = AttentionPolicy(PolicyName.ARCHIVE, sinks=0, window=64, select=1)
# Most that a greedy token may fall short of the best one, and a probability of the reference's, in logit scales.
TOLERANCE = 1e-4

WANTED = [
    SamplingParams(max_tokens=1, temperature=0.0),
    SamplingParams(max_tokens=1, temperature=0.0, logprobs=3),
    SamplingParams(max_tokens=1, temperature=0.0, repetition_penalty=1.3, logprobs=2),
    SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, logprobs=0),
    SamplingParams(max_tokens=1, temperature=1.0, seed=7),
    SamplingParams(max_tokens=1, temperature=0.8, top_k=9, seed=8, presence_penalty=0.7, logprobs=1),
    SamplingParams(max_tokens=1, temperature=1.2, top_p=0.8, min_p=0.02, seed=9, logit_bias=((5, 2.0),)),
    SamplingParams(max_tokens=1, temperature=1.1, seed=10, frequency_penalty=0.4, prompt_logprobs=0, logprobs=0),
]


@dataclass
class Said:
    """What one choice has said so far; two are equal only if every bit of the probabilities is."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    information_bits: float | None = None

    def first(self, num_tokens: int) -> "Said":
        """What had been said after ``num_tokens``."""
        told = self.prompt_logprobs if num_tokens else None
        bits = self.information_bits if num_tokens == len(self.token_ids) else None
        return Said(self.token_ids[:num_tokens], self.logprobs[:num_tokens], told, bits)


class Times:
    """Clocks for the engine that make a schedule the same each time it is run, and steps of any length."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += self.dice.random()
        return self.now

    monotonic = perf_counter


@dataclass
class World:
    """Models of the same weights by number of threads, and what requests say alone."""

    models: dict[int, HybridLM]
    referee: HybridLM
    tokenizer: Tokenizer
    vocabulary: TokenTrie
    alone: dict[GenerationRequest, dict[int, Said]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    def engine(self, config: EngineConfig, clock: Callable[[], float]) -> tuple[Engine, ModelRunner]:
        """An engine of its own pools."""
        model = self.models[config.num_threads]
        plan = MemoryPlan.of(model.config, config)
        archive = KvArchive(
            model.config,
            config.dtype,
            config.archive_bytes,
            config.archive_disk_bytes,
            config.archive_directory,
            config.archive_index,
        )
        runner = ModelRunner(
            model,
            StatePool(model.config, plan.num_states),
            BlockPool(model.config, plan.num_blocks, config.dtype, archive=archive),
            num_slots=plan.num_slots,
            checkpoint_bytes=config.session_bytes,
            chunk_tokens=config.prefill_chunk_tokens,
        )
        stats = EngineStats(
            build=BuildInfo("tiny", "cpu", "any", config.dtype.value, "window"),
            slots=runner.slots,
            blocks=runner.blocks,
            pool_bytes=runner.pool_bytes,
            plan_bytes=plan.pool_bytes,
            max_context_tokens=config.max_context_tokens,
        )
        budget = Budget(config.prefill_chunk_tokens, config.mixed_chunk_tokens, config.prefill_share)
        scheduler = Scheduler(runner, runner.capacity(config.saved_bytes), budget, config.max_waiting)
        admission = Admission(
            self.tokenizer.vocab_size,
            MAX_CONTEXT,
            plan.num_slots,
            plan.num_blocks,
            config.prefill_chunk_tokens,
            plan.num_archive_blocks,
            plan.bytes_per_archived_block,
        )
        return Engine(runner, scheduler, self.tokenizer, self.vocabulary, admission, WINDOW, stats, clock), runner

    def said_alone(self, request: GenerationRequest) -> dict[int, Said]:
        """What each choice says in a fresh engine with room for everything, which reads the prompt in one piece."""
        request = replace(request, request_id="alone", tenant="alone")
        if request not in self.alone:
            config = EngineConfig(num_slots=3, num_blocks=60, max_context_tokens=MAX_CONTEXT)
            engine, _ = self.engine(config, Times(random.Random(0)).monotonic)
            engine.submit(request)
            said = {choice: Said() for choice in range(request.num_choices)}
            while engine.has_work():
                for event in engine.step():
                    assert event.finish_reason is not FinishReason.ERROR, event.error
                    hear(said[event.choice], event)
            self.alone[request] = said
            for each in said.values():
                ask_the_referee(self, request, each)
        return self.alone[request]


def hear(said: Said, event: TokenEvent) -> None:
    """Add what the event tells."""
    said.token_ids += event.token_ids
    said.information_bits = event.usage.information_bits if event.usage else None
    said.logprobs += event.logprobs
    if event.prompt_logprobs is not None:
        assert said.prompt_logprobs is None, "the prompt is told once"
        said.prompt_logprobs = event.prompt_logprobs


def ask_the_referee(world: World, request: GenerationRequest, said: Said) -> None:
    """Have the reference kernels read the sequence, alone and in one piece: greedy tokens are the most probable ones
    or as good, and log probabilities are the same."""
    prompt, ids = list(request.prompt_ids), said.token_ids
    reader = Reader(world.referee, num_blocks=MAX_CONTEXT // BLOCK_TOKENS)
    logits = reader.open(request.policy or WINDOW, request.select_from).read([*prompt, *ids[:-1]])
    scale = float(logits.std())
    answers = logits[len(prompt) - 1 :]
    if request.sampling == SamplingParams(
        request.sampling.max_tokens,
        temperature=0.0,
        logprobs=request.sampling.logprobs,
        prompt_logprobs=request.sampling.prompt_logprobs,
    ):
        gaps = answers.amax(dim=1) - answers.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert float(gaps.max()) <= TOLERANCE * scale
        world.happened["greedy choice refereed"] += 1
    told = [*zip(answers.log_softmax(1), said.logprobs, strict=False)]
    if said.prompt_logprobs is not None:
        told += [*zip(logits.log_softmax(1), said.prompt_logprobs[1:], strict=False)]
        assert [each.token_id for each in said.prompt_logprobs[1:] if each] == prompt[1:]
        world.happened["prompt probabilities refereed"] += 1
    for row, each in told:
        pairs = [(each.token_id, each.logprob), *each.top]
        assert all(abs(float(row[token_id]) - logprob) <= TOLERANCE * scale for token_id, logprob in pairs)
        assert sorted(each.top, key=lambda pair: -pair[1]) == list(each.top)
    world.happened["probability refereed"] += len(told)


def make_world(directory: Path, kernels: dict[int, Kernels]) -> World:
    """Models of the same random weights with ``kernels`` by number of threads; the tokenizer goes to ``directory``."""
    tokenizer = Tokenizer(write_tokenizer(directory))
    vocabulary = TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)
    values = TINY_CONFIG | {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 48}
    config = ModelConfig.from_dict(values)

    def model(kernels: Kernels) -> HybridLM:
        made, generator = HybridLM(config, kernels), torch.Generator().manual_seed(3)
        for name, weight in made.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".d"):
                weight.fill_(1.0)
            elif name.endswith(".a"):
                weight.copy_(-torch.rand(weight.shape, generator=generator) - 0.1)
            elif name.endswith("dt_bias"):
                weight.fill_(-4.0)
            else:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        return made

    models = {num_threads: model(each) for num_threads, each in kernels.items()}
    return World(models, model(REFERENCE), tokenizer, vocabulary)


def drawn_request(name: str, dice: random.Random, world: World, numbers: Sequence[int]) -> GenerationRequest:
    """A request of any length and sampling, one of some ``numbers`` below ``NUM_REQUESTS``."""
    # Some hundred different requests, so that most of what they say alone is known already.
    number = dice.choice(numbers)
    own = random.Random(number)
    length = own.choice([1, 2, 30, 63, 64, 65, 130, own.randint(1, 300), own.randint(100, 300)])
    # Some begin alike, as far as they go, so that one goes on from what another has read.
    family = random.Random(own.choice([1, 2, number + 3]))
    beginning = [family.randrange(3, world.tokenizer.vocab_size) for _ in range(own.choice([0, 40, 130, 300]))]
    rest = [own.randrange(3, world.tokenizer.vocab_size) for _ in range(length)]
    prompt = tuple([*beginning, *rest][:length])
    sampling = replace(own.choice(WANTED), max_tokens=own.choice([1, 2, 5, 12, 70]))
    return GenerationRequest(
        name,
        prompt,
        sampling,
        policy=drawn_policy(own, number),
        num_choices=own.choice([1, 1, 1, 2, 3]),
        tenant=dice.choice("ab"),
        keep=own.choice([Keep(), Keep(borders=(70, 200), tail=True), Keep(nothing=True)]),
        measure_information=own.random() < 0.3,
        # Of the same text some select from its beginning on, some from a place in it, some never.
        select_from=own.choice([0, 0, 100, 250]),
    )


def drawn_policy(own: random.Random, number: int) -> AttentionPolicy | None:
    """Any policy; without ``archive`` the draws of a request are the same."""
    policy = own.choice([FULL, WINDOW, None])
    return ARCHIVE if number % 5 < 2 else policy
