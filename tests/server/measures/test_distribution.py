"""The histogram is the library's own to the byte, whatever is observed, by whatever number of threads."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.utils import floatToGoString

from server.measures.distribution import Distribution
from server.measures.exposition import exposition, number

BOUNDS = (0.001, 0.25, 1.0, 5.0, 1e6, float(1 << 40))


def both(
    label: str | None = None, values: tuple[str, ...] = ("",)
) -> tuple[Distribution, Histogram, list[CollectorRegistry]]:
    disable_created_metrics()  # as the server does
    registries = [CollectorRegistry(), CollectorRegistry()]
    own = Distribution("fano_x", "What it\\is.\nAnd more.", BOUNDS, registries[0], label, values)
    theirs = Histogram(
        "fano_x", "What it\\is.\nAnd more.", [label] if label else [], buckets=BOUNDS, registry=registries[1]
    )
    for value in values if label else ():
        theirs.labels(value)
    return own, theirs, registries


def agree(registries: list[CollectorRegistry]) -> None:
    expected = generate_latest(registries[1])
    assert exposition(registries[0]) == expected
    assert generate_latest(registries[0]) == expected, "by its samples"


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1e13), st.integers(0, 1 << 50)), max_size=30))
def test_any_values(values: list[float]) -> None:
    own, theirs, registries = both()
    agree(registries)
    for value in values:
        own.observe(value)
        theirs.observe(value)
    agree(registries)


def test_labels_are_there_at_once_and_as_they_come() -> None:
    own, theirs, registries = both("stage", ("keys", 'a "quoted"\\\nname'))
    agree(registries)
    for stage, value in (("keys", 0.2), ("new", 7.0), ("keys", 1.0)):
        own.observe(value, stage)
        theirs.labels(stage).observe(value)
    agree(registries)


def test_many_are_written_with_an_exponent() -> None:
    own, _, registries = both()
    own._series[""].counts[:] = [999_999, 1, 0, 0, 1 << 40, 0, 0]
    text = exposition(registries[0])
    assert b'le="0.001"} 999999.0\n' in text and b'le="0.25"} 1e+06\n' in text
    assert text == generate_latest(registries[0])


@pytest.mark.parametrize("value", [0, 1, 999_999, 1_000_000, 12345678.5, 0.1, 1e-9, float("inf"), -3.0, 1 << 40])
def test_numbers_are_the_library_s(value: float) -> None:
    assert number(value) == floatToGoString(value)
    assert number(float("nan")) == floatToGoString(float("nan"))


def test_no_observation_is_lost_between_threads() -> None:
    own, _, registries = both("phase", ("a", "b"))

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(2000):
            own.observe(dice.random() * 10, dice.choice("ab"))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        for line in exposition(registries[0]).decode().splitlines():
            assert not line.endswith("NaN")
    for thread in threads:
        thread.join()
    counts = [registries[0].get_sample_value("fano_x_count", {"phase": phase}) for phase in "ab"]
    assert sum(filter(None, counts)) == 8000
