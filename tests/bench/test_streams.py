"""The comparison of streams in its short form: every stream gets its tokens; nothing about time."""

import json
import sys

import pytest

from bench import streams


def test_every_stream_gets_its_tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["streams", "--short"])
    streams.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["streams"] for row in told["together"]] == [1, 2, 4, 8] * 2
    (beside,) = told["beside"]
    assert beside["prompt_tokens"] == 1000 and beside["beside"]["median"] > 0
