"""A server at work, a real Prometheus with the committed configuration, and every query of every panel."""

import math
import time
from collections.abc import Iterator

import pytest
from stack.live import KEY, address, committed_rules, configuration, running
from stack.prometheus import Prometheus, program

from bench.pictures.load import Load
from bench.pictures.provisioned import Target, read_panels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOAD_SECONDS = 45
# Grafana would say four scrapes; some seconds more, so that rare things are seen.
WINDOW = "20s"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has looked at a server under load."""
    program("prometheus")
    directory = tmp_path_factory.mktemp("stack")
    (directory / "key").write_text(KEY)
    (directory / "prometheus").mkdir()
    (directory / "prometheus" / "alerts.yml").write_text(committed_rules())
    with running(directory / "server", INFORMATION="true", MAX_SEQUENCES="4") as child:
        url = str(child.client.base_url)
        config = configuration(directory / "key", address(url))
        with Prometheus(directory / "prometheus", config) as prometheus:
            prometheus.wait_until_up()
            load = Load(url, KEY, seed=7)
            load.start()
            time.sleep(LOAD_SECONDS)
            load.stop()
            assert load.wrong == [], load.wrong
            wanted = {"document", "question", "chat", "turn", "session", "session saved", "session restored", "mistake"}
            assert wanted <= set(load.counts)
            yield prometheus


def values(prometheus: Prometheus, target: Target) -> list[float]:
    """All that a panel would have drawn of the load."""
    now = time.time()
    data = prometheus.api("query_range", query=target.expr, start=now - LOAD_SECONDS, end=now, step="1s")
    found = [float(value) for series in data["result"] for _, value in series["values"]]
    return [value for value in found if math.isfinite(value)]


@pytest.mark.parametrize(
    ("title", "target"),
    [(panel.title, target) for panel in read_panels(WINDOW) for target in panel.targets],
    ids=[f"{panel.title}: {target.legend}" for panel in read_panels(WINDOW) for target in panel.targets],
)
def test_a_panel_shows_something(seen: Prometheus, title: str, target: Target) -> None:
    assert values(seen, target), f"{title}: {target.expr}"


def test_the_bill_that_is_drawn_is_the_servers(seen: Prometheus) -> None:
    """The sum of what two panels stack is the resident set that a third is drawn from."""
    pools = seen.value("sum(fano_device_memory_bytes) + sum(fano_host_memory_bytes)")
    assert pools == pytest.approx(seen.value("process_resident_memory_bytes"), rel=0.02)
    assert seen.query("fano_device_memory_bytes > fano_device_memory_plan_bytes") == []


def test_nothing_fires_at_ordinary_work(seen: Prometheus) -> None:
    assert [name for name, state in seen.alerts().items() if state == "firing"] == []
