"""A chat call with pasted tokens through the official client: what must hold at any length, and with a million."""

import json

import pytest

from bench.long_prompts import main


def told(printed: str) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = json.loads(printed.splitlines()[-1])["calls"]
    return calls


@pytest.mark.slow
def test_the_short_form_holds_what_must(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--short", "--threads", "1"])
    calls = told(capsys.readouterr().out)
    assert [call["what"] for call in calls][:3] == ["short", "long", "left while read"]


@pytest.mark.slow
def test_a_million_tokens_at_the_bytes_of_a_few_thousand(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--tokens", "1000000", "--check"])
    short, long, left, again, more, _ = told(capsys.readouterr().out)
    assert int(str(again["prompt_tokens"])) >= 1_000_000 > int(str(left["last_processed"])) > 0
    assert short["resident_bytes"] == long["resident_bytes"] < again["resident_bytes"] == more["resident_bytes"]
