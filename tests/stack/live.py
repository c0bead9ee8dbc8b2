"""A server as a process, and the committed files of Prometheus made to look at it."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.peers.servers import Child

DEPLOY = Path(__file__).parents[2] / "deploy"
KEY = "a-long-random-string"
# In a test minutes are seconds. Thresholds stay; what is for minutes, is for as long as a test can wait.
SHORT = {"for: ": "500ms", "[": "6s", "offset ": "6s"}
INDEX_LAG_SECONDS = 2


def start(directory: Path, **environ: str) -> Child:
    """A server that is ready, with a key and a data directory of its own; ``environ`` without the prefix ``FANO_``."""
    child = Child(directory / "fano.log")
    command = [str(Path(sys.executable).with_name("fano")), "serve"]
    if "DATA_DIR" not in environ:
        command += ["--data-dir", str(directory / "data")]
    settings = {"FANO_API_KEY": KEY, "FANO_THREADS": "2", **{f"FANO_{name}": value for name, value in environ.items()}}
    child.start(command, "/readyz", settings)
    child.client.headers["Authorization"] = f"Bearer {KEY}"
    return child


@contextmanager
def running(directory: Path, **environ: str) -> Iterator[Child]:
    """A server as in ``start``; it ends with the block, if it has not before."""
    directory.mkdir(parents=True, exist_ok=True)
    child = start(directory, **environ)
    try:
        yield child
    finally:
        child.kill()


def end(child: Child) -> None:
    """Tell a server to end, without waiting for it."""
    process: subprocess.Popen[bytes] | None = child.process
    assert process is not None
    process.send_signal(signal.SIGTERM)


def address(url: str) -> str:
    """The target that Prometheus asks."""
    return urlsplit(url).netloc


def configuration(key_file: Path, *targets: str) -> str:
    """The committed prometheus.yml with these targets, this key, and a scrape a second in the place of every five."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for old, new in (
        ("/run/secrets/fano_api_key", str(key_file)),
        ('["fano:8000"]', str([*targets]).replace("'", '"')),
        ("scrape_interval: 5s", "scrape_interval: 500ms"),
        ("scrape_timeout: 4s", "scrape_timeout: 500ms"),
        ("evaluation_interval: 15s", "evaluation_interval: 500ms"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def committed_rules() -> str:
    """The alerts as they are deployed."""
    return (DEPLOY / "prometheus" / "alerts.yml").read_text()


def shortened(rules: str) -> str:
    """The same alerts with every ``for``, range and offset of a few seconds. Thresholds are as they were, but that a
    document may wait for two seconds in the place of ten minutes."""
    short = re.sub(r"for: \d+[smh]", f"for: {SHORT['for: ']}", rules)
    short = re.sub(r"\[\d+[smh]\]", f"[{SHORT['[']}]", short)
    short = re.sub(r"offset \d+[smh]", f"offset {SHORT['offset ']}", short)
    assert short.count("fano_index_lag_seconds > 600") == 1
    return short.replace("fano_index_lag_seconds > 600", f"fano_index_lag_seconds > {INDEX_LAG_SECONDS}")
