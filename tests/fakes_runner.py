"""An engine over a runner that follows a script, and what tests of engines share."""

import time
from collections.abc import Callable, Collection, Iterable
from types import MappingProxyType

import torch
from fakes_model import TINY_CONFIG
from torch import Tensor

from model.cache.archive_room import ArchiveRoom
from model.cache.block_pool import BlockPool
from model.cache.checkpoint import Checkpoint
from model.cache.checkpoints import Checkpoints
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.engine.admission import Admission
from model.engine.books import Capacity
from model.engine.engine import Engine
from model.engine.holdings import HeldBytes, Holding
from model.engine.request import GenerationRequest, PrefixOutcome, SamplingParams, TokenEvent
from model.engine.running import Runner
from model.engine.scheduler import Budget, Scheduler
from model.engine.sequence import Sequence
from model.engine.stats import BuildInfo, EngineStats, PoolCounts
from model.engine.step import StepPlan
from model.engine.token_trie import TokenTrie
from model.errors import ArchiveFull
from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

FULL = AttentionPolicy()
WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64)
NUM_SLOTS, NUM_BLOCKS, CHUNK, MAX_CONTEXT = 8, 60, 64, 900
SAVED_BYTES = 1 << 30


class ScriptedRunner:
    """Answers each request with its next scripted id, by logits; counts slots as the real one does. Blocks are free
    without end, and saving is a note."""

    saved_bytes = 0
    archive_blocks = PoolCounts(0, 0)
    archive_bytes = MappingProxyType({"kv_archive": 0, "kv_summaries": 0})
    archive_disk_bytes = 0
    num_archive_blocks_free = 0
    num_free_blocks = NUM_BLOCKS
    num_shared_blocks = 0
    workspace_bytes = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.scripts: dict[str, list[int]] = {}
        self.failures: dict[str, Exception] = {}
        self.held: set[Sequence] = set()
        self.saved: set[Sequence] = set()
        self.plans: list[StepPlan] = []
        config = ModelConfig.from_dict(TINY_CONFIG)
        self.checkpoints = Checkpoints(StatePool(config, 1), BlockPool(config, 1, Dtype.FLOAT32), 0)

    @property
    def slots(self) -> PoolCounts:
        return PoolCounts(free=NUM_SLOTS - len(self.held), used=len(self.held))

    @property
    def blocks(self) -> PoolCounts:
        return PoolCounts(free=NUM_BLOCKS, used=0)

    def capacity(self, saved_bytes: int) -> Capacity:
        return Capacity(NUM_SLOTS, NUM_BLOCKS, 100, 10, saved_bytes)

    def run(self, plan: StepPlan) -> Tensor:
        self.plans.append(plan)
        rows: list[Tensor] = []
        for chunk in plan.chunks:
            name = chunk.sequence.group.request_id
            self.held.add(chunk.sequence)
            if name in self.failures:
                raise self.failures[name]
            for _ in range(chunk.num_logits):
                place = chunk.sequence.num_completion_tokens
                script = self.scripts[name]
                row = torch.zeros(self.vocab_size)
                row[script[place] if place < len(script) else 2] = 50.0
                rows.append(row)
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size)

    def starved(self, plan: StepPlan) -> None:
        return None

    def fork(self, sequence: Sequence, forks: Collection[Sequence]) -> None:
        assert sequence in self.held
        self.held |= set(forks)

    def advance(self, sequence: Sequence) -> None:
        pass

    def begin(self, sequence: Sequence, beside: Collection[Sequence]) -> None:
        sequence.group.begin(PrefixOutcome("miss", "empty"), 0, CHUNK)

    @property
    def archive_room(self) -> ArchiveRoom:
        return self.checkpoints.archive_room

    def archive_full(self, num_blocks: int) -> ArchiveFull:
        return ArchiveFull(num_blocks, 0, 0)

    def num_archived(self, sequence: Sequence) -> int:
        return 0

    num_archived_found = num_archived

    def num_missing_blocks(self, sequence: Sequence, end: int) -> int:
        return 0

    def num_bytes_to_save(self, sequences: Collection[Sequence]) -> int:
        return len(sequences)

    def num_blocks_to_restore(self, sequences: Collection[Sequence]) -> int:
        return 0

    def save(self, sequences: Collection[Sequence]) -> bool:
        moved = self.held & set(sequences)
        self.held -= moved
        self.saved |= moved
        return True

    def restore(self, sequences: Collection[Sequence]) -> None:
        moved = self.saved & set(sequences)
        self.saved -= moved
        self.held |= moved

    def held_bytes(self, sequences: Collection[Sequence]) -> HeldBytes:
        count = len((self.held | self.saved) & set(sequences))
        return HeldBytes(kv=100 * count, ssm_state=20 * count, conv_state=3 * count)

    def close(self, sequence: Sequence) -> None:
        self.held.discard(sequence)
        self.saved.discard(sequence)

    def holding(self, checkpoint: Checkpoint) -> Holding:
        return Holding("host", checkpoint.num_tokens)

    def retire(self, sequence: Sequence) -> None:
        self.close(sequence)

    def check(self) -> None:
        assert len(self.held) <= NUM_SLOTS


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def build(
    runner: Runner,
    capacity: Capacity,
    tokenizer: Tokenizer,
    vocabulary: TokenTrie,
    policy: AttentionPolicy = FULL,
    clock: Callable[[], float] = time.monotonic,
    max_waiting: int = 20,
    max_context: int = MAX_CONTEXT,
    archive: tuple[int, int] = (0, 0),
) -> Engine:
    """An engine over ``runner`` that believes in ``capacity``; ``archive`` are blocks and the bytes of each."""
    stats = EngineStats(
        build=BuildInfo("tiny", "cpu", "reference", "float32", "full"),
        slots=runner.slots,
        blocks=runner.blocks,
        pool_bytes={},
        plan_bytes={},
        max_context_tokens=max_context,
    )
    scheduler = Scheduler(runner, capacity, Budget(CHUNK, CHUNK, 0.5), max_waiting)
    limits = tokenizer.vocab_size, max_context, capacity.num_slots, capacity.num_blocks, CHUNK
    admission = Admission(*limits, *archive)
    return Engine(runner, scheduler, tokenizer, vocabulary, admission, policy, stats, clock)


REQUEST_FIELDS = ("evidence", "policy", "max_spans", "num_choices", "tenant", "max_seconds", "keep")
REQUEST_FIELDS += ("measure_information", "surprisals_from", "is_background", "select_from")


def request(name: str = "a", prompt: Iterable[int] = (1, 9, 9), **changes: object) -> GenerationRequest:
    """A greedy request; ``changes`` are fields of it or of its sampling."""
    fields = {key: changes.pop(key) for key in REQUEST_FIELDS if key in changes}
    values: dict[str, object] = {"max_tokens": 50, "temperature": 0.0, **changes}
    return GenerationRequest(name, tuple(prompt), SamplingParams(**values), **fields)  # type: ignore[arg-type]


def finish(engine: Engine, limit: int = 20_000) -> list[TokenEvent]:
    """Step to the end."""
    events: list[TokenEvent] = []
    for _ in range(limit):
        if not engine.has_work():
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def text_of(events: list[TokenEvent], name: str = "a", choice: int = 0) -> str:
    """The text of one choice."""
    return "".join(event.text for event in events if (event.request_id, event.choice) == (name, choice))


def ids_of(events: list[TokenEvent], name: str = "a", choice: int = 0) -> list[int]:
    """The token ids of one choice."""
    mine = [event for event in events if (event.request_id, event.choice) == (name, choice)]
    return [token_id for event in mine for token_id in event.token_ids]
