from collections.abc import Iterator

import pytest

from model.kernels import crew
from model.kernels.crew import STEPS_BETWEEN_TRIALS, CrewSize


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(crew, "perf_counter", lambda: now[0])
    yield now


def sizes(crew_size: CrewSize, clock: list[float], seconds: dict[int, float], num_sequences: int = 1) -> list[int]:
    """What is chosen over some steps that take ``seconds`` by the number of threads."""
    chosen = []
    for _ in range(4 * STEPS_BETWEEN_TRIALS):
        with crew_size.chosen(num_sequences) as size:
            clock[0] += seconds[size]
        chosen.append(size)
    return chosen


def test_what_is_faster_is_taken_and_the_other_tried_now_and_then(clock: list[float]) -> None:
    crew_size = CrewSize(4)
    quiet = sizes(crew_size, clock, {4: 1.0, 1: 2.0})
    assert quiet[:3] == [4, 1, 4] and quiet.count(1) == 4
    busy = sizes(crew_size, clock, {4: 9.0, 1: 2.0})
    assert busy.count(4) <= 8 and busy[-1] == 1
    again = sizes(crew_size, clock, {4: 1.0, 1: 2.0})
    assert again[-1] == 4, "it finds its way back"


def test_each_kind_of_step_has_its_own_choice(clock: list[float]) -> None:
    crew_size = CrewSize(2)
    assert sizes(crew_size, clock, {2: 3.0, 1: 1.0})[-1] == 1
    assert sizes(crew_size, clock, {2: 3.0, 1: 5.0}, num_sequences=8)[-1] == 2
    assert sizes(crew_size, clock, {2: 3.0, 1: 1.0})[5] == 1


def test_with_one_thread_there_is_no_choice(clock: list[float]) -> None:
    assert set(sizes(CrewSize(1), clock, {1: 1.0})) == {1}
