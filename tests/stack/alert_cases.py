"""For each alert, series that make it fire, series of the same kind that must not, and how it ends.

Values are promtool's notation: ``0x20`` is twenty-one noughts, ``0+3x20`` grows by three, ``_`` is no sample. A sample
is 15 seconds. A case says at which minutes the alert fires, and at which it does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ON = 'instance="fano:8000",job="fano"'


@dataclass(frozen=True)
class Case:
    """``series`` by metric with its labels; ``labels`` are those of the alert beside severity and alertname."""

    alert: str
    name: str
    series: Mapping[str, str]
    fires_at: Sequence[float] = ()
    rests_at: Sequence[float] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: {"instance": "fano:8000", "job": "fano"})


def of(name: str, labels: str = "") -> str:
    return f"{name}{{{ON}{',' if labels else ''}{labels}}}"


BY_INSTANCE = {"instance": "fano:8000"}
STAGE = of("fano_stage", 'stage="draining"')
STAGE_LABELS = {"instance": "fano:8000", "job": "fano", "stage": "draining"}
WAITING = of("fano_requests", 'status="waiting"')
WAITING_LABELS = {"instance": "fano:8000", "job": "fano", "status": "waiting"}
QUEUE_FULL = of("fano_refusals_total", 'code="queue_full"')
PROMPT = of("fano_tokens_total", 'kind="prompt"')
CACHED = of("fano_tokens_total", 'kind="cached"')
USED, FREE = of("fano_kv_blocks", 'status="used"'), of("fano_kv_blocks", 'status="free"')
RESIDENT, AVAILABLE = of("process_resident_memory_bytes"), of("fano_host_memory_available_bytes")
HELD, PLANNED = of("fano_device_memory_bytes", 'pool="kv"'), of("fano_device_memory_plan_bytes", 'pool="kv"')
DISK_FREE, DISK_SIZE = of("fano_disk_free_bytes"), of("fano_disk_size_bytes")
LAG, LAGGING = of("fano_index_lag_seconds"), of("fano_index_lag_documents")
GOOD = of("fano_http_requests_total", 'method="POST",route="/v1/ask",status="200"')
BAD = of("fano_http_requests_total", 'method="POST",route="/v1/ask",status="500"')
BUSY = of("fano_http_requests_total", 'method="POST",route="/v1/ask",status="503"')
SCRAPES = of("fano_http_requests_total", 'method="GET",route="/metrics",status="200"')
STOPPED, FAILED = (of("fano_requests_finished_total", f'reason="{reason}"') for reason in ("stop", "error"))

CASES = (
    Case("FanoTargetDown", "ends and is started again", {of("up"): "1x8 0x12 1x20"}, [3.5, 5], [2, 3, 6]),
    Case("FanoTargetDown", "misses two scrapes", {of("up"): "1x8 0x1 1x30"}, (), [2.5, 3, 4]),
    Case("FanoTargetDown", "another job's", {'up{instance="other:1",job="other"}': "0x40"}, (), [5]),
    Case("FanoEngineFailed", "stops and is replaced", {of("fano_stage", 'stage="failed"'): "0x8 1x12 0x20"},
         [3, 5], [2, 5.5], {"instance": "fano:8000", "job": "fano", "stage": "failed"}),
    Case("FanoEngineFailed", "loads", {of("fano_stage", 'stage="loading"'): "1x40"}, (), [5]),
    Case("FanoMemoryNearPlan", "blocks are used up and given back", {USED: "50x8 95x40 50x40", FREE: "50x8 5x40 50x40"},
         [8, 11], [2, 6, 13], {**BY_INSTANCE, "pool": "kv"}),
    Case("FanoMemoryNearPlan", "blocks are cached, which anybody may have",
         {USED: "10x80", FREE: "5x80", of("fano_kv_blocks", 'status="cached"'): "85x80"}, (), [10]),
    Case("FanoMemoryNearPlan", "resident set near what there is",
         {RESIDENT: "5x8 95x40 5x40", AVAILABLE: "95x8 5x40 95x40"},
         [8, 11], [2, 6, 13], {"instance": "fano:8000", "job": "fano", "pool": "resident"}),
    Case("FanoMemoryNearPlan", "much is resident, and as much left", {RESIDENT: "50x80", AVAILABLE: "50x80"}, (), [10]),
    Case("FanoMemoryOverPlan", "a pool is larger, then as planned", {HELD: "10x8 11x12 10x20", PLANNED: "10x60"},
         [4, 5], [2, 6], {"instance": "fano:8000", "job": "fano", "pool": "kv"}),
    Case("FanoMemoryOverPlan", "a pool is full", {HELD: "10x60", PLANNED: "10x60"}, (), [10]),
    Case("FanoQueueGrowing", "grows for minutes, then is worked off", {WAITING: "0x4 1+1x40 0x40", QUEUE_FULL: "0x90"},
         [9, 11], [5, 12, 15], WAITING_LABELS),
    Case("FanoQueueGrowing", "stands at its limit and refuses", {WAITING: "8x80", QUEUE_FULL: "0+1x40 40x40"},
         [8, 10], [1, 18], WAITING_LABELS),
    Case("FanoQueueGrowing", "is never empty, but shrinks", {WAITING: "90-1x80", QUEUE_FULL: "0x80"}, (), [8, 15]),
    Case("FanoQueueGrowing", "is empty now and then",
         {WAITING: "0 3 0 5 0 7 0 9 0 11 0 13 0 15 0 17 0 19 0 21 0 23 0 25", QUEUE_FULL: "0+1x80"}, (), [5]),
    Case("FanoIndexBehind", "a document waits, then can be asked", {LAG: "0+15x60 0x20", LAGGING: "1x60 0x20"},
         [12, 15], [5, 10, 16]),
    Case("FanoIndexBehind", "always some for half an hour", {LAG: "5x160", LAGGING: "3x140 0x20"}, [32, 34], [20, 36]),
    Case("FanoIndexBehind", "documents come and are done", {LAG: "0 15 30 45 0 15 30 45 0 15 30 45 0 15 30 45 0",
                                                           LAGGING: "1 2 1 1 0 1 2 1 0 1 1 1 0 2 1 1 0"}, (), [4]),
    Case("FanoDiskFilling", "fills up and is cleared", {DISK_FREE: "50x8 9x40 50x40", DISK_SIZE: "100x90"},
         [8, 11], [2, 6, 13]),
    Case("FanoDiskFilling", "will be full in hours", {DISK_FREE: "29-0.03x480", DISK_SIZE: "100x480"}, [30], [1]),
    Case("FanoDiskFilling", "much is free, though it falls fast", {DISK_FREE: "90-0.05x240", DISK_SIZE: "100x240"},
         (), [30]),
    Case("FanoDiskFilling", "little changes", {DISK_FREE: "20x240", DISK_SIZE: "100x240"}, (), [30, 55]),
    Case("FanoErrors", "one in ten fails, then none", {GOOD: "0+9x160", BAD: "0+1x40 40x120"}, [5, 10], [0.5, 20],
         BY_INSTANCE),
    Case("FanoErrors", "answers end with an error after they began", {GOOD: "0+9x160", STOPPED: "0+9x160",
                                                                    FAILED: "0+1x40 40x120"}, [5, 10], [0.5, 20],
         BY_INSTANCE),
    Case("FanoErrors", "one in a hundred fails", {GOOD: "0+99x160", BAD: "0+1x160"}, (), [5, 20]),
    Case("FanoErrors", "it says that it loads or drains", {GOOD: "0+1x80", BUSY: "0+9x80"}, (), [5, 10]),
    Case("FanoErrors", "few requests among many scrapes", {SCRAPES: "0+90x80", GOOD: "0+9x80", BAD: "0+1x80"}, [5], (),
         BY_INSTANCE),
    Case("FanoDrainStuck", "nothing moves, then it ends", {STAGE: "0x8 1x16 _x40", PROMPT: "0+5x8 45x16 _x40",
                                                          of("fano_stage_seconds"): "0+15x24 _x40",
                                                          of("fano_drain_limit_seconds"): "600x24 _x40"},
         [5, 6], [2, 3, 12], STAGE_LABELS),
    Case("FanoDrainStuck", "answers go on", {STAGE: "1x40", PROMPT: "0+5x40", of("fano_stage_seconds"): "0+15x40",
                                             of("fano_drain_limit_seconds"): "3600x40"}, (), [5, 9]),
    Case("FanoDrainStuck", "answers go on past the limit", {STAGE: "1x40", PROMPT: "0+5x40",
                                                          of("fano_stage_seconds"): "0+15x40",
                                                          of("fano_drain_limit_seconds"): "60x40"},
         [3, 5], [1], STAGE_LABELS),
    Case("FanoDrainStuck", "idle, and nobody told it to end", {STAGE: "0x40", PROMPT: "9x40"}, (), [5]),
    Case("FanoSessionsLost", "some are given up, once", {of("fano_checkpoints_lost_total"): "0x8 3x100"},
         [3, 10], [2, 20]),
    Case("FanoSessionsLost", "none is", {of("fano_checkpoints_lost_total"): "7x100"}, (), [10]),
)  # fmt: skip
