"""A real Prometheus scrapes the server: what it sees is what the server tells, and nothing in the format is amiss."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_engine import FakeEngine
from fakes_server import MODEL, World, make_world, serving
from stack.conftest import StartPrometheus
from stack.prometheus import promtool, scraping

from model.errors import QueueFull
from model.tokenizer import Tokenizer
from server.keys import Keys
from server.measures.page import measures

HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
# Under these names every gateway and dashboard knows them; and information is measured in bits, not in bytes.
GIVEN_NAMES = ("vllm:", "process_", "fano_context_information_bits", "fano_state_capacity_bits")


def test_the_server_is_a_target_that_is_up(start_prometheus: StartPrometheus, served: tuple[World, str]) -> None:
    world, url = served
    world.engine.enqueue("one two three")
    for _ in range(3):
        assert httpx.post(f"{url}/v1/chat/completions", json=HELLO).status_code == 200
    prometheus = start_prometheus(scraping(url))
    prometheus.wait_until_up(num_scrapes=3)
    (target,) = prometheus.targets()
    assert target["health"] == "up" and target["lastError"] == ""
    assert prometheus.value("vllm:num_requests_running") == 0
    assert prometheus.value('fano_requests_finished_total{reason="stop"}') == 3
    assert prometheus.value('fano_http_requests_total{route="/v1/chat/completions",status="200"}') == 3
    # Sums over pools are the process, as the server's own gauge of another source has it.
    pools = "sum(fano_host_memory_bytes) + sum(fano_device_memory_bytes)"
    assert prometheus.value(f"({pools}) / scalar(process_resident_memory_bytes)") == pytest.approx(1, abs=0.05)
    assert prometheus.value('fano_stage{stage="ready"}') == 1
    stored = {each["metric"]: each for each in prometheus.api("targets/metadata", match_target='{job="fano"}')}
    for measure in measures():
        if measure.name == "fano_state_recall_bits":
            continue
        assert stored[measure.name]["type"] == measure.kind.value, measure.name
        assert stored[measure.name]["help"] == measure.what or measure.name.startswith("process_")


def test_rates_see_the_first_of_everything(start_prometheus: StartPrometheus, served: tuple[World, str]) -> None:
    """Trouble of a kind that never was before counts, because its series was there at nought."""
    world, url = served
    prometheus = start_prometheus(scraping(url))
    prometheus.wait_until_up(num_scrapes=2)
    world.engine.refuse(QueueFull(1, 1, 1))
    assert httpx.post(f"{url}/v1/chat/completions", json=HELLO).status_code == 429
    rate = 'increase(fano_refusals_total{code="queue_full"}[1m])'
    (series,) = prometheus.wait_for(f"{rate} > 0")
    assert series.value > 0.5


def test_promtool_finds_nothing_amiss(served: tuple[World, str]) -> None:
    world, url = served
    world.engine.enqueue("one two three")
    httpx.post(f"{url}/v1/chat/completions", json=HELLO)
    checked = promtool("check", "metrics", stdin=httpx.get(f"{url}/metrics").text)
    lints = [line for line in checked.stderr.splitlines() if line and not line.startswith(GIVEN_NAMES)]
    assert not lints and checked.returncode in (0, 3), checked.stderr


@pytest.mark.slow
def test_with_keys_prometheus_needs_one(
    start_prometheus: StartPrometheus, tmp_path: Path, stack_tokenizer: Tokenizer
) -> None:
    world = make_world(tmp_path / "data", stack_tokenizer, host="0.0.0.0", api_key="a-long-random-string")
    assert isinstance(world.engine, FakeEngine)
    _, key = Keys(world.settings.data_dir).add("prometheus", "watching")
    with serving(world.app) as url:
        file = tmp_path / "fano.key"
        file.write_text(f"{key}\n")
        prometheus = start_prometheus(scraping(url, authorization={"credentials_file": str(file)}))
        prometheus.wait_until_up()
        stranger = start_prometheus(scraping(url))
        stranger.wait_for('up{job="fano"} == 0')
        (target,) = stranger.targets()
        assert "401" in target["lastError"]
        # Revoked while both run.
        Keys(world.settings.data_dir).revoke("prometheus")
        prometheus.wait_for('up{job="fano"} == 0')
