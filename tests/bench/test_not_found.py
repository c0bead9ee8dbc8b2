"""How not-found is calibrated and counted, and how follow-ups are made of people's questions."""

import random
from dataclasses import replace

import pytest

from bench.gate import made_follow_ups
from bench.not_found import Asked, fit, report, threshold

THERE = Asked("single", "answerable", 0.9, True, 0.01, False, True)
ABSENT = Asked("single", "absent", 0.05, True, 0.9, False, False)


def test_both_signals_are_weighed_the_right_way_round() -> None:
    cases = [replace(THERE, confidence=0.6 + 0.003 * n, probability=0.2) for n in range(100)]
    cases += [replace(ABSENT, confidence=0.3 + 0.004 * n, probability=0.6) for n in range(100)]
    confidence, reader, _ = fit(cases)
    assert confidence > 0 and reader > 0


def test_a_threshold_gives_up_no_more_right_answers_than_it_may() -> None:
    cases = [replace(THERE, confidence=n / 100) for n in range(100)] + [replace(THERE, confidence=0.0, right=False)]
    least = threshold(lambda case: case.confidence, cases, 0.03)
    assert sum(case.confidence < least for case in cases if case.right) == 3


def test_what_the_reader_says_counts_as_told_and_only_right_answers_are_lost() -> None:
    cases = [THERE, replace(THERE, right=False, confidence=0.0), replace(THERE, confidence=0.0), THERE]
    cases += [ABSENT, replace(ABSENT, said_not=True, confidence=0.9), replace(ABSENT, confidence=0.9)]
    told = report("rule", lambda case: case.confidence < 0.1, cases)
    assert told["lost_points"][0] == 25.0 and told["right_before"] == 75.0
    assert told["answerable"][0] == 50.0
    assert told["absent"][0] == pytest.approx(66.7)
    assert "adversarial" not in told


def test_a_follow_up_is_made_where_a_pronoun_can_stand_for_the_name() -> None:
    def row(question: str) -> dict[str, object]:
        return {"context": "c", "question": question, "answers": ["x"]}

    rows = [row("When was Nikola Tesla born?"), row("Where did Nikola Tesla live?")]
    ((turns, name),) = made_follow_ups(rows, random.Random(0))
    assert name == "Nikola Tesla" and turns[-1].content in {f"Where did {who} live?" for who in ("he", "it", "they")}
    assert made_follow_ups([rows[0], row("Who gives the Nikola Tesla prize?")], random.Random(0)) == []
