"""The laws of the model as properties: no split of a prompt and no neighbour changes what a sequence is told.

All in float32 on the CPU; differences are in units of the standard deviation of what they are compared with.
"""

import torch
from fakes_model import Reader, load, random_ids, relative_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.hybrid import HybridLM
from model.kernels import REFERENCE
from model.policy import AttentionPolicy, PolicyName

TOLERANCE = 1e-4
MAX_TOKENS = 200

properties = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
policies = st.sampled_from(
    [
        AttentionPolicy(),
        AttentionPolicy(PolicyName.WINDOW, sinks=0, window=64),
        AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64),
    ]
)


def assert_same_memory(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for name, left, right in zip(("ssm", "conv"), found, expected, strict=False):
        assert relative_difference(left, right) <= TOLERANCE, name


@properties
@given(
    num_tokens=st.integers(2, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=6),
    policy=policies,
    seed=st.integers(0, 2**16),
)
def test_law_1_no_split_of_a_prompt_changes_logits_or_state(
    dense: HybridLM, num_tokens: int, splits: list[int], policy: AttentionPolicy, seed: int
) -> None:
    ids = random_ids(num_tokens, seed)
    whole, cut = Reader(dense).open(policy), Reader(dense).open(policy)
    expected, found = whole.read(ids), cut.read(ids, splits)
    assert relative_difference(found, expected) <= TOLERANCE
    assert_same_memory(cut.memory(), whole.memory())
    if policy.name is PolicyName.FULL:
        assert relative_difference(cut.memory()[2], whole.memory()[2]) <= TOLERANCE


def test_law_1_holds_token_by_token_and_for_experts(checkpoints, kernels) -> None:
    ids = random_ids(90, seed=4)
    for kind in ("experts", "mqa", "tied"):
        model = load(checkpoints[kind].directory, kernels=kernels)
        whole, cut = Reader(model).open(), Reader(model).open()
        expected, found = whole.read(ids), cut.read(ids, splits=range(1, 90))
        assert relative_difference(found, expected) <= TOLERANCE, kind
        for left, right in zip(cut.memory(), whole.memory(), strict=True):
            assert relative_difference(left, right) <= TOLERANCE, kind


def test_the_state_matters_in_these_checkpoints(dense: HybridLM) -> None:
    # Else law 1 would hold for a model that forgets its state between chunks.
    ids = random_ids(150, seed=5)
    reader = Reader(dense)
    whole, cut = reader.open(), reader.open()
    expected = whole.read(ids)[-20:]
    cut.read(ids[:130])
    reader.states.zero(cut.slot)
    assert relative_difference(cut.read(ids[130:]), expected) > 0.1


sequences = st.lists(
    st.tuples(st.integers(1, 80), st.integers(0, 80), st.integers(0, 2**16), policies), min_size=2, max_size=4
)


@properties
@given(drawn=sequences, order=st.randoms(use_true_random=False))
def test_law_2_neighbours_change_nothing(dense: HybridLM, drawn: list, order) -> None:
    """Prompt chunks and single tokens of several sequences in one step, each also read alone."""
    together = Reader(dense)
    parts, alone = [], []
    for num_tokens, num_read_before, seed, policy in drawn:
        before, ids = random_ids(num_read_before, seed), random_ids(num_tokens, seed + 1)
        single, shared = Reader(dense).open(policy), together.open(policy)
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
        assert relative_difference(logits, expected) <= TOLERANCE
        assert_same_memory(parts[index][0].memory(), single.memory())


def test_law_2_holds_for_experts(checkpoints, kernels) -> None:
    model = load(checkpoints["experts"].directory, kernels=kernels)
    prompts = [random_ids(num_tokens, seed) for seed, num_tokens in enumerate((40, 1, 25))]
    alone = [Reader(model).open().read(prompt) for prompt in prompts]
    together = Reader(model)
    found = together.step([(together.open(), prompt) for prompt in prompts])
    for logits, expected in zip(found, alone, strict=True):
        assert relative_difference(logits, expected) <= TOLERANCE


def test_law_2_untouched_slots_and_blocks_keep_every_bit(dense: HybridLM) -> None:
    reader = Reader(dense)
    resting, running = reader.open(), reader.open()
    resting.read(random_ids(100, seed=6))
    before = resting.memory()
    running.read(random_ids(100, seed=7), splits=[33, 64])
    for left, right in zip(resting.memory(), before, strict=True):
        assert torch.equal(left, right)


@properties
@given(
    num_tokens=st.integers(1, MAX_TOKENS),
    splits=st.lists(st.integers(1, MAX_TOKENS), max_size=4),
    sinks=st.sampled_from([0, 64, 128]),
    seed=st.integers(0, 2**16),
)
def test_law_5_a_window_no_shorter_than_the_sequence_equals_full(
    dense: HybridLM, num_tokens: int, splits: list[int], sinks: int, seed: int
) -> None:
    ids = random_ids(num_tokens, seed)
    window = -(-num_tokens // 64) * 64
    full, windowed = Reader(dense).open(), Reader(dense).open(AttentionPolicy(PolicyName.WINDOW, sinks, window))
    assert torch.equal(windowed.read(ids, splits), full.read(ids, splits))
    for left, right in zip(windowed.memory(), full.memory(), strict=True):
        assert torch.equal(left, right)


def test_a_window_shorter_than_the_sequence_does_not_equal_full(checkpoints) -> None:
    model = load(checkpoints["dense"].directory, kernels=REFERENCE)
    ids = random_ids(200, seed=8)
    full = Reader(model).open().read(ids)
    windowed = Reader(model).open(AttentionPolicy(PolicyName.WINDOW, 0, 64)).read(ids)
    assert relative_difference(windowed[:64], full[:64]) <= TOLERANCE
    assert relative_difference(windowed[-1], full[-1]) > 0.01
