"""The native kernels against their reference twins in float64, at every instruction set this CPU has."""

import ctypes

import pytest
import torch
from fakes_model import kernels_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels import choose, forced, native, reference
from model.kernels.build import build
from model.kernels.native import InstructionSet, load_native

# Of the largest value of the float64 result: rounding of float32 over some dozen tokens.
TOLERANCE = 1e-5
LEVELS = [*InstructionSet]
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", autouse=True)
def library() -> ctypes.CDLL:
    path, reason = build()
    if path is None:
        pytest.skip(f"no native kernels on this machine: {reason}")
    return native._open(path)


class Problem:
    """A ragged step with random inputs that are views of larger buffers, for a pool with slots to spare."""

    def __init__(self, lengths: list[int], inner: int, num_states: int, num_taps: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        num_tokens, num_slots = sum(lengths), len(lengths) + 2
        self.query_start = torch.tensor([0, *lengths]).cumsum(0)
        self.state_slots = torch.randperm(num_slots, generator=generator)[: len(lengths)]
        xz = randn(num_tokens, 2 * inner + 3)
        self.x, self.z = xz[:, 1 : inner + 1], xz[:, inner + 1 : 2 * inner + 1]
        steps = randn(num_tokens, inner + 2 * num_states + 5)
        self.dt = steps[:, :inner] * 2 - 2
        self.b, self.c = steps[:, inner : inner + num_states], steps[:, inner + num_states :][:, :num_states]
        self.dt_bias, self.d = randn(inner), randn(inner)
        self.a = -torch.exp(randn(num_states, inner))
        self.weight, self.bias = randn(num_taps, inner), randn(inner)
        self.ssm, self.conv = randn(num_slots, num_states, inner), randn(num_slots, num_taps - 1, inner)

    def scan_inputs(self, gated: bool) -> tuple[Tensor | None, ...]:
        return self.x, self.dt, self.dt_bias, self.a, self.b, self.c, self.d, self.z if gated else None

    def steps(self) -> tuple[Tensor, Tensor]:
        return self.query_start, self.state_slots


lengths = st.lists(st.sampled_from([0, 1, 2, 3, 5, 17, 40]), min_size=1, max_size=4)
inners = st.sampled_from([1, 3, 4, 8, 15, 16, 17, 31, 32, 33, 67])
problems = st.builds(
    Problem, lengths, inners, st.sampled_from([1, 4, 15, 16, 17]), st.integers(1, 6), st.integers(0, 99)
)


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    scale = expected.abs().amax().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE * max(scale, 1.0))


@pytest.mark.parametrize("level", LEVELS)
@given(problem=problems, gated=st.booleans())
@PROPERTY
def test_scan_gives_the_outputs_and_states_of_its_twin(level: InstructionSet, problem: Problem, gated: bool) -> None:
    ssm = problem.ssm.double()
    expected = reference.selective_scan(*map(double, problem.scan_inputs(gated)), ssm, *problem.steps())
    actual = kernels_at(level).selective_scan(*problem.scan_inputs(gated), problem.ssm, *problem.steps())
    assert_close(actual, expected)
    assert_close(problem.ssm, ssm)


@pytest.mark.parametrize("level", LEVELS)
@given(problem=problems, biased=st.booleans())
@PROPERTY
def test_conv_gives_the_outputs_and_states_of_its_twin(level: InstructionSet, problem: Problem, biased: bool) -> None:
    bias = problem.bias if biased else None
    conv = problem.conv.double()
    expected = reference.causal_conv(problem.x.double(), problem.weight.double(), double(bias), conv, *problem.steps())
    actual = kernels_at(level).causal_conv(problem.x, problem.weight, bias, problem.conv, *problem.steps())
    assert_close(actual, expected)
    assert torch.equal(problem.conv.double(), conv)


@pytest.mark.parametrize("level", LEVELS)
@given(length=st.integers(1, 40), cut=st.integers(0, 40), inner=inners, seed=st.integers(0, 99))
@PROPERTY
def test_a_split_of_the_tokens_changes_no_bit(
    level: InstructionSet, length: int, cut: int, inner: int, seed: int
) -> None:
    kernels, cut = kernels_at(level), min(cut, length)
    whole, parts = Problem([length], inner, 16, 4, seed), Problem([length], inner, 16, 4, seed)
    slot = whole.state_slots

    def run(problem: Problem, start: int, end: int) -> tuple[Tensor, Tensor]:
        rows = slice(start, end)
        step = torch.tensor([0, end - start]), slot
        u = kernels.causal_conv(problem.x[rows], problem.weight, problem.bias, problem.conv, *step)
        y = kernels.selective_scan(
            u,
            problem.dt[rows],
            problem.dt_bias,
            problem.a,
            problem.b[rows],
            problem.c[rows],
            problem.d,
            problem.z[rows],
            problem.ssm,
            *step,
        )
        return u, y

    together = run(whole, 0, length)
    first, second = run(parts, 0, cut), run(parts, cut, length)
    for one, *two in zip(together, first, second, strict=True):
        assert torch.equal(one, torch.cat(two))
    assert torch.equal(whole.ssm, parts.ssm) and torch.equal(whole.conv, parts.conv)


@pytest.mark.parametrize("inner", [768, 1001])
def test_the_number_of_threads_changes_no_bit(inner: int) -> None:
    results = []
    for num_threads in (1, 2, 5):
        problem = Problem([301, 1, 211], inner, 16, 4, seed=7)
        kernels, reason = load_native(num_threads)
        assert kernels is not None, reason
        y = kernels.selective_scan(*problem.scan_inputs(gated=True), problem.ssm, *problem.steps())
        results.append((y, problem.ssm))
    for y, ssm in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(ssm, results[0][1])


@pytest.mark.parametrize("level", LEVELS)
def test_exp_is_as_exact_as_it_says(level: InstructionSet, library: ctypes.CDLL) -> None:
    kernels_at(level)
    x = torch.linspace(-87, 87, 200_003)
    y = torch.empty_like(x)
    library.fano_exp(x.data_ptr(), y.data_ptr(), x.numel(), level)
    relative = (y.double() / torch.exp(x.double()) - 1).abs()
    # 2e-7 of the polynomial; the rounding of x * log2(e) adds to it in proportion to x.
    assert (relative <= 2e-7 + 1e-7 * x.abs()).all()
    assert relative.max() > 0


@pytest.mark.parametrize("level", LEVELS)
def test_exp_at_the_ends_of_the_range(level: InstructionSet, library: ctypes.CDLL) -> None:
    kernels_at(level)
    x = torch.tensor([float("nan"), float("-inf"), -1000.0, 0.0, 1000.0])
    y = torch.empty_like(x)
    library.fano_exp(x.data_ptr(), y.data_ptr(), x.numel(), level)
    assert y[0].isnan()
    assert y[1] == y[2] == 2.0**-126
    assert abs(y[3].item() - 1) < 2e-7
    assert 1e38 < y[4] < float("inf")


def test_nan_in_one_sequence_stays_there() -> None:
    problem = Problem([3, 3], 16, 16, 4, seed=1)
    problem.x[0] = float("nan")
    kernels, reason = load_native(1)
    assert kernels is not None, reason
    y = kernels.selective_scan(*problem.scan_inputs(gated=True), problem.ssm, *problem.steps())
    assert y[:3].isnan().all() and not y[3:].isnan().any()


@pytest.mark.parametrize(
    ("query_start", "slots"),
    [([0, 4], [0]), ([0, 6], [0]), ([1, 5], [0]), ([0, 5], [3]), ([0, 5], [-1]), ([0, 7, 5], [0, 1])],
)
def test_sequences_that_do_not_fit_are_refused_before_anything_is_written(
    query_start: list[int], slots: list[int]
) -> None:
    problem = Problem([5], 8, 16, 4, seed=2)
    before = problem.ssm.clone(), problem.conv.clone()
    steps = torch.tensor(query_start), torch.tensor(slots)
    kernels = forced("native")
    with pytest.raises(AssertionError, match="do not fit"):
        kernels.selective_scan(*problem.scan_inputs(gated=True), problem.ssm, *steps)
    with pytest.raises(AssertionError, match="do not fit"):
        kernels.causal_conv(problem.x, problem.weight, problem.bias, problem.conv, *steps)
    assert torch.equal(problem.ssm, before[0]) and torch.equal(problem.conv, before[1])


def test_tensors_of_another_form_are_refused() -> None:
    problem = Problem([5], 8, 16, 4, seed=3)
    kernels = forced("native")
    with pytest.raises(AssertionError, match="float64"):
        kernels.causal_conv(problem.x.double(), problem.weight, None, problem.conv, *problem.steps())
    with pytest.raises(AssertionError, match="apart"):
        kernels.causal_conv(problem.x.t().contiguous().t(), problem.weight, None, problem.conv, *problem.steps())
    with pytest.raises(AssertionError, match="strides"):
        kernels.causal_conv(problem.x, problem.weight.t().contiguous().t(), None, problem.conv, *problem.steps())


def test_the_door_takes_the_widest_instruction_set(library: ctypes.CDLL) -> None:
    kernels, reason = choose("cpu", 1)
    best = InstructionSet(library.fano_best_isa())
    assert kernels.name == f"native-{best.name.lower()}"
    assert reason == f"{kernels.name}: the widest this CPU has"
    assert forced("reference").name == "reference"


def test_without_a_library_the_reason_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_library", lambda: None)
    kernels, reason = choose("cpu", 1)
    assert kernels.name == "reference"
    assert "python -m model.kernels.build" in reason


def test_a_file_that_is_no_library_is_not_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    path = tmp_path / "libfano.so"
    path.write_bytes(b"no library")
    monkeypatch.setattr(native, "find_library", lambda: path)
    kernels, reason = choose("cpu", 1)
    assert kernels.name == "reference"
    assert "cannot be loaded" in reason


def test_a_library_of_another_abi_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    native._open.cache_clear()
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    kernels, reason = load_native(1)
    assert kernels is None
    assert "ABI version" in reason


def test_an_instruction_set_the_cpu_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def fano_best_isa(self) -> int:
            return 0

    monkeypatch.setattr(native, "_open", lambda path: Library())
    with pytest.raises(ValueError, match="AVX512, expected at most PORTABLE"):
        load_native(1, InstructionSet.AVX512)
