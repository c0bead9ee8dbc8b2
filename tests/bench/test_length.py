"""Cost by length: the slope that is printed, and what is drawn."""

from pathlib import Path

import pytest

from bench.length import draw, slope

ROWS = [
    {
        "policy": policy,
        "num_tokens": length,
        "kv_bytes": 1000,
        "state_bytes": 24,
        "archive_bytes": 0 if policy == "window" else 1000 * length,
        "summary_bytes": 0 if policy == "window" else 16 * length,
        "decode_cpu_seconds": 2e-3 + (0 if policy == "window" else 3e-9) * length,
    }
    for policy, lengths in (("window", (4096,)), ("archive", (4096, 16384, 65536)))
    for length in lengths
]


def test_the_slope_is_nanoseconds_a_token() -> None:
    assert slope(ROWS, "archive") == pytest.approx(3.0)
    assert slope(ROWS, "window") is None, "one length has none"


def test_bytes_on_device_and_host_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    lines: dict[str, list[float | None]] = {}

    def plot(_: Axes, __: list[int], held: list[float | None], *___: str, label: str, **____: object) -> list:
        lines[label] = held
        return []

    monkeypatch.setattr(Axes, "plot", plot)
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    draw(ROWS, tmp_path / "drawn" / "archive.png")
    assert [*lines] == [
        "window: on the device",
        "archive: on the device",
        "archive: keys and values on the host",
        "archive: summaries on the host",
    ]
    assert lines["archive: summaries on the host"][0] == 16 * 4096 / 2**20
    assert (tmp_path / "drawn" / "archive.png").stat().st_size > 1000
