"""What the server costs over the engine: medians and ratios of recorded passes, the client, and the short form."""

import json
import sys

import pytest

from bench import overhead
from bench.overhead import Pass, table_of
from bench.peers import Spent
from bench.stream_client import tokens_in


def test_ratios_are_those_within_a_repetition() -> None:
    passes = [
        Pass(8, 80, Spent(engine, engine), Spent(server, 2 * server), load=1.0)
        for engine, server in ((1.0, 2.0), (4.0, 4.0), (3.0, 4.0))
    ]
    (row,) = table_of(passes)
    assert (row["streams"], row["ratio"], row["ratios"], row["is_hit"]) == (8, 0.75, [0.5, 1.0], False)
    assert (row["engine_tps"], row["server_tps"]) == (pytest.approx(80 / 3), 20.0)
    assert row["server_cpu_ms"] == pytest.approx(100.0)


def test_a_stream_without_its_end_is_an_error() -> None:
    whole = (
        b'data: {"usage": {"completion_tokens": 3}}\n\ndata: {"usage": {"completion_tokens": 40}}\n\ndata: [DONE]\n\n'
    )
    assert tokens_in(whole) == 40
    for broken in (whole[:-10], b"HTTP/1.1 503 Service Unavailable\r\n\r\n[DONE]"):
        with pytest.raises(ValueError, match="no whole stream"):
            tokens_in(broken)


@pytest.mark.slow
def test_every_token_arrives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead", "--short"])
    overhead.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(each["streams"], each["num_tokens"]) for each in told["passes"]] == [(1, 16), (3, 48)]
    assert told["idle_share"] < 0.5 and len(told["start_seconds"]) == 1
