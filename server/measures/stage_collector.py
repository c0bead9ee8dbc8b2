"""Gauges of where the process stands, which are there from its first moment on."""

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.measures import process, requests
from server.readiness import Readiness, Stage


class StageCollector(Collector):
    """``stage`` says where the process stands, which ``readiness`` alone does not know once the engine has stopped."""

    def __init__(self, readiness: Readiness, stage: Callable[[], Stage], drain_limit_seconds: float) -> None:
        self._readiness = readiness
        self._stage = stage
        self._drain_limit_seconds = drain_limit_seconds

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All samples, as it is now."""
        now = self._stage()
        yield process.STAGE.by({stage: float(stage is now) for stage in Stage})
        yield process.STAGE_SECONDS.of(time.monotonic() - self._readiness.changed_at)
        yield process.DRAIN_LIMIT.of(self._drain_limit_seconds)
        yield requests.HTTP_OPEN.of(self._readiness.num_requests)
