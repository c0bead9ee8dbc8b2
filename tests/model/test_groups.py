"""int8 numbers in groups: how far they are from what they stand for, and what happens at the ends of the range."""

import pytest
import torch
from fakes_model import kernels_at
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels import REFERENCE
from model.kernels.build import build
from model.kernels.native import InstructionSet
from model.layers.groups import NUM_SCALES, dequantise, quantise, round_rows
from model.layers.matrix import Matrix


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    path, reason = build()
    if path is None:
        pytest.skip(f"no native kernels on this machine: {reason}")


def random_rows(num_rows: int, size: int, seed: int, *, heavy: bool = False) -> Tensor:
    rows = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed))
    return rows**3 if heavy else rows


@settings(max_examples=50, deadline=None)
@given(num_rows=st.integers(1, 40), size=st.integers(1, 200), seed=st.integers(0, 99), heavy=st.booleans())
def test_weights_are_within_half_a_step(num_rows: int, size: int, seed: int, heavy: bool) -> None:
    weight = random_rows(num_rows, size, seed, heavy=heavy)
    numbers, scales = quantise(weight)
    assert int(numbers.abs().max()) <= 127
    assert not numbers[:, size:].any()
    steps = scales.float().repeat_interleave(32, dim=1)[:, :size]
    found = dequantise(numbers, scales)[:, :size]
    assert bool(((found - weight).abs() <= 0.5001 * steps).all())
    peaks = torch.nn.functional.pad(weight.abs(), (0, numbers.shape[1] - size)).view(num_rows, -1, 32).amax(-1)
    # A bfloat16 is at most 2^-7 above the one before.
    assert bool((scales.float() <= peaks / 127 * (1 + 2.0**-7) ** NUM_SCALES).all())


def test_weights_lose_less_than_those_of_q8_0() -> None:
    """q8_0: groups of 32 with the scale that makes the largest 127, rounded to float16."""
    weight = random_rows(400, 512, 1)
    groups = weight.view(-1, 32)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    theirs = (groups / scale).round() * scale.half().float() - groups
    ours = dequantise(*quantise(weight)).view(-1, 32) - groups
    assert float(ours.square().sum()) < 0.93 * float(theirs.square().sum())


def test_weights_of_the_ends_of_the_range() -> None:
    weight = torch.zeros(5, 64)
    weight[1] = 1e-40
    weight[2, 3], weight[3, 3] = float("inf"), float("nan")
    weight[4] = 3e38 * torch.linspace(-1, 1, 64)
    found = dequantise(*quantise(weight))
    assert not found[0].any() and float(found[1].abs().max()) <= 1e-39
    assert bool(found[2:4, :32].isnan().all()) and not found[2:4, 32:].any()
    torch.testing.assert_close(found[4], weight[4], rtol=0, atol=3e38 / 200)


@settings(max_examples=50, deadline=None)
@given(num_rows=st.integers(1, 40), size=st.integers(1, 200), seed=st.integers(0, 99), heavy=st.booleans())
def test_activations_are_within_half_a_step(num_rows: int, size: int, seed: int, heavy: bool) -> None:
    x = random_rows(num_rows, size, seed, heavy=heavy)
    whole, scales = round_rows(x)
    assert float(whole.abs().amax()) == 127 and torch.equal(whole, whole.round())
    steps = scales.repeat_interleave(32, dim=1)[:, :size]
    assert bool((((whole[:, :size] * steps) - x).abs() <= 0.5001 * steps).all())


@pytest.mark.parametrize("level", [*InstructionSet])
def test_what_is_not_finite_does_not_disappear_and_stays_in_its_row(level: InstructionSet) -> None:
    weight = random_rows(21, 70, 3)
    matrix, twin = Matrix(21, 70, torch.int8, kernels_at(level)), Matrix(21, 70, torch.int8, REFERENCE)
    for each in (matrix, twin):
        each.fill(weight)
    matrix.pack()
    x = random_rows(6, 70, 4)
    clean = matrix(x)
    x[1, 69], x[2, 0], x[3, 40] = float("nan"), float("inf"), float("-inf")
    x[4] = 1e-38
    found = matrix(x)
    assert bool(found[1:4].isnan().all()) and bool(twin(x)[1:4].isnan().all())
    assert not found[4].any() and not twin(x)[4].any()
    assert torch.equal(found[[0, 5]], clean[[0, 5]])


@pytest.mark.parametrize("level", [*InstructionSet])
def test_whole_numbers_are_summed_up_exactly(level: InstructionSet) -> None:
    """At the ends of the range, where sums in 16 bits or in bfloat16 would go wrong."""
    generator = torch.Generator().manual_seed(6)
    signs = [torch.randint(0, 2, shape, generator=generator) * 2.0 - 1 for shape in ((48, 64), (9, 64))]
    signs[0][0] = signs[1][0]
    matrix = Matrix(48, 64, torch.int8, kernels_at(level))
    matrix.fill(127 * signs[0])
    matrix.pack()
    assert torch.equal(matrix(127 * signs[1]), 127.0**2 * signs[1] @ signs[0].T)
