import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.request import SamplingParams
from model.engine.sampler import Sampler


def params(**values: float | int | None) -> SamplingParams:
    return SamplingParams(max_tokens=1, **values)  # type: ignore[arg-type]


def frequencies(sampler: Sampler, logits: torch.Tensor, count: int = 4000) -> dict[int, float]:
    drawn = Counter(sampler.draw(logits) for _ in range(count))
    return {token: number / count for token, number in drawn.items()}


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_greedy_takes_the_largest_and_the_lower_id_of_equals() -> None:
    sampler = Sampler(params(temperature=0.0))
    assert sampler.draw(torch.tensor([0.0, 3.0, 3.0, 1.0])) == 1
    assert sampler.draw(torch.tensor([0.0, 3.0, 3.0, 1.0]), [0, 2, 3]) == 2
    assert sampler.draw(torch.tensor([-math.inf, -5.0])) == 1


def test_temperature_one_draws_the_softmax() -> None:
    drawn = frequencies(Sampler(params(seed=1)), LOGITS)
    # Four standard deviations of 4000 draws are 0.032 at most.
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert drawn[token] == pytest.approx(probability, abs=0.032)


def test_temperature_sharpens() -> None:
    squares = [0.25, 0.09, 0.0225, 0.0025]
    drawn = frequencies(Sampler(params(seed=2, temperature=0.5)), LOGITS)
    for token, square in enumerate(squares):
        assert drawn.get(token, 0) == pytest.approx(square / sum(squares), abs=0.032)
    assert set(frequencies(Sampler(params(seed=2, temperature=1e-9)), LOGITS, 100)) == {0}


def test_top_k_keeps_the_most_probable() -> None:
    drawn = frequencies(Sampler(params(seed=3, top_k=2)), LOGITS)
    assert set(drawn) == {0, 1}
    assert drawn[0] == pytest.approx(0.625, abs=0.032)
    assert set(frequencies(Sampler(params(seed=3, top_k=1)), LOGITS, 50)) == {0}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.0, {0}), (0.45, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(frequencies(Sampler(params(seed=4, top_p=top_p)), LOGITS, 1500)) == kept


def test_a_seed_repeats_and_others_differ() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    draws = {
        seed: [
            [sampler.draw(logits) for _ in range(20)]
            for sampler in (Sampler(params(seed=seed)), Sampler(params(seed=seed)))
        ]
        for seed in (0, 1, -7, 2**63 - 1)
    }
    for first, second in draws.values():
        assert first == second
    assert len({tuple(first) for first, _ in draws.values()}) == 4
    unseeded = [[sampler.draw(logits) for _ in range(20)] for sampler in (Sampler(params()), Sampler(params()))]
    assert unseeded[0] != unseeded[1]


def test_a_sampler_does_not_hear_the_others() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    alone = Sampler(params(seed=5))
    expected = [alone.draw(logits) for _ in range(10)]
    torch.manual_seed(9)
    first, other = Sampler(params(seed=5)), Sampler(params(seed=6))
    got = []
    for _ in range(10):
        got.append(first.draw(logits))
        other.draw(logits)
        torch.rand(3)
    assert got == expected


@given(
    allowed=st.sets(st.integers(0, 29), min_size=1).map(sorted),
    seed=st.integers(0, 100),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
    top_k=st.integers(0, 3),
    top_p=st.floats(0, 1),
)
@settings(deadline=None)
def test_only_allowed_tokens_are_drawn(
    allowed: list[int], seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed))
    sampler = Sampler(params(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p))
    token = sampler.draw(logits, allowed)
    assert token in allowed
    if temperature == 0 or top_k == 1:
        assert token == max(allowed, key=lambda token: float(logits[token]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(ArithmeticError, match="NaN"):
        Sampler(params(temperature=0.0)).draw(torch.tensor([0.0, bad, 1.0]))
