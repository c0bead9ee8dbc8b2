"""The laws of the model under policy ``archive``, with any sinks, windows, selections, splits and neighbours.

Native kernels keep them to the bit, the reference twins to the rounding of a matrix product of torch.
"""

from itertools import pairwise

import pytest
import torch
from fakes_model import FETCHING, OpenSequence, Reader, fetching, load, random_ids, relative_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.batch import Batch
from model.config import Dtype
from model.hybrid import HybridLM
from model.kernels import REFERENCE, Kernels, choose
from model.kernels.selection import summary
from model.policy import AttentionPolicy, PolicyName

TOLERANCE = 1e-4
MAX_TOKENS = 640

properties = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
blocks = st.integers(0, 3).map(lambda count: 64 * count)
policies = st.builds(
    lambda sinks, window, select: AttentionPolicy(PolicyName.ARCHIVE, sinks, window + 64, select),
    blocks,
    blocks,
    st.integers(1, 4),
)
starts = st.one_of(st.just(0), st.integers(0, MAX_TOKENS))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FETCHED = pytest.param(FETCHING, marks=pytest.mark.slow)
DEVICE = pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])


@pytest.fixture(scope="module", params=["whole step", "layers", "bfloat16", FETCHED, DEVICE])
def model(request: pytest.FixtureRequest, checkpoints, kernels: Kernels) -> HybridLM:
    """Experts have no whole step, so that the kernels are called one by one. Fetching is what a device does; the native
    kernels choose for it."""
    if request.param != "whole step" and kernels is REFERENCE:
        pytest.skip("the twins know one way")
    if request.param == FETCHING:
        return load(checkpoints["mqa"].directory, kernels=fetching(kernels.choose))
    if request.param == "cuda":
        return load(checkpoints["dense"].directory, kernels=choose("cuda", 1)[0], device="cuda")
    kind = "experts" if request.param == "layers" else "dense"
    dtype = Dtype.BFLOAT16 if request.param == "bfloat16" else Dtype.FLOAT32
    return load(checkpoints[kind].directory, dtype, kernels)


def has_whole_step(model: HybridLM) -> bool:
    return model.kernels.step is not None and model.config.num_experts == 1


def assert_alike(model: HybridLM, found: torch.Tensor, expected: torch.Tensor) -> None:
    # What runs layer by layer has products of torch between the kernels.
    if not has_whole_step(model):
        assert relative_difference(found, expected) <= TOLERANCE
    else:
        assert torch.equal(found, expected)


@properties
@given(
    num_tokens=st.integers(2, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=6),
    policy=policies,
    select_from=starts,
    seed=st.integers(0, 2**16),
)
def test_law_1_no_split_of_a_prompt_changes_logits_or_memory(
    model: HybridLM, num_tokens: int, splits: list[int], policy: AttentionPolicy, select_from: int, seed: int
) -> None:
    ids = random_ids(num_tokens, seed)
    whole, cut = (Reader(model).open(policy, select_from) for _ in range(2))
    expected = whole.read(ids)
    # Single tokens of a prompt, too: they are no decodes.
    borders = [0, *sorted({split for split in splits if split < num_tokens}), num_tokens]
    parts = [ids[start:end] for start, end in pairwise(borders)]
    found = torch.cat([step_of(cut, part) for part in parts])
    assert_alike(model, found, expected)
    for left, right in zip(cut.memory()[:2], whole.memory()[:2], strict=True):
        assert_alike(model, left, right)
    assert cut.table.archive.num_blocks == whole.table.archive.num_blocks
    for left, right in zip(cut.table.archive.blocks, whole.table.archive.blocks, strict=True):
        assert_alike(model, left.keys, right.keys)
        assert_alike(model, left.values, right.values)


def step_of(sequence: OpenSequence, part: list[int]) -> torch.Tensor:
    reader = sequence.reader
    batch = Batch.pack([sequence.chunk(part, is_decode=False)], reader.device)
    return reader.model(batch, reader.states, reader.blocks)


sequences = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 300), st.integers(0, 2**16), policies, starts), min_size=2, max_size=4
)


@properties
@given(drawn=sequences, order=st.randoms(use_true_random=False))
def test_law_2_neighbours_change_nothing(model: HybridLM, drawn: list, order) -> None:
    together = Reader(model, num_blocks=64)
    parts, alone = [], []
    for num_tokens, num_before, seed, policy, select_from in drawn:
        before, ids = random_ids(num_before, seed), random_ids(num_tokens, seed + 1)
        single, shared = (each.open(policy, select_from) for each in (Reader(model), together))
        if before:
            single.read(before)
            shared.read(before)
        alone.append((single, single.read(ids)))
        parts.append((shared, ids))
    indices = list(range(len(parts)))
    order.shuffle(indices)
    found = together.step([parts[index] for index in indices])
    for index, logits in zip(indices, found, strict=True):
        single, expected = alone[index]
        if len(parts[index][1]) > 1 or len(parts) == 1:
            assert_alike(model, logits, expected)


@settings(properties, max_examples=12)  # of 70 steps each
@given(num_before=st.integers(65, 500), policy=policies, select_from=starts, seed=st.integers(0, 2**16))
def test_drawn_tokens_see_what_prompts_see(
    model: HybridLM, num_before: int, policy: AttentionPolicy, select_from: int, seed: int
) -> None:
    """Decodes take another order of sums, and nothing else."""
    ids = random_ids(num_before + 70, seed)
    prompt, drawn = (Reader(model).open(policy, select_from) for _ in range(2))
    expected = prompt.read(ids)[num_before:]
    drawn.read(ids[:num_before])
    found = torch.cat([drawn.read([each]) for each in ids[num_before:]])
    assert relative_difference(found, expected) <= (TOLERANCE if model.dtype is Dtype.FLOAT32 else 0.2)


@properties
@given(
    num_tokens=st.integers(1, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=4),
    policy=policies,
    seed=st.integers(0, 2**16),
)
def test_law_5_archive_that_selects_every_block_equals_full(
    model: HybridLM, num_tokens: int, splits: list[int], policy: AttentionPolicy, seed: int
) -> None:
    """To the bit; also what is drawn afterwards. Where it is fetched, to the rounding of sums in another order."""
    ids = random_ids(num_tokens + 3, seed)
    every = AttentionPolicy(PolicyName.ARCHIVE, policy.sinks, policy.window, MAX_TOKENS // 64)
    full, archive = Reader(model).open(AttentionPolicy()), Reader(model).open(every)
    fetches = archive.reader.fetched is not None

    def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
        assert relative_difference(found, expected) <= TOLERANCE if fetches else torch.equal(found, expected)

    assert_same(archive.read(ids[:num_tokens], splits), full.read(ids[:num_tokens], splits))
    for token in ids[num_tokens:]:
        assert_same(archive.read([token]), full.read([token]))
    for left, right in zip(archive.memory()[:2], full.memory()[:2], strict=True):
        assert_same(left, right)


@properties
@given(
    num_tokens=st.integers(1, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=4),
    policy=policies,
    seed=st.integers(0, 2**16),
)
def test_documents_are_read_as_under_window(
    model: HybridLM, num_tokens: int, splits: list[int], policy: AttentionPolicy, seed: int
) -> None:
    """Where selection begins behind the text, and where the window holds it all."""
    ids = random_ids(num_tokens, seed)
    window = AttentionPolicy(PolicyName.WINDOW, policy.sinks, policy.window)
    alone, archived = Reader(model).open(window), Reader(model).open(policy, num_tokens)
    assert torch.equal(archived.read(ids, splits), alone.read(ids, splits))
    wide = AttentionPolicy(PolicyName.ARCHIVE, policy.sinks, -(-num_tokens // 64) * 64, policy.select)
    full, held = Reader(model).open(AttentionPolicy()), Reader(model).open(wide)
    assert torch.equal(held.read(ids, splits), full.read(ids, splits))
    assert held.table.archive.num_blocks == 0


def test_what_is_selected_matters(model: HybridLM) -> None:
    # Else the laws above would hold for kernels that select nothing.
    ids = random_ids(600, seed=3)
    policies = [AttentionPolicy(PolicyName.ARCHIVE, 64, 64, select) for select in (1, 2, 9)]
    told = [Reader(model).open(policy).read(ids) for policy in policies]
    told.append(Reader(model).open(AttentionPolicy(PolicyName.WINDOW, 64, 64)).read(ids))
    for index, left in enumerate(told):
        for right in told[:index]:
            assert relative_difference(left[-1], right[-1]) > 1e-3


def test_the_summary_of_a_block_is_the_same_bits_wherever_it_is_made(model: HybridLM) -> None:
    """A block that comes back from the disk is summed up anew."""
    sequence = Reader(model).open(AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2))
    sequence.read(random_ids(500, seed=4), splits=[100, 333])
    archive = sequence.reader.archive
    for block in sequence.table.archive.blocks:
        assert torch.equal(archive.summaries[:, :, block.number], summary(block.keys))
