"""A matrix in strips is the matrix, and products with it are those of torch and do not depend on who shares them."""

import pytest
import torch
from fakes_model import kernels_at
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels import REFERENCE, Kernels
from model.kernels.build import build
from model.kernels.native import InstructionSet, load_native
from model.layers.groups import round_rows
from model.layers.matrix import Matrix

DTYPES = [torch.float32, torch.bfloat16, torch.int8]
SIZES = st.integers(1, 150)


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    path, reason = build()
    if path is None:
        pytest.skip(f"no native kernels on this machine: {reason}")


def made(
    out_size: int, in_size: int, dtype: torch.dtype, kernels: Kernels, *, pack: bool = True
) -> tuple[Matrix, torch.Tensor]:
    """A packed matrix whose padding held anything, and what it was."""
    generator = torch.Generator().manual_seed(out_size * 1000 + in_size)
    matrix = Matrix(out_size, in_size, dtype, kernels)
    matrix.weight.fill_(float("nan") if dtype.is_floating_point else 77)
    matrix.fill(torch.randn(out_size, in_size, generator=generator))
    plain = matrix.plain.clone()
    if pack:
        matrix.pack()
    return matrix, plain


@settings(max_examples=60, deadline=None)
@given(out_size=SIZES, in_size=SIZES, dtype=st.sampled_from(DTYPES))
def test_packing_loses_nothing(out_size: int, in_size: int, dtype: torch.dtype) -> None:
    matrix, plain = made(out_size, in_size, dtype, REFERENCE)
    assert torch.equal(matrix.plain, plain)
    matrix.pack()
    assert torch.equal(matrix.plain, plain)
    indices = torch.arange(out_size).flip(0)
    assert torch.equal(matrix.rows(indices), plain.float()[indices])
    unpacked = made(out_size, in_size, dtype, REFERENCE, pack=False)[0]
    assert torch.equal(matrix.rows(indices), unpacked.rows(indices))


def test_a_matrix_is_filled_part_by_part_and_knows_what_it_holds() -> None:
    weight = torch.randn(37, 70, generator=torch.Generator().manual_seed(2))
    for dtype in DTYPES:
        whole, parts = (Matrix(37, 70, dtype, REFERENCE) for _ in range(2))
        whole.fill(weight)
        parts.fill(weight[20:], first=20)
        parts.fill(weight[:20])
        assert torch.equal(whole.plain, parts.plain)
        assert whole.holds(weight) and not whole.holds(1.01 * weight)


@pytest.mark.parametrize("level", [*InstructionSet])
@settings(max_examples=80, deadline=None)
@given(
    out_size=SIZES,
    in_size=SIZES,
    num_rows=st.integers(1, 23),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_torch_and_a_row_is_alone(
    level: InstructionSet, out_size: int, in_size: int, num_rows: int, dtype: torch.dtype, seed: int
) -> None:
    kernels = kernels_at(level)
    matrix, plain = made(out_size, in_size, dtype, kernels)
    wide = torch.randn(num_rows, in_size + 7, generator=torch.Generator().manual_seed(seed))
    x = wide[:, 3 : 3 + in_size]
    found = matrix(x)
    # Where the CPU multiplies pairs of bfloat16, activations are rounded to it first; for int8 weights by groups.
    rounds = dtype == torch.bfloat16 and level is InstructionSet.AVX512BF16
    if dtype == torch.int8:
        whole, scales = round_rows(x)
        met = (whole.double().view(*scales.shape, -1) * scales.double()[..., None]).flatten(1)[:, :in_size]
    else:
        met = (x.bfloat16() if rounds else x).double()
    expected = met @ plain.double().T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6 * in_size)
    alone = torch.cat([matrix(x[row : row + 1]) for row in range(num_rows)])
    assert torch.equal(alone, found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    best = load_native(1)[0]
    assert best is not None
    level = next(each for each in reversed(InstructionSet) if f"native-{each.name.lower()}" == best.name)
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(1))
    one, three = (made(1000, 400, dtype, kernels_at(level, threads))[0](x) for threads in (1, 3))
    assert torch.equal(one, three)
