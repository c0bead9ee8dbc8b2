"""A Prometheus of one's own: the program as Debian packages it, with a configuration of the test's, asked over HTTP."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import pytest

SCRAPE_SECONDS = 0.25
START_SECONDS = 30.0
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Series:
    """One result of a query."""

    labels: Mapping[str, str]
    value: float


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is. Skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; on Debian: apt-get install prometheus")
    return found


def promtool(*arguments: str | Path, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """The result of ``promtool`` with these arguments; skips the test where it is not installed."""
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def scraping(url: str, job: str = "fano", **more: Any) -> dict[str, Any]:
    """A configuration that scrapes the server at ``url`` four times a second; ``more`` goes into its job."""
    scrape = {"job_name": job, "static_configs": [{"targets": [urlsplit(url).netloc]}], **more}
    seconds = f"{round(1000 * SCRAPE_SECONDS)}ms"
    return {"global": {"scrape_interval": seconds, "evaluation_interval": seconds}, "scrape_configs": [scrape]}


class Prometheus:
    """The process, from entering the context to leaving it; everything it writes is below ``directory``.

    ``config`` is the text of a configuration, or what one says (JSON is YAML). Files that it names relative to itself,
    such as rules, belong in ``directory``.
    """

    def __init__(self, directory: Path, config: str | Mapping[str, Any], *options: str) -> None:
        self.directory = directory
        self.config = directory / "prometheus.yml"
        self.log = directory / "prometheus.log"
        directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(config if isinstance(config, str) else json.dumps(config, indent=2))
        self._options = options

    def __enter__(self) -> Self:
        command = [program("prometheus"), f"--config.file={self.config}", f"--storage.tsdb.path={self.directory}/data"]
        # Port 0: it takes a free one, and tells it in its log.
        command += ["--web.listen-address=127.0.0.1:0", "--web.enable-lifecycle", *self._options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
        try:
            self._client = httpx.Client(base_url=self._address(), timeout=30)
            _until(self._is_ready, START_SECONDS, self.told)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def url(self) -> str:
        """Where it is reached, without a slash at the end."""
        return str(self._client.base_url).rstrip("/")

    def told(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def api(self, path: str, **parameters: Any) -> Any:
        """``data`` of ``/api/v1/{path}``. Raises ``AssertionError`` with Prometheus' own words."""
        reply = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert reply["status"] == "success", f"{parameters}: {reply}"
        return reply["data"]

    def query(self, expression: str) -> list[Series]:
        """The value of an expression now."""
        data = self.api("query", query=expression)
        if data["resultType"] == "scalar":
            return [Series({}, float(data["result"][1]))]
        return [Series(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float:
        """Of an expression that has exactly one value."""
        (series,) = self.query(expression)
        return series.value

    def wait_for(
        self,
        expression: str,
        wanted: Callable[[list[Series]], bool] = bool,
        seconds: float = WAIT_SECONDS,
    ) -> list[Series]:
        """What the expression says once that is ``wanted``, by default anything at all."""
        found: list[Series] = []

        def look() -> bool:
            nonlocal found
            found = self.query(expression)
            return wanted(found)

        _until(look, seconds, lambda: f"{expression} is {found}")
        return found

    def wait_until_up(self, num_scrapes: int = 1, job: str = "fano") -> None:
        """Until the job's target was scraped so often without a failure."""
        self.wait_for(f'count_over_time(up{{job="{job}"}}[1h]) >= {num_scrapes} and up{{job="{job}"}} == 1')

    def targets(self) -> list[dict[str, Any]]:
        """The active targets as Prometheus sees them: ``health``, ``lastError``, ``lastScrapeDuration`` and more."""
        active: list[dict[str, Any]] = self.api("targets", state="active")["activeTargets"]
        return active

    def alerts(self) -> dict[str, str]:
        """``pending`` or ``firing`` by the names of alerts that are not at rest."""
        return {each["labels"]["alertname"]: each["state"] for each in self.api("alerts")["alerts"]}

    def wait_for_alert(self, name: str, state: str | None, seconds: float = WAIT_SECONDS) -> None:
        """Until the alert is ``pending``, ``firing``, or at rest (None)."""
        _until(lambda: self.alerts().get(name) == state, seconds, lambda: f"{name} in {self.alerts()}, not {state}")

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _address(self) -> str:
        found: Sequence[str] = ()

        def look() -> bool:
            nonlocal found
            lines = self.log.read_text(errors="replace").splitlines()
            found = [line.rsplit("address=", 1)[1].split()[0] for line in lines if "Listening on" in line]
            assert found or self.process.poll() is None, f"it ended:\n{self.told()}"
            return bool(found)

        _until(look, START_SECONDS, self.told)
        return f"http://{found[0]}"


def _until(holds: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {told()}"
        time.sleep(POLL_SECONDS)
