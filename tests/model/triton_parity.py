"""The Triton kernels beside their reference twins: outputs and states. `test_triton` runs these tests in a process of
their own: interpreted, where tiles are made small because the interpreter is slow, or compiled on a GPU.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from fakes_attention import Attention, Wide
from fakes_parity import (
    BF16_TOLERANCE,
    DEVICE,
    INTERPRETED,
    TILE,
    TOLERANCE,
    assert_close,
    model_of,
    small_tiles,
    triton_kernels,
)

from model.batch import Batch, SequenceChunk
from model.cache.state_pool import StatePool
from model.decode_graphs import DecodeGraphs
from model.kernels import REFERENCE, reference
from model.kernels.triton import attention, loading, parity, tables
from model.policy import AttentionPolicy, PolicyName

__all__ = ["small_tiles"]

FULL = AttentionPolicy()


def window(sinks, size):
    return AttentionPolicy(PolicyName.WINDOW, sinks, size)


class Problem:
    """A ragged step with random inputs that are views of larger tensors, for a pool with slots to spare."""

    def __init__(self, lengths, inner=37, num_states=5, num_taps=4, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=generator).to(DEVICE)

        num_tokens, num_slots = sum(lengths), len(lengths) + 2
        self.inner, self.num_states = inner, num_states
        self.query_start = torch.tensor([0, *lengths]).cumsum(0)
        self.state_slots = torch.randperm(num_slots, generator=generator)[: len(lengths)]
        self.xz = randn(num_tokens, 2 * inner + 3)
        self.steps = randn(num_tokens, inner + 2 * num_states + 5)
        self.steps[:, :inner] = self.steps[:, :inner] * 2 - 2
        self.dt_bias, self.d, self.bias = randn(inner), randn(inner), randn(inner)
        self.a = -torch.exp(randn(num_states, inner))
        self.weight = randn(num_taps, inner)
        self.ssm, self.conv = randn(num_slots, num_states, inner), randn(num_slots, num_taps - 1, inner)

    def rows(self, first=0, end=None):
        """x, z, dt, b, c of these rows."""
        inner, xz, steps = self.inner, self.xz[first:end], self.steps[first:end]
        b, c = steps[:, inner:].split_with_sizes((self.num_states, self.num_states + 5), dim=1)
        return xz[:, 1 : inner + 1], xz[:, inner + 1 : 2 * inner + 1], steps[:, :inner], b, c[:, : self.num_states]

    def run(self, kernels, dtype=torch.float32, *, gated=True, biased=True, first=0, end=None, step=None):
        """Both outputs; the problem's states are those after the step."""
        x, z, dt, b, c = (each.to(dtype) for each in self.rows(first, end))
        step = (self.query_start, self.state_slots) if step is None else step
        self.ssm, self.conv = self.ssm.to(dtype), self.conv.to(dtype)
        bias = self.bias.to(dtype) if biased else None
        u = kernels.causal_conv(x, self.weight.to(dtype), bias, self.conv, *step)
        steering = self.dt_bias.to(dtype), self.a.to(dtype), b, c, self.d.to(dtype)
        # The same u for both, so that an error of the convolution is not one of the scan.
        y = kernels.selective_scan(x, dt, *steering, z if gated else None, self.ssm, *step)
        return u, y


RAGGED = [
    [1],
    [1, 1, 1],
    [1, 0, 1],
    [2, 1],
    [TILE - 1, TILE, TILE + 1, 1, 0],
    [3 * TILE + 5, 2, 2 * TILE],
]


@pytest.mark.parametrize("lengths", RAGGED, ids=str)
@pytest.mark.parametrize(
    ("inner", "num_states", "num_taps", "gated", "biased"), [(37, 5, 4, True, True), (64, 16, 2, False, False)]
)
def test_recurrences_give_the_outputs_and_states_of_their_twins(lengths, inner, num_states, num_taps, gated, biased):
    expected, found = (Problem(lengths, inner, num_states, num_taps) for _ in range(2))
    before = found.ssm.clone(), found.conv.clone()
    wanted = expected.run(reference, torch.float64, gated=gated, biased=biased)
    given = found.run(triton_kernels(), gated=gated, biased=biased)
    for one, other in zip(given, wanted, strict=True):
        assert one.is_contiguous() and one.dtype == torch.float32
        assert_close(one, other)
    assert_close(found.ssm, expected.ssm)
    assert torch.equal(found.conv.double(), expected.conv)
    others = [slot for slot in range(len(lengths) + 2) if slot not in found.state_slots]
    for state, old in zip((found.ssm, found.conv), before, strict=True):
        assert torch.equal(state[others], old[others])


def test_a_large_time_step_forgets_and_a_small_one_is_exact():
    inner = 3
    one, zero = torch.ones(TILE + 1, 2, device=DEVICE), torch.zeros(inner, device=DEVICE)
    u = torch.full((TILE + 1, inner), 2.0, device=DEVICE)
    step = torch.tensor([0, TILE + 1]), torch.tensor([0])
    a = torch.full((2, inner), -1.0, device=DEVICE)
    for dt, expected in ((200.0, 400.0), (-15.0, (TILE + 1) * 2 * 3.059022269256247e-07)):
        state = torch.full((1, 2, inner), 1e6 if dt > 0 else 0.0, device=DEVICE)
        steps = torch.full((TILE + 1, inner), dt, device=DEVICE)
        triton_kernels().selective_scan(u, steps, zero, a, one, one, zero, None, state, *step)
        torch.testing.assert_close(state, torch.full_like(state, expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cuts", [(1,), (TILE - 1,), (TILE,), (TILE + 1, TILE + 2), (2 * TILE + 3,)], ids=str)
def test_a_split_of_the_tokens_changes_nothing(cuts):
    num_tokens = 2 * TILE + 4
    whole, parts = Problem([num_tokens]), Problem([num_tokens])
    together = whole.run(triton_kernels())
    borders = [0, *cuts, num_tokens]
    pieces = [
        parts.run(
            triton_kernels(), first=first, end=end, step=(torch.tensor([0, end - first]), parts.state_slots.clone())
        )
        for first, end in itertools.pairwise(borders)
    ]
    for index, one in enumerate(together):
        assert_close(torch.cat([piece[index] for piece in pieces]), one)
    assert_close(parts.ssm, whole.ssm)
    assert torch.equal(parts.conv, whole.conv)


@pytest.mark.parametrize("lengths", [[1, TILE + 3], [1, 1], [TILE + 3, 2]], ids=str)
def test_neighbours_change_no_bit_of_a_recurrence(lengths):
    beside = Problem(lengths)
    found = beside.run(triton_kernels())
    for index, slot in enumerate(beside.state_slots.tolist()):
        alone = Problem(lengths)
        rows = {"first": int(alone.query_start[index]), "end": int(alone.query_start[index + 1])}
        step = torch.tensor([0, lengths[index]]), torch.tensor([slot])
        for one, other in zip(alone.run(triton_kernels(), **rows, step=step), found, strict=True):
            assert torch.equal(one, other[rows["first"] : rows["end"]])
        assert torch.equal(alone.ssm[slot], beside.ssm[slot]) and torch.equal(alone.conv[slot], beside.conv[slot])


@pytest.mark.parametrize("lengths", [[1, 1, 1], [TILE, 1, 3]], ids=str)
def test_a_row_without_a_slot_reads_none_and_writes_none(lengths):
    found, expected = Problem(lengths), Problem(lengths)
    before = found.ssm.clone(), found.conv.clone()
    first = int(found.state_slots[0])
    found.state_slots[0] = -1
    # Nor does it read one: it begins with nothing.
    expected.ssm[first], expected.conv[first] = 0, 0
    for one, other in zip(found.run(triton_kernels()), expected.run(triton_kernels()), strict=True):
        assert torch.equal(one, other)
    kept = [slot for slot in range(len(lengths) + 2) if slot != first]
    for state, old, other in zip((found.ssm, found.conv), before, (expected.ssm, expected.conv), strict=True):
        assert torch.equal(state[first], old[first])
        assert torch.equal(state[kept], other[kept])


DECODES = [(0, 1, FULL), (63, 1, window(0, 64)), (64, 1, window(64, 64)), (300, 1, window(64, 128)), (700, 1, FULL)]
# The window of (250, 20) begins at another block in the midst of a tile.
PROMPTS = [(0, 2, FULL), (62, 3, window(64, 64)), (250, 20, window(64, 64)), (257, 33, window(0, 64)), (100, 9, FULL)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 16), (6, 2, 24), (5, 1, 40)])
@pytest.mark.parametrize("parts", [DECODES, PROMPTS, [PROMPTS[2], DECODES[3], PROMPTS[0]]], ids=["one", "many", "mix"])
def test_attention_is_that_of_its_twin(parts, heads, groups, width, dtype):
    problem = Attention(parts, heads, groups, width, DEVICE, dtype)
    found = problem.attend(triton_kernels())
    assert found.dtype == dtype and found.is_contiguous()
    wide = problem.queries, problem.keys, problem.values
    problem.queries, problem.keys, problem.values = (each.double() for each in wide)
    expected = problem.attend(Wide())
    assert_close(found, expected, TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE)


@pytest.mark.parametrize("chosen", range(len(PROMPTS)))
def test_where_a_prompt_is_cut_changes_nothing_that_it_attends_to(chosen):
    problem = Attention(PROMPTS, 6, 2, 24, DEVICE)
    whole = problem.attend(triton_kernels(), chosen)
    for cut in {1, PROMPTS[chosen][1] // 2}:
        parts = [problem.attend(triton_kernels(), chosen, -cut), problem.attend(triton_kernels(), chosen, cut)]
        assert_close(torch.cat(parts), whole)


def test_neighbours_change_no_bit_of_what_a_sequence_attends_to(monkeypatch):
    monkeypatch.setattr(tables, "MAX_SPLITS", 4)
    parts = [*DECODES, PROMPTS[2], PROMPTS[0]]
    problem = Attention(parts, 6, 2, 24, DEVICE)
    together = problem.attend(triton_kernels())
    starts = torch.tensor([0, *(count for _, count, _ in parts)]).cumsum(0).tolist()
    for index in range(len(parts)):
        assert torch.equal(problem.attend(triton_kernels(), index), together[starts[index] : starts[index + 1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_are_stored_where_they_belong(dtype):
    wide = torch.randn(4, 60, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    k, v = wide[:, 3:27], wide[:, 30:54]
    pools = [[torch.zeros(3, 64, 2, 12, dtype=dtype, device=DEVICE) for _ in range(2)] for _ in range(2)]
    rows = torch.tensor([70, 3, -1, 191], device=DEVICE)
    triton_kernels().store_kv(k, v, *pools[0], rows)
    kept = rows >= 0
    reference.store_kv(k[kept], v[kept], *pools[1], rows[kept])
    for found, expected in zip(*pools, strict=True):
        assert_close(found, expected, 0 if dtype == torch.float32 else BF16_TOLERANCE)


@pytest.mark.parametrize("wrong", ["causal_conv", "selective_scan", "attend", "attend_listed", "store_kv"])
def test_the_check_at_the_start_names_a_kernel_that_differs(wrong):
    kernels = REFERENCE if INTERPRETED else triton_kernels()

    def slightly_wrong(*arguments):
        result = getattr(reference, wrong)(*arguments)
        if result is None:
            arguments[-1 if wrong == "attend_listed" else 2].mul_(1.02)
            return None
        return result * 1.02

    found = parity.disagreement(replace(kernels, **{wrong: slightly_wrong}), DEVICE, parity.Geometry(16, 4, 4, 2, 1, 8))
    assert found is not None and found.startswith((f"{wrong} ", f"{wrong},"))


def test_kernels_that_fail_their_check_are_not_used(monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCES", {torch.float32: 1e-12, torch.bfloat16: 1e-12})
    kernels, reason = loading.load_triton(DEVICE, 1)
    assert kernels is None
    assert "was tried beside the reference and is not used: causal_conv" in reason

    def fail(*arguments):
        raise RuntimeError("PTX was made for a newer driver")

    monkeypatch.setattr(attention, "tile_tokens", fail)
    monkeypatch.setattr(parity, "disagreement", fail)
    assert loading.load_triton(DEVICE, 1) == (
        None,
        reason.split(":")[0] + ": RuntimeError: PTX was made for a newer driver",
    )


def test_a_model_gives_the_same_logits_and_memory_replayed_and_launched():
    sides = [model_of(kernels) for kernels in (REFERENCE, triton_kernels())]
    reading = [
        # Two prompts; one decodes beside the other's next tokens; both decode, in another order.
        [SequenceChunk(range(9), 0, 3, [5], FULL), SequenceChunk(range(3, 29), 0, 1, [7], window(0, 64))],
        [SequenceChunk([4], 9, 3, [5], FULL, is_decode=True), SequenceChunk([6, 7], 26, 1, [7], window(0, 64))],
        [SequenceChunk([8], 28, 1, [7], window(0, 64), is_decode=True), SequenceChunk([9], 10, 3, [5], FULL, 1, True)],
    ]
    logits = [torch.cat([model(Batch.pack(step, DEVICE), *pools) for step in reading]) for model, *pools in sides]
    assert_close(logits[1], logits[0])
    for one, other in zip(sides[1][1:], sides[0][1:], strict=True):
        for name in ("ssm", "conv") if isinstance(one, StatePool) else ("keys", "values"):
            assert_close(getattr(one, name), getattr(other, name))


def test_replayed_steps_agree_with_launched_ones():
    model, states, blocks = model_of(triton_kernels())
    if not INTERPRETED:
        graphs, reason = DecodeGraphs.verified(model, states, blocks, DEVICE, 3)
        assert graphs is not None, reason
        return
    from fakes_triton import CallingRecorder

    before = states.ssm.clone(), blocks.keys.clone()
    graphs = DecodeGraphs(model, states, blocks, CallingRecorder(), 3)
    assert graphs.disagreement() is None
    # Padding rows have written nothing: only one slot and three rows of one block are not what they were.
    assert (states.ssm != before[0]).any(-1).any(-1).any(0).sum() <= 1
    assert (blocks.keys != before[1]).any(-1).any(-1).any(0).sum() == 3
