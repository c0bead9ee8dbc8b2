"""What every selective scan over packed rows must do. `test_triton_scan` runs these same tests on the Triton kernels.

Every element of a result or gradient is a sum of products, and may differ from that of a loop over tokens in float64
by TOLERANCE of the same sum over absolute values: a decay exp(-x) is known to about x / 1e7 of itself, and FLOOR
forgives those so small that this is too much. Where the result is bf16, it may be off by a further BF16 of itself.
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
TOLERANCE, FLOOR = 1e-5, 1e-15
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


def loop(u, dt, a, b, c, d, h0, reset, decay=lambda dt, a: torch.exp(dt * a)):
    h, rows = h0, []
    for t in range(u.shape[1]):
        h = h.masked_fill(reset[:, t, None, None], 0.0)
        h = decay(dt[:, t, :, None], a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        rows.append((h * c[:, t, None]).sum(-1) + d * u[:, t])
    return torch.stack(rows, 1), h


def unsigned_loop(*arguments):
    """For absolute values: a decay whose derivative by dt is counted as positive, too."""
    return loop(*arguments, decay=lambda dt, a: torch.exp(dt.detach() * a) * (1 + (dt - dt.detach()) * -a.detach()))


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


def gradients(scan, leaves, reset, weights):
    """y, the final state, and the gradients of all inputs under the weights on both."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    results = scan(*leaves, reset)
    torch.autograd.backward(results, weights)
    return [x.detach().cpu() for x in results] + [leaf.grad.cpu() for leaf in leaves]


def everything(values, reset):
    """What `gradients` gives for the scan under test."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (values[0], values[6])]
    tensors = ([x.to(DEVICE) for x in group] for group in (values, weights))
    return gradients(MODULE.selective_scan, next(tensors), reset.to(DEVICE), next(tensors)), weights


def assert_right(values, reset):
    results, weights = everything(values, reset)
    exact, exact_weights = [v.double() for v in values], [w.double() for w in weights]
    expected = gradients(loop, exact, reset, exact_weights)
    unsigned = [v if k == 2 else v.abs() for k, v in enumerate(exact)]
    sums = gradients(unsigned_loop, unsigned, reset, [w.abs() for w in exact_weights])
    for name, got, right, sum_ in zip(NAMES, results, expected, sums, strict=True):
        allowed = TOLERANCE * sum_ + FLOOR + (BF16 * right.abs() if got.dtype == torch.bfloat16 else 0)
        error = (got.double() - right).abs()
        assert (error <= allowed).all(), f"{name}: off by {(error / allowed).max():.1f} times what is allowed"
    return results


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
    with mock.patch.multiple(MODULE, **sizes):
        assert_right(values, reset)


def test_in_the_sizes_of_real_use():
    values = inputs(1, MODULE.CHUNK + 5, 33)
    reset = no_resets(values)
    reset[0, [MODULE.CHUNK // 2, MODULE.CHUNK + 1]] = True
    assert_right(values, reset)


@pytest.mark.parametrize("sizes", SIZES)
def test_bf16_activations_are_scanned_in_fp32_and_rounded_once(sizes):
    values = inputs(2, 13, 5)
    for k in (0, 1, 3, 4):
        values[k] = values[k].bfloat16()
    reset = no_resets(values)
    reset[1, 6] = True
    with mock.patch.multiple(MODULE, **sizes):
        results = assert_right(values, reset)
    assert [r.dtype for r in results] == [values[0].dtype, torch.float32, *(v.dtype for v in values)]


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
            torch.testing.assert_close(torch.cat([head, tail], 1), y, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(end, final, rtol=1e-5, atol=1e-5)


def test_a_call_gives_the_same_bits_every_time():
    values = inputs(2, 9, 20)
    with mock.patch.multiple(MODULE, **SIZES[-1]):
        first, second = (everything(values, no_resets(values))[0] for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
