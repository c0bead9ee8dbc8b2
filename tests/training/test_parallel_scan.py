"""What every selective scan over packed rows must do. `test_triton_scan` runs these same tests on the Triton kernels.

Against a loop over tokens in float64, an fp32 result may be off by TOLERANCE of its largest element, plus FLOOR for
what has decayed to almost nothing; a bf16 result by BF16 of its largest element more.
"""

import importlib
import os
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

NAME = os.environ.get("SCAN_UNDER_TEST", "training.parallel_scan")
MODULE = importlib.import_module(NAME)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if NAME == "training.triton_scan" and not INTERPRETED else "cpu"
TOLERANCE, FLOOR = 3e-6, 1e-9
BF16 = 2**-7 if INTERPRETED else 2**-8  # Triton's interpreter cuts off where the GPU rounds to nearest
NAMES = ["y", "final", "u", "dt", "a", "b", "c", "d", "h0"]
# Small enough that a few tokens fill several chunks, and that work is cut up in every way there is.
SIZES = {
    "training.parallel_scan": [{"CHUNK": 1}, {"CHUNK": 6, "PIECE": 1}, {"CHUNK": 8, "PIECE": 1 << 11}],
    "training.triton_scan": [
        {"CHUNK": 4, "TILE": 4, "BACKWARD_TILE": 4, "BLOCK": 16},
        {"CHUNK": 8, "TILE": 4, "BACKWARD_TILE": 2, "SCRATCH_BYTES": 1},
    ],
}[NAME]


def loop(u, dt, a, b, c, d, h0, reset):
    h, rows = h0, []
    for t in range(u.shape[1]):
        h = h.masked_fill(reset[:, t, None, None], 0.0)
        h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        rows.append((h * c[:, t, None]).sum(-1) + d * u[:, t])
    return torch.stack(rows, 1), h


def inputs(rows, tokens, inner, scales=(1.0,), seed=0):
    """u, dt, a, b, c, d, h0 in fp32; each token's dt is of one of the scales."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    scale = torch.tensor(scales)[torch.randint(len(scales), (rows, tokens, 1), generator=generator)]
    return [
        normal(rows, tokens, inner),
        torch.nn.functional.softplus(normal(rows, tokens, inner) - 2) * scale,
        -torch.exp(0.5 * normal(inner, 16)),
        normal(rows, tokens, 16),
        normal(rows, tokens, 16),
        normal(inner),
        normal(rows, inner, 16),
    ]


def no_resets(values):
    return torch.zeros(values[0].shape[:2], dtype=torch.bool)


def everything(scan, values, reset, dtype=None):
    """y, the final state, and the gradients of all inputs under fixed random weights on both."""
    leaves = [v.to(DEVICE, dtype or v.dtype, copy=True).requires_grad_() for v in values]
    y, final = scan(*leaves, reset.to(DEVICE))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(DEVICE, x.dtype) for x in (y, final)]
    torch.autograd.backward([y, final], weights)
    return [x.detach().cpu() for x in (y, final)] + [leaf.grad.cpu() for leaf in leaves]


def assert_close(results, expected):
    for name, got, exact in zip(NAMES, results, expected, strict=True):
        error, scale = (got.double() - exact).abs().max(), exact.abs().max()
        rounding = BF16 if got.dtype == torch.bfloat16 else 0
        assert error <= (TOLERANCE + rounding) * scale + FLOOR, f"{name}: {error:.1e} of {scale:.1e}"


@st.composite
def cases(draw):
    rows, tokens, inner = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 40))
    # 1e-6 leaves the state as it is; 1e3 makes every decay exactly zero.
    scales = draw(st.lists(st.sampled_from([1e-6, 0.1, 1.0, 10.0, 1e3]), min_size=1, max_size=3))
    begins = st.lists(st.sampled_from([False, False, False, True]), min_size=tokens, max_size=tokens)
    reset = torch.tensor([draw(begins) for _ in range(rows)])
    return inputs(rows, tokens, inner, scales, draw(st.integers(0, 99))), reset, draw(st.sampled_from(SIZES))


@given(cases())
@settings(max_examples=100 if NAME == "training.parallel_scan" else 12, deadline=None)
def test_values_and_gradients_are_those_of_a_float64_loop(case):
    values, reset, sizes = case
    expected = everything(loop, values, reset, torch.float64)
    with mock.patch.multiple(MODULE, **sizes):
        assert_close(everything(MODULE.selective_scan, values, reset), expected)


def test_in_the_sizes_of_real_use():
    values = inputs(1, MODULE.CHUNK + 5, 33)
    reset = no_resets(values)
    reset[0, [MODULE.CHUNK // 2, MODULE.CHUNK + 1]] = True
    assert_close(everything(MODULE.selective_scan, values, reset), everything(loop, values, reset, torch.float64))


@pytest.mark.parametrize("sizes", SIZES)
def test_bf16_activations_are_scanned_in_fp32_and_rounded_once(sizes):
    values = inputs(2, 13, 5)
    for k in (0, 1, 3, 4):
        values[k] = values[k].bfloat16()
    reset = no_resets(values)
    reset[1, 6] = True
    with mock.patch.multiple(MODULE, **sizes):
        results = everything(MODULE.selective_scan, values, reset)
    dtypes = [values[0].dtype, torch.float32, *(v.dtype for v in values)]
    assert [r.dtype for r in results] == dtypes
    # The weights on y are bf16 too, so the loop gets the same.
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=generator).to(r.dtype).double() for r in results[:2]]
    leaves = [v.double().requires_grad_() for v in values]
    outputs = loop(*leaves, reset)
    torch.autograd.backward(outputs, weights)
    assert_close(results, [x.detach() for x in outputs] + [leaf.grad for leaf in leaves])


@pytest.mark.parametrize("sizes", SIZES)
def test_nothing_crosses_the_beginning_of_a_document(sizes):
    values = inputs(1, 12, 3)
    changed = [v.clone() for v in values]
    for k in (0, 3, 6):
        changed[k].view(-1)[:9] *= 1e15
    reset = no_resets(values)
    reset[0, 5] = True
    with mock.patch.multiple(MODULE, **sizes):
        first, second = (MODULE.selective_scan(*(v.to(DEVICE) for v in x), reset.to(DEVICE)) for x in (values, changed))
        assert not torch.equal(first[0][:, :5], second[0][:, :5])
        assert torch.equal(first[0][:, 5:], second[0][:, 5:])
        assert torch.equal(first[1], second[1])
        leaves = [v.to(DEVICE).requires_grad_() for v in changed]
        y, final = MODULE.selective_scan(*leaves, reset.to(DEVICE))
        (y[:, 5:].sum() + final.sum()).backward()
    for k in (0, 1, 3, 4):
        assert not leaves[k].grad[:, :5].any()
    assert not leaves[6].grad.any()


@pytest.mark.parametrize("sizes", SIZES)
def test_a_row_may_be_cut_anywhere_and_carried_on(sizes):
    values = inputs(2, 11, 4)
    u, dt, a, b, c, d, h0 = (v.to(DEVICE) for v in values)
    reset = no_resets(values).to(DEVICE)
    reset[0, 3] = reset[1, 9] = True
    with mock.patch.multiple(MODULE, **sizes):
        y, final = MODULE.selective_scan(u, dt, a, b, c, d, h0, reset)
        for cut in (1, 7):
            head, state = MODULE.selective_scan(
                u[:, :cut], dt[:, :cut], a, b[:, :cut], c[:, :cut], d, h0, reset[:, :cut]
            )
            tail, end = MODULE.selective_scan(
                u[:, cut:], dt[:, cut:], a, b[:, cut:], c[:, cut:], d, state, reset[:, cut:]
            )
            torch.testing.assert_close(torch.cat([head, tail], 1), y, rtol=TOLERANCE, atol=TOLERANCE)
            torch.testing.assert_close(end, final, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_call_gives_the_same_bits_every_time():
    values = inputs(2, 9, 20)
    with mock.patch.multiple(MODULE, **SIZES[-1]):
        first, second = (everything(MODULE.selective_scan, values, no_resets(values)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
