"""What Prometheus reads. Events are counted where they happen; memory is read from snapshots at scrape time.

The families are those of ``server.measures``. A scrape touches neither the device nor the engine: it reads the engine's
last published snapshot and asks the library for its counts. A pool's bytes are its tensors' bytes.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics

from model.engine.request import RequestUsage, TokenEvent
from model.engine.stats import EngineStats
from server.error_table import own_faults
from server.measures import documents, requests
from server.measures.exposition import exposition

# What becomes of an answer here; what becomes of others the engine counts.
ENDS = ("stop", "length")
NO_ROUTE = "none"
CLIENT_LEFT = 499


class Metrics:
    """The counters and histograms of one app, in a registry of their own. Safe from any thread."""

    def __init__(self) -> None:
        # When each series began, which would be a series more for each; Prometheus does not ask for it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self._refusals = requests.REFUSALS.counter(registry)
        for code in own_faults():
            self._refusals.labels(code)
        self._http = requests.HTTP_REQUESTS.counter(registry)
        self._retrievals = documents.RETRIEVAL.counter(registry)
        for decision in documents.DECISIONS:
            self._retrievals.labels(*decision)
        self._retrieval_seconds = documents.RETRIEVAL_SECONDS.histogram(registry)
        self._passages = documents.PASSAGES.histogram(registry)
        self._first_token = requests.FIRST_TOKEN.histogram(registry)
        self._inter_token = requests.INTER_TOKEN.histogram(registry)
        self._queue = requests.QUEUE.histogram(registry)
        self._request = requests.REQUEST.histogram(registry)
        self._step = requests.STEP.histogram(registry)
        self._kv = requests.REQUEST_KV.histogram(registry)
        self._state = requests.REQUEST_STATE.histogram(registry)
        self._archive = requests.REQUEST_ARCHIVE.histogram(registry)
        self._context = requests.CONTEXT.histogram(registry)
        self._capacity = requests.CAPACITY.histogram(registry)
        self._information = requests.INFORMATION.histogram(registry)
        # Exposed together with the engine's own counts of the same name.
        self._finished = Counter("fano_answers", "Answers that were completed, by reason.", ["reason"], registry=None)
        for reason in ENDS:
            self._finished.labels(reason)
        ProcessCollector(registry=registry)

    def refused(self, code: str) -> None:
        """A request was answered with an error of this code."""
        self._refusals.labels(code).inc()

    def answered(self, method: str, route: str | None, status: int) -> None:
        """An HTTP request was answered, or its client left (0); ``route`` is a template, None where there is none."""
        known = method if method in requests.METHODS else "other"
        self._http.labels(known, route or NO_ROUTE, str(status or CLIENT_LEFT)).inc()

    def retrieved(self, decision: str, reason: str, seconds: dict[str, float], num_passages: int = 0) -> None:
        """A question was decided about: ``retrieved``, ``nothing`` or ``skipped``, for a reason of
        ``server.answers.gate.Reason``; ``seconds`` by stage of the search."""
        if decision != "skipped":
            self._passages.observe(num_passages)
        self._retrievals.labels(decision, reason).inc()
        for stage, spent in seconds.items():
            self._retrieval_seconds.observe(spent, stage)

    def first_token(self, seconds: float) -> None:
        """The first text of an answer came."""
        self._first_token.observe(seconds)

    def delivered(self, event: TokenEvent) -> None:
        """An event of the engine was read: the time between tokens is the engine's own, not a reader's."""
        if event.gap_seconds is not None:
            self._inter_token.observe(event.gap_seconds)
        if event.usage is not None:
            self._queue.observe(event.usage.queue_seconds)

    def finished(self, reason: str, usage: RequestUsage, seconds: float, archive_bytes: int = 0) -> None:
        """An answer is complete; ``reason`` is ``stop`` or ``length``, ``archive_bytes`` are of text and index."""
        self._finished.labels(reason).inc()
        self._request.observe(seconds)
        self._kv.observe(usage.kv_bytes)
        self._state.observe(usage.ssm_state_bytes + usage.conv_state_bytes)
        self._archive.observe(archive_bytes)
        self._context.observe(usage.num_prompt_tokens + usage.num_completion_tokens)
        self._capacity.observe(usage.state_capacity_bits)
        if usage.information_bits is not None:
            self._information.observe(usage.information_bits)

    def stepped(self, stats: EngineStats) -> None:
        """The engine made a step (called on its thread)."""
        if stats.last_step is not None:
            self._step.observe(stats.last_step.seconds, stats.last_step.phase)

    def num_finished(self) -> Mapping[str, float]:
        """Answers that were completed so far, by reason."""
        samples = next(iter(self._finished.collect())).samples
        return {sample.labels["reason"]: sample.value for sample in samples}

    def expose(self) -> bytes:
        """Everything in the text format. Asks the collectors, so it belongs on a worker thread."""
        return exposition(self.registry)
