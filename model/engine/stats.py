"""What the engine says about itself: a frozen snapshot after each step, readable from any thread. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

POOL_NAMES = ("weights", "ssm_state", "conv_state", "kv", "workspace")
ARCHIVE_POOLS = ("kv_archive", "kv_summaries")


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """Units of one pool by status. Law of conservation: ``free + used + cached == total``."""

    free: int
    used: int
    cached: int = 0

    @property
    def total(self) -> int:
        """All units of the pool."""
        return self.free + self.used + self.cached


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What runs: the label values of ``fano_build_info``; and of how many blocks the indexes over the archive are, by
    which tokens choose under that policy."""

    model: str
    device: str
    kernels: str
    dtype: str
    policy: str
    archive_index_blocks: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The step that was run last: ``phase`` is ``prefill``, ``decode``, or ``mixed`` where it did both."""

    phase: str
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One consistent view of the engine between two steps.

    ``pool_bytes`` are bytes of tensors held, ``plan_bytes`` those promised at the start, both by
    the names in ``POOL_NAMES``. ``num_saved`` of the waiting requests were preempted: their state and blocks, of
    ``saved_bytes``, are in host memory. ``num_prefixes`` counts ended requests by result and reason of the look for
    their prompt's beginning, ``num_cached_tokens`` what was found of it, both without those that only read in the
    background; ``checkpoint_bytes`` of ``checkpoint_budget_bytes`` on the host are checkpoints, ``num_checkpoints`` by
    tier; ``num_checkpoints_lost`` had an anchor and were given up all the same. ``archive_bytes`` are those of host
    memory for keys and values that left the windows and for their summaries, by the names in ``ARCHIVE_POOLS``,
    ``archive_disk_bytes`` those of the file beyond it; ``archive_blocks`` by status are in either. Of the cached ones
    ``num_archive_blocks_anchored`` make no room, since nothing else has what a name holds on to; those admitted may
    still come to need ``num_archive_blocks_promised``. Counters
    (``num_*_tokens``, ``num_aborted``, ``num_failed``, ``num_finished``, ``num_preemptions``, ``num_steps``) only grow.
    """

    build: BuildInfo
    slots: PoolCounts
    blocks: PoolCounts
    pool_bytes: Mapping[str, int]
    plan_bytes: Mapping[str, int]
    max_context_tokens: int
    num_blocks_shared: int = 0
    saved_bytes: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_saved: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_prefixes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    checkpoint_budget_bytes: int = 0
    num_checkpoints: Mapping[str, int] = field(default_factory=dict)
    num_checkpoints_lost: int = 0
    archive_blocks: PoolCounts = PoolCounts(0, 0)
    num_archive_blocks_anchored: int = 0
    num_archive_blocks_promised: int = 0
    archive_disk_bytes: int = 0
    archive_bytes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(ARCHIVE_POOLS, 0))
    num_finished: int = 0
    num_aborted: int = 0
    num_failed: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    draining: bool = False
    last_step: StepRecord | None = None

    @property
    def tokens_by_kind(self) -> Mapping[str, int]:
        """The counters of ``fano_tokens_total`` by their label."""
        return MappingProxyType(
            {
                "prompt": self.num_prompt_tokens,
                "cached": self.num_cached_tokens,
                "completion": self.num_completion_tokens,
            }
        )
