"""The reference kernels against the formulas of their docstrings, in float64, one scalar loop at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels import REFERENCE, choose, forced

INNER, N, K, SLOTS = 6, 4, 4, 5
lengths = st.lists(st.integers(0, 150), min_size=1, max_size=4).filter(any)


def ragged(sizes: list[int], seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    return start, torch.randperm(SLOTS, generator=generator)[: len(sizes)], generator


def naive_conv(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    inputs = torch.cat((state, x)).double()
    rows = [(inputs[t : t + K] * weight).sum(0) for t in range(len(x))]
    out = torch.stack(rows) if rows else inputs.new_zeros(0, INNER)
    out = out if bias is None else out + bias
    return out / (1 + torch.exp(-out)), inputs[len(x) :]


def naive_scan(
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None,
    h: Tensor,
) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c, h = (x.double() for x in (u, dt, a, b, c, h))
    rows = []
    for t in range(len(u)):
        delta = torch.log1p(torch.exp(dt[t] + dt_bias.double()))
        h = torch.exp(delta * a) * h + (delta * u[t])[None] * b[t][:, None]
        y = (c[t][:, None] * h).sum(0) + d.double() * u[t]
        rows.append(y if z is None else y * z[t].double() * torch.sigmoid(z[t].double()))
    return torch.stack(rows) if rows else u.new_zeros(0, INNER), h


@settings(max_examples=30, deadline=None)
@given(sizes=lengths, with_bias=st.booleans(), seed=st.integers(0, 2**16))
def test_causal_conv(sizes: list[int], with_bias: bool, seed: int) -> None:
    start, slots, generator = ragged(sizes, seed)
    # The input is the left half of a wider tensor, as it comes out of the projection.
    x = torch.randn(sum(sizes), 2 * INNER, generator=generator)[:, :INNER]
    weight, bias = torch.randn(K, INNER, generator=generator), torch.randn(INNER, generator=generator)
    state = torch.randn(SLOTS, K - 1, INNER, generator=generator)
    before = state.clone()
    y = REFERENCE.causal_conv(x, weight, bias if with_bias else None, state, start, slots)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((sum(sizes), INNER), torch.float32, True)
    for index, slot in enumerate(slots.tolist()):
        rows = slice(int(start[index]), int(start[index + 1]))
        expected, final = naive_conv(x[rows], weight, bias if with_bias else None, before[slot])
        torch.testing.assert_close(y[rows].double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(state[slot].double(), final)
    untouched = [slot for slot in range(SLOTS) if slot not in slots]
    assert torch.equal(state[untouched], before[untouched])


@settings(max_examples=30, deadline=None)
@given(sizes=lengths, with_gate=st.booleans(), seed=st.integers(0, 2**16))
def test_selective_scan(sizes: list[int], with_gate: bool, seed: int) -> None:
    start, slots, generator = ragged(sizes, seed)
    num_tokens = sum(sizes)
    u, dt, z = torch.randn(3, num_tokens, 2 * INNER, generator=generator)[:, :, INNER:].unbind()
    b, c = torch.randn(num_tokens, 2 * N, generator=generator).chunk(2, dim=1)
    a = -torch.rand(N, INNER, generator=generator) * 8
    d, dt_bias = torch.randn(2, INNER, generator=generator).unbind()
    dt_bias = dt_bias - 3
    state = torch.randn(SLOTS, N, INNER, generator=generator)
    before = state.clone()
    gate = z if with_gate else None
    y = REFERENCE.selective_scan(u, dt, dt_bias, a, b, c, d, gate, state, start, slots)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((num_tokens, INNER), torch.float32, True)
    for index, slot in enumerate(slots.tolist()):
        rows = slice(int(start[index]), int(start[index + 1]))
        expected, final = naive_scan(
            u[rows], dt[rows], dt_bias, a, b[rows], c[rows], d, z[rows] if with_gate else None, before[slot]
        )
        torch.testing.assert_close(y[rows].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state[slot].double(), final, rtol=1e-4, atol=1e-5)
    untouched = [slot for slot in range(SLOTS) if slot not in slots]
    assert torch.equal(state[untouched], before[untouched])


def test_a_large_time_step_forgets_and_stays_finite() -> None:
    u = torch.full((3, INNER), 2.0)
    one, zero = torch.ones(3, N), torch.zeros(INNER)
    state = torch.full((1, N, INNER), 1e6)
    y = REFERENCE.selective_scan(
        u, torch.full((3, INNER), 200.0), zero, torch.full((N, INNER), -1.0), one, one, zero, None, state,
        torch.tensor([0, 3]), torch.tensor([0]),
    )  # fmt: skip
    assert torch.equal(state, torch.full((1, N, INNER), 400.0))
    assert torch.equal(y, torch.full((3, INNER), N * 400.0))


def test_the_door_names_what_it_gives() -> None:
    assert forced("reference") is REFERENCE
    kernels, reason = choose("mps", 1)
    assert kernels is REFERENCE
    assert "mps" in reason
    with pytest.raises(ValueError, match="'triton'"):
        forced("triton")
