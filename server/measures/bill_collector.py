"""Gauges of the bill: from the engine's and the library's own numbers, made when they are asked for."""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from model.cache.available import available_bytes
from model.engine.stats import EngineStats
from server.bills.bill import Bookkeeper, MemoryBill
from server.measures import documents, memory, process, requests
from server.metrics import Metrics
from server.settings import Settings

if TYPE_CHECKING:
    from retrieval.library_stats import LibraryStats


class BillCollector(Collector):
    """All of one bill, with the limits that the settings name."""

    def __init__(
        self, metrics: Metrics, bookkeeper: Bookkeeper, settings: Settings, state_recall_bits: float | None = None
    ) -> None:
        self._metrics = metrics
        self._bookkeeper = bookkeeper
        self._settings = settings
        self._state_recall_bits = state_recall_bits
        self._version = version("fano")  # looked up on disk

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All samples of one bill."""
        bill = self._bookkeeper.bill()
        yield from self._pools(bill.engine)
        yield from self._requests(bill.engine)
        yield from self._host(bill)
        yield from _disk(bill, self._settings)
        yield from _library(bill.library)

    def _pools(self, stats: EngineStats) -> Iterator[Metric]:
        yield memory.DEVICE_MEMORY.by(stats.pool_bytes)
        yield memory.DEVICE_PLAN.by(stats.plan_bytes)
        for measure, counts in (
            (memory.STATE_SLOTS, stats.slots),
            (memory.KV_BLOCKS, stats.blocks),
            (memory.ARCHIVE_BLOCKS, stats.archive_blocks),
        ):
            yield measure.by({"free": counts.free, "used": counts.used, "cached": counts.cached})
        yield memory.KV_SHARED.of(stats.num_blocks_shared)
        yield memory.PREEMPTIONS.of(stats.num_preemptions)
        yield memory.CHECKPOINTS.by(stats.num_checkpoints)
        yield memory.CHECKPOINTS_LOST.of(stats.num_checkpoints_lost)
        in_use = (stats.blocks.total - stats.blocks.free) / max(1, stats.blocks.total)
        yield requests.VLLM_KV_USAGE.of(in_use)
        info = stats.build
        labels = (self._version, info.model, info.device, info.kernels, info.dtype, info.policy)
        yield process.BUILD.by_each({labels: 1})

    def _requests(self, stats: EngineStats) -> Iterator[Metric]:
        num_waiting = stats.num_waiting - stats.num_saved
        yield requests.REQUESTS.by({"running": stats.num_running, "waiting": num_waiting, "saved": stats.num_saved})
        settings = self._settings
        yield requests.REQUESTS_LIMIT.by({"running": settings.max_sequences, "waiting": settings.max_queue})
        # Aborts are the engine's own count, so that they show together with the request's leaving.
        ended = {"abort": stats.num_aborted, "error": stats.num_failed}
        yield requests.FINISHED.by({**self._metrics.num_finished(), **ended})
        yield requests.TOKENS.by(stats.tokens_by_kind)
        yield requests.PREFIX.by_each({**dict.fromkeys(requests.PREFIXES, 0), **stats.num_prefixes})
        yield requests.VLLM_RUNNING.of(stats.num_running)
        yield requests.VLLM_WAITING.of(stats.num_waiting)

    def _host(self, bill: MemoryBill) -> Iterator[Metric]:
        yield memory.HOST_MEMORY.by({**bill.host_pools, "unaccounted": bill.unaccounted_bytes})
        settings = self._settings
        budgets = {"kv_archive": settings.archive_bytes, "prompts": settings.prompt_archive_bytes}
        budgets |= {"sessions": settings.saved_bytes + bill.engine.checkpoint_budget_bytes}
        yield memory.HOST_BUDGET.by(budgets)
        available = available_bytes()
        if available is not None:
            yield memory.HOST_AVAILABLE.of(available)
        yield memory.SESSIONS.by(bill.sessions.num_sessions)
        if self._state_recall_bits is not None:
            yield memory.STATE_RECALL.of(self._state_recall_bits)


def _disk(bill: MemoryBill, settings: Settings) -> Iterator[Metric]:
    yield memory.DISK.by(bill.disk_pools)
    budgets = {"kv_archive": settings.archive_disk_bytes, "sessions": bill.sessions.max_disk_bytes}
    yield memory.DISK_BUDGET.by(budgets)
    usage = shutil.disk_usage(settings.data_dir)
    yield memory.DISK_FREE.of(usage.free)
    yield memory.DISK_SIZE.of(usage.total)


def _library(stats: "LibraryStats") -> Iterator[Metric]:
    yield documents.DOCUMENTS.by(stats.num_documents)
    yield documents.VECTORS.of(stats.num_vectors)
    yield documents.FACTS.of(stats.num_facts)
    yield documents.LAG_DOCUMENTS.of(stats.num_pending)
    yield documents.LAG_SECONDS.of(stats.waiting_seconds)
