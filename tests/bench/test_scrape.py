"""What a scrape costs: medians and ratios of recorded passes, and the short form."""

import json
import sys

import pytest

from bench import scrape
from bench.peers import Spent
from bench.scrape import Pass, spread, summary


def test_ratios_are_those_within_a_repetition() -> None:
    passes = [
        Pass(is_scraped, 100, Spent(seconds, seconds), milliseconds, load=1.0)
        for is_scraped, seconds, milliseconds in (
            (True, 2.0, [5.0]), (False, 1.0, []),
            (False, 4.0, []), (True, 4.0, [7.0, 30.0]),
            (True, 10.0, [6.0]), (False, 9.0, []),
        )
    ]  # fmt: skip
    told = summary([1.0, 2.0, 9.0], 3.0, passes)
    assert told["ratios"] == [0.5, 1.0, 0.9] and told["ratio"] == 0.9
    assert told["tokens_per_second"] == [25.0, 25.0] and told["is_hit"] is True
    assert told["beside_streams"] == {"number": 4, "median": 6.5, "p95": 30.0, "worst": 30.0}
    assert told["at_rest"] == spread([9.0, 2.0, 1.0])


@pytest.mark.slow
def test_all_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scrape", "--short"])
    scrape.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["documents"] == 50 and told["at_rest"]["number"] == 3 and len(told["passes"]) == 2
    assert told["beside_streams"]["number"] >= 1
