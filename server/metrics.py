"""What Prometheus reads. Events are counted where they happen; memory is read from snapshots at scrape time.

A scrape touches neither the device nor the engine: it reads the engine's last published snapshot and
asks the library. Names follow Prometheus' conventions; a pool's bytes are its tensors' bytes.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.engine.request import RequestUsage, TokenEvent
from model.engine.stats import EngineStats
from server.bill import Bookkeeper, MemoryBill

if TYPE_CHECKING:
    from retrieval.library import LibraryStats

LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
REQUEST_BYTES = tuple(float(1 << power) for power in range(14, 41, 2))
CONTEXT_TOKENS = tuple(float(1 << power) for power in range(6, 25, 2))
INFORMATION_BITS = tuple(float(1 << power) for power in range(8, 43, 2))


class Metrics:
    """The counters and histograms of one app, in a registry of their own. Safe from any thread."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._refusals = Counter("fano_refusals", "Requests refused, by error code.", ["code"], registry=registry)
        self._retrievals = Counter(
            "fano_retrieval", "Questions by what retrieval decided.", ["decision", "reason"], registry=registry
        )
        self._retrieval_seconds = _histogram(registry, "fano_retrieval_seconds", "Search time by stage.", ["stage"])
        self._passages = _histogram(
            registry, "fano_retrieval_passages", "Passages found for a question.", buckets=(0, 1, 2, 3, 5, 10, 20)
        )
        self._first_token = _histogram(
            registry, "fano_time_to_first_token_seconds", "From the request's arrival to its first text."
        )
        self._inter_token = _histogram(
            registry, "fano_inter_token_seconds", "Between two tokens of one choice, in the engine.",
            buckets=STEP_SECONDS,
        )  # fmt: skip
        self._queue = _histogram(registry, "fano_queue_seconds", "From submission to the engine's first work on it.")
        self._request = _histogram(registry, "fano_request_seconds", "From the request's arrival to the answer's end.")
        self._step = _histogram(
            registry, "fano_step_seconds", "One step of the engine by phase.", ["phase"], buckets=STEP_SECONDS
        )
        self._kv = _histogram(
            registry, "fano_request_kv_bytes", "Keys and values held at the end.", buckets=REQUEST_BYTES
        )
        self._state = _histogram(
            registry, "fano_request_state_bytes", "SSM and convolution state held at the end.", buckets=REQUEST_BYTES
        )
        self._archive = _histogram(
            registry, "fano_request_archive_bytes", "Text and index of the documents asked.", buckets=REQUEST_BYTES
        )
        self._context = _histogram(
            registry, "fano_context_tokens", "Tokens of prompt and answer.", buckets=CONTEXT_TOKENS
        )
        self._capacity = _histogram(
            registry, "fano_state_capacity_bits", "Bits of all memory held at the end.", buckets=INFORMATION_BITS
        )
        self._information = _histogram(
            registry, "fano_context_information_bits", "Surprisal of the prompt, where it was measured.",
            buckets=INFORMATION_BITS,
        )  # fmt: skip
        self._finished = Counter(
            "fano_answers", "Answers that were completed, by finish reason.", ["reason"], registry=None
        )
        for reason in ("stop", "length"):
            self._finished.labels(reason)

    def refused(self, code: str) -> None:
        """A request was answered with an error of this code."""
        self._refusals.labels(code).inc()

    def retrieved(self, decision: str, reason: str, seconds: dict[str, float], num_passages: int = 0) -> None:
        """A question was decided about: ``retrieved``, ``nothing`` or ``skipped``, for a reason of
        ``server.gate.Reason``; ``seconds`` by stage of the search."""
        if decision != "skipped":
            self._passages.observe(num_passages)
        self._retrievals.labels(decision, reason).inc()
        for stage, spent in seconds.items():
            self._retrieval_seconds.labels(stage).observe(spent)

    def first_token(self, seconds: float) -> None:
        """The first text of an answer came."""
        self._first_token.observe(seconds)

    def delivered(self, event: TokenEvent) -> None:
        """The engine made an event (called on its thread): the time between tokens is its own, not a reader's."""
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
            self._step.labels(stats.last_step.phase).observe(stats.last_step.seconds)

    def num_finished(self, reason: str) -> float:
        """Answers completed with this reason so far."""
        return next(s.value for m in self._finished.collect() for s in m.samples if s.labels == {"reason": reason})

    def expose(self) -> bytes:
        """Everything in the text format. Asks the collectors, so it belongs on a worker thread."""
        return generate_latest(self.registry)


class MemoryCollector(Collector):
    """Gauges from the engine's and the library's own numbers, made when they are asked for."""

    def __init__(self, metrics: Metrics, bookkeeper: Bookkeeper, state_recall_bits: float | None = None) -> None:
        self._metrics = metrics
        self._bookkeeper = bookkeeper
        self._state_recall_bits = state_recall_bits
        self._version = version("fano")  # looked up on disk

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All samples of one bill."""
        bill = self._bookkeeper.bill()
        yield from self._engine(bill.engine)
        yield from self._library(bill)
        host = {**bill.host_pools, "unaccounted": bill.unaccounted_bytes}
        yield _gauge("fano_host_memory_bytes", "Host memory by pool; unaccounted is the process minus all pools.",
                     "pool", host)  # fmt: skip
        yield _gauge("fano_sessions", "Sessions by the nearest tier that their state is in.",
                     "status", bill.sessions.num_sessions)  # fmt: skip
        if self._state_recall_bits is not None:
            yield _plain("fano_state_recall_bits", "Bits that the state alone recalled when it was measured.",
                         self._state_recall_bits)  # fmt: skip

    def _engine(self, stats: EngineStats) -> Iterator[Metric]:
        yield _gauge("fano_device_memory_bytes", "Bytes of the tensors held, by pool.", "pool", stats.pool_bytes)
        yield _gauge("fano_device_memory_plan_bytes", "Bytes planned from the configuration alone, by pool.",
                     "pool", stats.plan_bytes)  # fmt: skip
        for name, what, counts in (
            ("fano_state_slots", "State slots by status.", stats.slots),
            ("fano_kv_blocks", "Key/value blocks by status.", stats.blocks),
        ):
            by_status = {"free": counts.free, "used": counts.used, "cached": counts.cached}
            yield _gauge(name, what, "status", by_status)
        yield _plain("fano_kv_blocks_shared", "Key/value blocks that several sequences hold.", stats.num_blocks_shared)
        yield CounterMetricFamily(
            "fano_preemptions", "Times that a request made room for another.", value=stats.num_preemptions
        )
        waiting = stats.num_waiting - stats.num_saved
        requests = {"running": stats.num_running, "waiting": waiting, "saved": stats.num_saved}
        yield _gauge("fano_requests", "Requests in the engine by status.", "status", requests)
        yield _counter("fano_tokens", "Tokens by kind.", "kind", stats.tokens_by_kind)
        prefixes = CounterMetricFamily(
            "fano_prefix", "Requests by whether their prompt's beginning was there.", labels=["result", "reason"]
        )
        for labels, count in stats.num_prefixes.items():
            prefixes.add_metric(labels, count)
        yield prefixes
        yield _gauge("fano_checkpoints", "Checkpoints by tier.", "tier", stats.num_checkpoints)
        yield CounterMetricFamily(
            "fano_checkpoints_lost", "Unsaved checkpoints of sessions that had to be given up.",
            value=stats.num_checkpoints_lost,
        )  # fmt: skip
        # Aborts are the engine's own count, so that they show together with the request's leaving.
        finished = {reason: self._metrics.num_finished(reason) for reason in ("stop", "length")}
        finished |= {"abort": stats.num_aborted, "error": stats.num_failed}
        yield _counter("fano_requests_finished", "Requests that left the engine, by reason.", "reason", finished)
        yield _plain("vllm:num_requests_running", "Requests that hold state.", stats.num_running)
        yield _plain("vllm:num_requests_waiting", "Requests in the queue.", stats.num_waiting)
        in_use = (stats.blocks.total - stats.blocks.free) / max(1, stats.blocks.total)
        yield _plain("vllm:kv_cache_usage_perc", "Key/value blocks in use, 1 means all.", in_use)
        build = GaugeMetricFamily(
            "fano_build_info", "What runs.", labels=["version", "model", "device", "kernels", "dtype", "policy"]
        )
        info = stats.build
        build.add_metric([self._version, info.model, info.device, info.kernels, info.dtype, info.policy], 1)
        yield build

    def _library(self, bill: MemoryBill) -> Iterator[Metric]:
        stats: LibraryStats = bill.library
        yield _gauge("fano_disk_bytes", "Bytes on disk by pool.", "pool", bill.disk_pools)
        yield _gauge("fano_documents", "Documents by status.", "status", stats.num_documents)
        yield _plain("fano_index_vectors", "Vectors in the index.", stats.num_vectors)
        yield _plain("fano_facts", "Facts in the key table.", stats.num_facts)


def _histogram(
    registry: CollectorRegistry,
    name: str,
    what: str,
    labels: list[str] | None = None,
    buckets: tuple[float, ...] = LATENCY_SECONDS,
) -> Histogram:
    return Histogram(name, what, labels or [], buckets=buckets, registry=registry)


def _gauge(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family


def _counter(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _plain(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)
