"""Indexes over the archive: the laws with them, the twin, who shares one, and what is given back."""

import random
from array import array
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes_engine import write_tokenizer
from fakes_model import Reader, kernels_at, load, random_ids, relative_difference
from fakes_runner import build, finish, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.batch import Batch
from model.cache.archive_index import make_index
from model.cache.block_pool import BlockPool
from model.cache.kv_archive import KvArchive
from model.cache.state_pool import StatePool
from model.config import Dtype
from model.engine.request import TokenEvent
from model.engine.runner import ModelRunner
from model.engine.token_trie import TokenTrie
from model.hybrid import HybridLM
from model.index_plan import IndexPlan
from model.kernels import REFERENCE, Kernels
from model.kernels.native import InstructionSet
from model.kernels.selection import ArchivedLayer, choose, means_of, scores_by_index
from model.policy import AttentionPolicy, PolicyName
from model.tiles import summary_shape
from model.tokenizer import Tokenizer

MAX_TOKENS, LATE = 768, 2
properties = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
plans = st.builds(
    lambda size, lists, probed: IndexPlan(size, lists, min(lists, probed), LATE),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 4),
)
blocks = st.integers(0, 2).map(lambda count: 64 * count)
policies = st.builds(
    lambda sinks, window, select: AttentionPolicy(PolicyName.ARCHIVE, sinks, window + 64, select),
    blocks,
    blocks,
    st.integers(1, 3),
)
starts = st.one_of(st.just(0), st.integers(0, MAX_TOKENS))


@pytest.fixture(scope="module", params=[Dtype.FLOAT32, Dtype.BFLOAT16])
def model(request: pytest.FixtureRequest, checkpoints, kernels: Kernels) -> HybridLM:
    if request.param is Dtype.BFLOAT16 and kernels is REFERENCE:
        pytest.skip("the twins are asked in float32")
    return load(checkpoints["dense"].directory, request.param, kernels)


def require_native(model: HybridLM) -> None:
    if model.kernels is REFERENCE:
        pytest.skip("the twins take neighbours, and tokens that were drawn, one by one")


def assert_alike(model: HybridLM, found: torch.Tensor, expected: torch.Tensor) -> None:
    if model.kernels is REFERENCE:
        assert relative_difference(found, expected) <= 1e-4
    else:
        assert torch.equal(found, expected)


def borders_of(num_tokens: int, splits: list[int]) -> list[int]:
    """Borders of steps that are no longer than the plan allows for."""
    borders = sorted({0, num_tokens, *(split for split in splits if split < num_tokens)})
    most = 64 * LATE
    return sorted({*borders, *(at for start, end in pairwise(borders) for at in range(start, end, most))})


def read_in(reader: Reader, policy: AttentionPolicy, select_from: int, ids: list[int], splits: list[int]):
    """Logits of all tokens, none of which was drawn."""
    sequence = reader.open(policy, select_from)
    found = [
        reader.model(Batch.pack([sequence.chunk(ids[start:end], False)]), reader.states, reader.blocks)
        for start, end in pairwise(borders_of(len(ids), splits))
    ]
    return sequence, torch.cat(found)


@properties
@given(
    num_tokens=st.integers(200, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=6),
    plan=plans,
    policy=policies,
    select_from=starts,
    seed=st.integers(0, 2**16),
)
def test_law_1_no_split_of_a_prompt_changes_what_is_chosen_by_an_index(
    model: HybridLM, num_tokens: int, splits: list[int], plan: IndexPlan, policy: AttentionPolicy, select_from: int,
    seed: int,
) -> None:  # fmt: skip
    ids = random_ids(num_tokens, seed)
    whole, expected = read_in(Reader(model, plan=plan), policy, select_from, ids, [])
    cut, found = read_in(Reader(model, plan=plan), policy, select_from, ids, splits)
    assert_alike(model, found, expected)
    for left, right in zip(cut.memory()[:2], whole.memory()[:2], strict=True):
        assert_alike(model, left, right)


@properties
@given(
    drawn=st.lists(
        st.tuples(st.integers(2, 100), st.integers(200, 500), st.integers(0, 2**16), policies, starts),
        min_size=2,
        max_size=3,
    ),
    plan=plans,
)
def test_law_2_neighbours_change_nothing(model: HybridLM, drawn: list, plan: IndexPlan) -> None:
    require_native(model)
    together = Reader(model, num_blocks=64, plan=plan)
    parts, alone = [], []
    for num_tokens, num_before, seed, policy, select_from in drawn:
        ids = random_ids(num_before + num_tokens, seed)
        single, _ = read_in(Reader(model, plan=plan), policy, select_from, ids[:num_before], [])
        shared, _ = read_in(together, policy, select_from, ids[:num_before], [num_before // 2])
        alone.append(single.read(ids[num_before:]))
        parts.append((shared, ids[num_before:]))
    for found, expected in zip(together.step(parts), alone, strict=True):
        assert_alike(model, found, expected)


@properties
@given(num_before=st.integers(300, 600), plan=plans, policy=policies, seed=st.integers(0, 2**16))
def test_drawn_tokens_and_forks_choose_what_prompts_choose(
    model: HybridLM, num_before: int, plan: IndexPlan, policy: AttentionPolicy, seed: int
) -> None:
    """Law 3, too: a fork goes on to the bit."""
    require_native(model)
    ids = random_ids(num_before + 70, seed)
    reader = Reader(model, plan=plan)
    _, whole = read_in(reader, policy, 0, ids, [num_before])
    drawn, _ = read_in(reader, policy, 0, ids[:num_before], [])
    fork = reader.open(policy, 0)
    fork.table, fork.num_tokens = drawn.table.fork(), num_before
    reader.states.copy(drawn.slot, fork.slot)
    found = torch.cat([drawn.read([each]) for each in ids[num_before:]])
    assert relative_difference(found, whole[num_before:]) <= (1e-4 if model.dtype is Dtype.FLOAT32 else 0.2)
    assert torch.equal(torch.cat([fork.read([each]) for each in ids[num_before:]]), found)


@properties
@given(
    num_tokens=st.integers(1, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=4),
    plan=plans,
    policy=policies,
    seed=st.integers(0, 2**16),
)
def test_law_5_selecting_every_block_equals_full_whatever_the_index(
    model: HybridLM, num_tokens: int, splits: list[int], plan: IndexPlan, policy: AttentionPolicy, seed: int
) -> None:
    ids = random_ids(num_tokens + 2, seed)
    every = AttentionPolicy(PolicyName.ARCHIVE, policy.sinks, policy.window, MAX_TOKENS // 64)
    archive, found = read_in(Reader(model, plan=plan), every, 0, ids[:num_tokens], splits)
    full, expected = read_in(Reader(model), AttentionPolicy(), 0, ids[:num_tokens], splits)
    assert torch.equal(found, expected)
    for token in ids[num_tokens:]:
        assert torch.equal(archive.read([token]), full.read([token]))


def test_an_index_leaves_blocks_out_and_all_its_lists_leave_none(model: HybridLM) -> None:
    # Else the laws above would hold for indexes that nobody asks.
    policy = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2)
    ids = random_ids(MAX_TOKENS, seed=5)
    _, exact = read_in(Reader(model), policy, 0, ids, [])
    _, every = read_in(Reader(model, plan=IndexPlan(2, 8, 8, LATE)), policy, 0, ids, [])
    _, some = read_in(Reader(model, plan=IndexPlan(2, 8, 1, LATE)), policy, 0, ids, [])
    assert_alike(model, every, exact)
    assert relative_difference(some[-1], exact[-1]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", list(InstructionSet))
@pytest.mark.parametrize("width", [7, 24])
def test_native_search_is_that_of_the_reference(level: InstructionSet, dtype: torch.dtype, width: int) -> None:
    """Tokens alone and together, before an index is used and after, of more heads than go together."""
    kernels, generator = kernels_at(level), torch.Generator().manual_seed(3)
    groups, sharing, num_blocks, layers, first, num_tokens = 2, 5, 27, 2, 1500, 40

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    # Blocks far enough apart that rounding changes no choice.
    keys = (draw(num_blocks, 64, groups, width) + 2 * draw(num_blocks, 1, groups, width)).to(dtype)
    values, queries = draw(num_blocks, 64, groups, width).to(dtype), draw(num_tokens, groups * sharing, width).to(dtype)
    numbers = torch.randperm(40, generator=generator)[:num_blocks].tolist()
    plans = IndexPlan(5, 19, 3, 2), IndexPlan(7, 16, 1, 3), IndexPlan(2, 1, 1, 1), IndexPlan(4, 9, 9, 2)
    # A width that fills no pair, and no register, takes the way of the other.
    for plan in plans if width == 24 else plans[:1]:
        if plan.num_blocks == 4:
            # Blocks that repeat, so that most scores are ties; of few bits, which add up alike in any order.
            keys, queries = (2 * keys).round()[torch.arange(num_blocks) % 5] / 4, (2 * queries).round() / 8
        kept = torch.zeros(2, 20, layers, 2, 64, groups, width, dtype=dtype)
        summaries = torch.zeros(layers, groups, 40, *summary_shape(width, dtype.itemsize), dtype=dtype)
        plain = ArchivedLayer(kept[0], kept[1], summaries, 1, [array("q", [-1, *numbers[1:]])], [0])
        for place, number in enumerate(numbers):
            plain.put(number, keys[place], values[place])
        policy = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 3)
        count = plan.num_indexed(policy, first + num_tokens - 1, 0)
        # The border of an index comes between the tokens of one tile.
        assert plan.num_blocks != 5 or count > plan.num_indexed(policy, first, 0)
        indexes = [
            make_index(plan, means_of(summaries[:, :, numbers[1 + n * plan.num_blocks :][: plan.num_blocks]], width))
            for n in range(count)
        ]
        layer = ArchivedLayer(kept[0], kept[1], summaries, 1, plain.tables, [0], [indexes], plan)
        window = [place if place == 0 or place >= 22 else -1 for place in range(num_blocks)]
        told = []
        for together in (num_tokens, 1):
            parts = [
                kernels.attend(
                    part, keys, values, torch.tensor([0, len(part)]), [at], [array("q", window)], [policy], layer
                )
                for at, part in zip(range(first, first + num_tokens, together), queries.split(together), strict=True)
            ]
            told.append(torch.cat(parts))
        assert torch.equal(*told)
        where = torch.tensor([0, num_tokens]), [first], [array("q", window)], [policy]
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        expected = REFERENCE.attend(queries, keys, values, *where, layer)
        assert torch.allclose(told[0].float(), expected.float(), rtol=tolerance, atol=tolerance), plan
        if plan.num_probed == plan.num_lists:
            assert torch.equal(told[0], kernels.attend(queries, keys, values, *where, plain)), (
                "of equal ones the earlier"
            )
        chosen, exact = (choose(queries, each, 0, first, policy, num_blocks) for each in (layer, plain))
        assert (chosen.sum(-1) <= 3).all() and (plan.num_lists == plan.num_probed) == torch.equal(chosen, exact)


def test_every_mean_lies_in_one_list_and_scores_as_where_it_is_scanned() -> None:
    generator = torch.Generator().manual_seed(1)
    plan = IndexPlan(20, 23, 23, 2)
    means = torch.randn(2, 3, 20, 16, 6, generator=generator)
    # Blocks that repeat leave lists empty.
    means[:, :, 10:] = means[:, :, :1]
    index = make_index(plan, means)
    for layer in range(2):
        for group in range(3):
            ends = index.starts[layer, group].tolist()
            assert ends == sorted(ends) and len(ends) == 24
            listed = means_of(index.means[layer, group, : ends[-1]], 6).flatten(0, 1)
            places = index.places[layer, group, : ends[-1]].flatten()
            found = {(int(place), tuple(row.tolist())) for place, row in zip(places, listed, strict=True)}
            expected = {(place, tuple(row.tolist())) for place, rows in enumerate(means[layer, group]) for row in rows}
            assert found == expected
    queries = torch.randn(3, 2, 6, generator=generator).double()
    scores = torch.einsum("ghe,gnre->gnhr", queries, means[1].double()).flatten(2).amax(-1)
    assert torch.allclose(scores_by_index(index, 1, queries, 23), scores)
    assert index.nbytes <= plan.most_bytes(2, 3, 6, 4)
    again = make_index(plan, means)
    assert all(torch.equal(left, right) for left, right in zip(index.tensors, again.tensors, strict=True))


def test_who_shares_the_blocks_shares_the_index_and_it_goes_with_the_last(checkpoints) -> None:
    model = load(checkpoints["dense"].directory)
    reader = Reader(model, plan=IndexPlan(3, 6, 2, LATE))
    policy = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2)
    sequence, _ = read_in(reader, policy, 0, random_ids(700, 2), [])
    indexes, archive = reader.archive.indexes, reader.archive
    assert indexes is not None
    held = sequence.table.archive.indexes(policy, 700, 0)
    assert len(held) == 2
    num_bytes = sum(each.nbytes for each in sequence.table.archive.shared_indexes)
    each = reader.archive.bytes_per_summary
    assert indexes.nbytes == num_bytes == sum(index.nbytes for index in held) > 0
    assert archive.memory_bytes["kv_summaries"] == archive.num_live * each + num_bytes
    fork, kept = sequence.table.archive.fork(), sequence.table.archive.fork(is_cached=True)
    again = type(fork)(archive)
    again.extend(fork.first_place, fork.blocks)
    for table in (fork, kept, again):
        assert all(a is b for a, b in zip(table.indexes(policy, 700, 0), held, strict=True))
    assert indexes.nbytes == num_bytes, "shared ones count once"
    # With other sinks it begins at another block.
    other = type(fork)(archive)
    other.extend(fork.first_place + 1, fork.blocks[1:])
    assert other.indexes(AttentionPolicy(PolicyName.ARCHIVE, 128, 64, 2), 700, 0)[0] is not held[0]
    # What was made of blocks that are not there any more is not found again.
    for table in (fork, again, other):
        table.free()
    del held, kept, again, other, fork, table
    sequence.table.free()
    assert (archive.num_live, indexes.nbytes, archive.memory_bytes["kv_summaries"]) == (0, 0, 0)
    fresh, _ = read_in(reader, policy, 0, random_ids(700, 9), [])
    expected = make_index(
        archive.plan, means_of(archive.summaries[:, :, fresh.table.archive.numbers[1:4]], model.config.head_width)
    )
    (first, _) = fresh.table.archive.indexes(policy, 700, 0)
    assert np.array_equal(first.means.numpy(), expected.means.numpy())


class Bench:
    """An engine whose archive has indexes of three blocks, and its runner."""

    def __init__(self, model: HybridLM, tokenizer: Tokenizer, plan: IndexPlan | None) -> None:
        each = sum(model.config.archive_bytes_per_block(Dtype.FLOAT32, plan))
        self.archive = KvArchive(model.config, Dtype.FLOAT32, 60 * each, plan=plan)
        pools = StatePool(model.config, 6), BlockPool(model.config, 60, Dtype.FLOAT32, archive=self.archive)
        self.runner = ModelRunner(model, *pools, num_slots=3, checkpoint_bytes=1 << 24, chunk_tokens=64)
        vocabulary = TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)
        capacity, archive = self.runner.capacity(1 << 30), (self.archive.num_blocks, each)
        self.engine = build(self.runner, capacity, tokenizer, vocabulary, POLICY, max_context=9000, archive=archive)

    def ask(self, name: str, prompt: list[int], **fields: object):
        self.engine.submit(request(name, prompt, max_tokens=12, logprobs=0, **fields))
        events = finish(self.engine)
        self.engine.check()
        return told(events), events[-1].usage


def told(events: list[TokenEvent]) -> list[float]:
    """Log probabilities of what was drawn, by choice: they differ where the token does not."""
    return [each.logprob for event in sorted(events, key=lambda each: each.choice) for each in event.logprobs]


PLAN = IndexPlan(3, 8, 1, 1)
POLICY = AttentionPolicy(PolicyName.ARCHIVE, sinks=64, window=64, select=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_saved_forked_and_taken_up_again_it_chooses_the_same(checkpoints, tokenizer: Tokenizer) -> None:
    model = load(checkpoints["dense"].directory)
    dice = random.Random(4)
    document, question = ([dice.randrange(3, 30) for _ in range(count)] for count in (1000, 50))
    bench, exact = Bench(model, tokenizer, PLAN), Bench(model, tokenizer, None)
    asked = {"select_from": 300}
    expected, usage = bench.ask("first", document + question, **asked)
    assert exact.ask("exact", document + question, **asked)[0] != expected, "else nothing was asked of the indexes"
    # Of 14 blocks, the first four times three.
    summed = 14 * bench.archive.bytes_per_summary
    assert bench.archive.indexes is not None and len(bench.archive.indexes) == 4
    assert usage.kv_summary_bytes == summed + bench.archive.indexes.nbytes > summed
    assert bench.engine.stats().archive_bytes["kv_summaries"] == usage.kv_summary_bytes
    again, usage = bench.ask("again", document + question, **asked)
    assert again == expected and usage.num_cached_tokens > len(document)
    both, _ = bench.ask("both", document + question, num_choices=2, **asked)
    assert both == expected * 2
    bench.engine.submit(request("saved", document + question, max_tokens=12, logprobs=0, **asked))
    events = [event for _ in range(4) for event in bench.engine.step()]
    assert bench.engine.preempt("saved")
    assert told(events + finish(bench.engine)) == expected
    assert len(bench.archive.indexes) == 4, "the blocks were the same, and so are the indexes"
    bench.engine.checkpoints.forget(("default", POLICY), document, 0)
    bench.engine.check()
    assert (bench.archive.num_live, len(bench.archive.indexes), bench.archive.indexes.nbytes) == (0, 0, 0)
