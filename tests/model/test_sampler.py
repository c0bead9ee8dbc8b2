"""Drawing tokens: by the definitions, and the same alone and in any batch."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.engine.logprobs import token_logprobs
from model.engine.request import SamplingParams
from model.engine.sampler import Draw, Drawn, SequenceSampler, draw

VOCAB_SIZE = 60


def params(**values: object) -> SamplingParams:
    return SamplingParams(max_tokens=1, **values)  # type: ignore[arg-type]


def sampler(prompt: Sequence[int] = (), choice: int = 0, **values: object) -> SequenceSampler:
    return SequenceSampler(params(**values), prompt, choice)


def one(logits: Tensor, drawing: SequenceSampler, allowed: Sequence[int] | None = None) -> Drawn:
    (found,) = draw(logits[None], [Draw(drawing, allowed)])
    assert isinstance(found, Drawn)
    return found


def ids(logits: Tensor, drawing: SequenceSampler, count: int, allowed: Sequence[int] | None = None) -> list[int]:
    return [one(logits, drawing, allowed).token_id for _ in range(count)]


def frequencies(logits: Tensor, drawing: SequenceSampler, count: int = 4000) -> dict[int, float]:
    return {token: number / count for token, number in Counter(ids(logits, drawing, count)).items()}


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
# Four standard deviations of 4000 draws.
SPREAD = 0.032


def test_greedy_takes_the_largest_and_the_lower_id_of_equals() -> None:
    assert one(torch.tensor([0.0, 3.0, 3.0, 1.0]), sampler(temperature=0.0)).token_id == 1
    assert one(torch.tensor([0.0, 3.0, 3.0, 1.0]), sampler(temperature=0.0), [0, 2, 3]).token_id == 2
    assert one(torch.tensor([-math.inf, -5.0]), sampler(temperature=0.0)).token_id == 1


def test_temperature_one_draws_the_softmax_and_a_lower_one_sharpens() -> None:
    drawn = frequencies(LOGITS, sampler(seed=1))
    squared = frequencies(LOGITS, sampler(seed=2, temperature=0.5))
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert drawn[token] == pytest.approx(probability, abs=SPREAD)
        assert squared.get(token, 0) == pytest.approx(probability**2 / 0.365, abs=SPREAD)
    assert set(ids(LOGITS, sampler(seed=2, temperature=1e-9), 100)) == {0}


@pytest.mark.parametrize("temperature", [1e-9, 1e-46, 1e-50, 1e-300, 5e-324])
@pytest.mark.parametrize("values", [{}, {"top_p": 0.9}, {"top_k": 2, "min_p": 0.1}])
def test_the_limit_of_a_small_temperature_is_the_greedy_choice(temperature: float, values: dict[str, object]) -> None:
    near = torch.nextafter(torch.tensor(1e4), torch.tensor(0.0)).item()
    for logits in ([0.0, 1.0, 0.5, -1.0], [-1e4, near, 1e4, 0.0], [-1e4, -near, -1e4, -1e4], [-math.inf, -1e4, 1e4]):
        row = torch.tensor(logits)
        expected = int(row.argmax())
        assert ids(row, sampler(seed=6, temperature=temperature, **values), 20) == [expected] * 20


def test_a_temperature_without_bound_draws_from_all() -> None:
    assert set(ids(torch.tensor([1e4, -1e4, 0.0]), sampler(seed=6, temperature=1e308), 100)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.0}, {0}),
        ({"top_p": 0.45}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.9}, {0, 1, 2}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.8, "min_p": 0.1}, {0, 1}),
        ({"logit_bias": ((3, 100.0),)}, {3}),
        ({"logit_bias": ((0, -100.0), (1, -100.0))}, {2, 3}),
    ],
)
def test_what_is_left_out_is_never_drawn(values: dict[str, object], kept: set[int]) -> None:
    assert set(ids(LOGITS, sampler(seed=4, **values), 800)) == kept


def expected_distribution(logits: Tensor, wanted: SamplingParams, prompt: list[int], said: list[int]) -> list[float]:
    """The definitions, one number at a time."""
    values = [float(value) for value in logits.double()]
    if wanted.repetition_penalty != 1:
        for token in {*prompt, *said}:
            factor = wanted.repetition_penalty
            values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token, count in Counter(said).items():
        values[token] -= count * wanted.frequency_penalty + wanted.presence_penalty
    for token, bias in wanted.logit_bias:
        values[token] += bias
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token))
    weights = {token: math.exp((values[token] - values[ranked[0]]) / wanted.temperature) for token in ranked}
    kept = ranked[: wanted.top_k or len(ranked)]
    total, cumulative, nucleus = sum(weights[token] for token in kept), 0.0, []
    for token in kept:
        if not nucleus or cumulative < wanted.top_p * total or wanted.top_p == 1:
            nucleus.append(token)
        cumulative += weights[token]
    kept = [token for token in nucleus if weights[token] >= wanted.min_p * weights[nucleus[0]]]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(values))]


WANTED = [
    params(seed=1),
    params(seed=1, temperature=0.6, top_k=12),
    params(seed=1, temperature=1.4, top_p=0.7),
    params(seed=1, min_p=0.15, presence_penalty=1.1, frequency_penalty=0.4),
    params(seed=1, repetition_penalty=1.6, logit_bias=((3, 1.5), (7, -4.0))),
    params(seed=1, temperature=0.9, top_k=30, top_p=0.9, min_p=0.03, presence_penalty=-0.5, repetition_penalty=0.8),
]


@pytest.mark.parametrize("wanted", WANTED)
def test_the_distribution_is_that_of_the_definitions(wanted: SamplingParams) -> None:
    logits = 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(5))
    prompt, said = [1, 2, 3, 3], [3, 9, 9, 20]
    drawn = Counter[int]()
    for seed in range(3000):
        drawing = SequenceSampler(SamplingParams(**{**vars_of(wanted), "seed": seed}), prompt)
        for token in said:
            drawing.record(token)
        drawn[one(logits, drawing).token_id] += 1
    expected = expected_distribution(logits, wanted, prompt, said)
    assert {token for token in drawn if expected[token] == 0} == set()
    chi_square = sum((drawn[t] - 3000 * p) ** 2 / (3000 * p) for t, p in enumerate(expected) if p > 0)
    degrees = sum(p > 0 for p in expected) - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * max(1, degrees)), "five standard deviations of a chi-square"


def vars_of(wanted: SamplingParams) -> dict[str, object]:
    return {name: getattr(wanted, name) for name in SamplingParams.__slots__}


@pytest.mark.parametrize(
    ("values", "warpers"),
    [
        ({"temperature": 0.7, "top_k": 9}, [TemperatureLogitsWarper(0.7), TopKLogitsWarper(9)]),
        ({"top_p": 0.75}, [TopPLogitsWarper(0.75)]),
        ({"temperature": 1.3, "min_p": 0.2}, [TemperatureLogitsWarper(1.3), MinPLogitsWarper(0.2)]),
        (
            {"repetition_penalty": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
            [
                RepetitionPenaltyLogitsProcessor(1.4),
                TopKLogitsWarper(20),
                TopPLogitsWarper(0.9),
                MinPLogitsWarper(0.05),
            ],
        ),
    ],
)
def test_the_definitions_are_those_of_transformers(values: dict[str, object], warpers: list[object]) -> None:
    prompt = [4, 8, 15, 16, 23, 42]
    for seed in range(5):
        logits = 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
        scores = logits[None].double()
        for warper in warpers:
            scores = warper(torch.tensor([prompt]), scores)  # type: ignore[operator]
        expected = torch.softmax(scores, dim=1)[0]
        found = torch.tensor(expected_distribution(logits, params(**values), prompt, []), dtype=torch.float64)
        assert torch.allclose(found, expected, atol=1e-6)


anything = st.builds(
    params,
    temperature=st.sampled_from([0.0, 1e-6, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([0, 1, 7]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([(), ((3, 5.0),)]),
    logprobs=st.sampled_from([None, 0, 3]),
    seed=st.integers(0, 5),
)
allowances = st.one_of(st.none(), st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, unique=True).map(sorted))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(anything, allowances, st.integers(0, 2)), min_size=1, max_size=6),
    num_steps=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_row_draws_the_same_alone_and_in_any_batch(
    rows: list[tuple[SamplingParams, list[int] | None, int]], num_steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    together = [SequenceSampler(wanted, [1, 2], choice) for wanted, _, choice in rows]
    alone = [SequenceSampler(wanted, [1, 2], choice) for wanted, _, choice in rows]
    for _ in range(num_steps):
        logits = 3 * torch.randn(len(rows), VOCAB_SIZE, generator=generator)
        before = logits.clone()
        found = draw(logits, [Draw(each, allowed) for each, (_, allowed, _) in zip(together, rows, strict=True)])
        for row, (each, (_, allowed, _)) in enumerate(zip(alone, rows, strict=True)):
            assert found[row] == one(logits[row], each, allowed)
            assert allowed is None or found[row].token_id in allowed  # type: ignore[union-attr]
        assert torch.equal(logits, before), "the logits are left as they are"


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("vocab_size", [300, 16384, 65536])
def test_a_row_of_any_width_draws_the_same_for_any_number_of_rows_and_threads(vocab_size: int) -> None:
    logits = 3 * torch.randn(17, vocab_size, generator=torch.Generator().manual_seed(8))
    kinds: list[dict[str, object]] = [{"temperature": 0.0}, {"temperature": 1.2}, {"top_p": 0.7}, {"top_k": 99}]
    told = token_logprobs(logits, range(17), 3)
    alone = [one(row, sampler(seed=index, **kinds[index % 4])) for index, row in enumerate(logits)]
    for number in (1, 2):
        for num_rows in (1, 2, 3, 8, 17):
            draws = [Draw(sampler(seed=index, **kinds[index % 4])) for index in range(num_rows)]
            with threads(number):
                assert draw(logits[:num_rows], draws) == alone[:num_rows]
                assert token_logprobs(logits[:num_rows], range(num_rows), 3) == told[:num_rows]


def test_the_border_of_top_p_is_the_same_for_any_number_of_rows_and_threads() -> None:
    generator = torch.Generator().manual_seed(9)
    two = torch.tensor([10.0, 10.0])
    seed = next(seed for seed in range(99) if one(two, sampler(seed=seed)).token_id == 1)
    for _ in range(8):
        # Eighths, whose differences are exact: the border is near what is computed here.
        row = torch.cat((two, torch.randint(-24, 24, (65534,), generator=generator) / 8))
        # The second token is drawn if it is kept, and top_p decides that: the two nearest that decide otherwise.
        border = float(torch.softmax(row.double(), dim=0)[0])
        without, kept = border * (1 - 1e-9), border * (1 + 1e-9)
        while without < (middle := (without + kept) / 2) < kept:
            if one(row, sampler(seed=seed, top_p=middle)).token_id == 1:
                kept = middle
            else:
                without = middle
        for top_p, expected in ((without, 0), (kept, 1)):
            for number, num_rows in ((1, 1), (1, 3), (2, 1), (2, 3)):
                with threads(number):
                    draws = [Draw(sampler(seed=seed, top_p=top_p)) for _ in range(num_rows)]
                    assert draw(row.repeat(num_rows, 1), draws) == [Drawn(expected)] * num_rows


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [3, -3, -1, 2**64 - 1, -(2**63), 2**63, 0, *(3 + 2**bit for bit in range(2, 64))]
    drawn = {
        (seed, choice): tuple(ids(torch.zeros(VOCAB_SIZE), sampler(seed=seed, choice=choice), 12))
        for seed in seeds
        for choice in range(3)
    }
    assert len(set(drawn.values())) == len(drawn)


@pytest.mark.parametrize("values", [{}, {"top_p": 0.999}])
@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (1 - 2**-53, 4)])
def test_the_ends_of_the_unit_interval_are_the_first_and_the_last_that_can_be_drawn(
    values: dict[str, object], uniform: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = sampler(seed=1, **values)
    monkeypatch.setattr(drawing, "uniform", lambda: uniform)
    assert one(torch.tensor([-math.inf, 0.3, 0.2, 0.1, 0.05, -math.inf]), drawing).token_id == expected


def test_choices_have_generators_of_their_own_and_the_first_is_that_of_the_seed() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    plain = ids(logits, sampler(seed=3), 20)
    choices = [ids(logits, sampler(seed=3, choice=choice), 20) for choice in range(3)]
    assert choices[0] == plain
    assert len({tuple(each) for each in choices}) == 3
    assert choices == [ids(logits, sampler(seed=3, choice=choice), 20) for choice in range(3)]
    assert ids(logits, sampler(), 20) != ids(logits, sampler(), 20), "without a seed nothing repeats"
    assert ids(logits, sampler(seed=2**64 - 1), 3) and ids(logits, sampler(seed=-(2**63)), 3)


def test_penalties_look_at_the_completion_and_repetition_at_the_prompt_too() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8])
    frequent = sampler([0, 0, 0], temperature=0.0, frequency_penalty=0.15)
    assert ids(logits, frequent, 5) == [0, 1, 0, 2, 1]
    assert ids(logits, sampler([0], temperature=0.0, repetition_penalty=1.2), 3) == [1, 0, 0]
    assert ids(logits, sampler([0], temperature=0.0, presence_penalty=1.0), 4) == [0, 1, 2, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("penalty", "expected"), [(5e-324, 1), (1e-50, 1), (1e50, 2), (1e308, 2)])
def test_a_repetition_penalty_without_bound_leaves_numbers(temperature: float, penalty: float, expected: int) -> None:
    logits = torch.tensor([0.0, 1e4, 30.0, -1e4])
    drawing = sampler([0, 1, 3], seed=1, temperature=temperature, repetition_penalty=penalty)
    assert one(logits, drawing).token_id == expected


def test_log_probabilities_are_the_models_own() -> None:
    found = one(LOGITS, sampler(temperature=0.0, logprobs=2, logit_bias=((2, 100.0),)))
    assert found.token_id == 2 and found.logprob is not None
    assert found.logprob.logprob == pytest.approx(math.log(0.15))
    assert [token for token, _ in found.logprob.top] == [0, 1]
    assert [value for _, value in found.logprob.top] == pytest.approx([math.log(0.5), math.log(0.3)])
    bare = one(LOGITS, sampler(temperature=0.0, logprobs=0)).logprob
    assert bare is not None and bare.top == ()
    assert one(LOGITS, sampler(temperature=0.0)).logprob is None
    ties = one(torch.zeros(5), sampler(temperature=0.0, logprobs=3)).logprob
    assert ties is not None and [token for token, _ in ties.top] == [0, 1, 2]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_of_no_numbers_is_an_error_in_its_place(poison: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = poison
    found = draw(logits, [Draw(sampler(temperature=0.0)), Draw(sampler(seed=1)), Draw(sampler(seed=1))])
    assert isinstance(found[1], ArithmeticError)
    assert isinstance(found[0], Drawn) and isinstance(found[2], Drawn)
    lone = draw(torch.full((1, 4), -math.inf), [Draw(sampler(temperature=0.0))])
    assert isinstance(lone[0], ArithmeticError)
