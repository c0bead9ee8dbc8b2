"""What the server needs of an engine and of what it keeps. No torch."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from model.engine.request import GenerationRequest, TokenEvent
from model.engine.stats import EngineStats
from model.policy import AttentionPolicy

if TYPE_CHECKING:
    from model.cache.checkpoint import Checkpoint
    from model.cache.checkpoints import Found
    from model.cache.snapshot import Snapshot
    from model.fingerprint import Fingerprint


class Holding(Protocol):
    """The deepest checkpoint on a path of tokens: where it is, after how many tokens, and bytes of its tensors."""

    @property
    def tier(self) -> str:
        """``resident``, ``host``, or ``none`` where there is no checkpoint."""

    @property
    def num_tokens(self) -> int:
        """Tokens that need not be read again."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values."""

    @property
    def ssm_state_bytes(self) -> int:
        """Bytes of the SSM state."""

    @property
    def conv_state_bytes(self) -> int:
        """Bytes of the convolution state."""

    @property
    def kv_archive_bytes(self) -> int:
        """Bytes of keys and values that left the window, on the host."""


class KeptCheckpoints(Protocol):
    """What named sessions need of ``model.cache.checkpoints.Checkpoints``; ``tree`` is tenant and policy."""

    def anchor(self, key: Hashable, tree: Hashable, token_ids: Sequence[int]) -> None:
        """Hold on to the deepest checkpoint on the path, and let go of the one before."""

    def unanchor(self, key: Hashable) -> None:
        """Let go of a path."""

    def release(self, key: Hashable) -> None:
        """The anchored checkpoint is on the disk too, and may be given up."""

    def thin(self, tree: Hashable, token_ids: Sequence[int], is_wanted: Callable[[int], bool]) -> int:
        """Drop the checkpoints on the way after numbers of tokens that are not wanted."""

    def path(self, tree: Hashable, token_ids: Sequence[int]) -> "Sequence[Checkpoint]":
        """The checkpoints on the way, shallow to deep."""

    def find(
        self,
        tree: Hashable,
        token_ids: Sequence[int],
        needs_information: bool,
        selected_from: Callable[[int], int | None],
    ) -> "Found":
        """The deepest checkpoint on the way that a request would go on from; ``selected_from`` says of a number of
        tokens where among them it would have begun to select blocks."""

    def num_archived_held(self, checkpoint: "Checkpoint") -> int:
        """Blocks of a checkpoint in the archive that requests or names hold."""

    def snapshot(self, checkpoint: "Checkpoint") -> "Snapshot":
        """A checkpoint as host tensors."""

    def admit(self, tree: Hashable, token_ids: Sequence[int], snapshots: "Iterable[Snapshot]") -> int:
        """Take snapshots into host memory. Raises HostBudgetExceeded."""


class SteppedEngine(Protocol):
    """What the server needs of an engine; every method is called on the engine thread, ``stats`` on any."""

    @property
    def checkpoints(self) -> KeptCheckpoints:
        """What was kept of texts that were read."""

    def fingerprint(self, policy: AttentionPolicy) -> "Fingerprint":
        """What states read under the policy depend on."""

    def holding(self, tenant: str, policy: AttentionPolicy, token_ids: Sequence[int]) -> Holding:
        """The deepest checkpoint on the path: its tier, tokens and bytes."""

    def forget(self, tenant: str, policy: AttentionPolicy, token_ids: Sequence[int], num_general: int) -> int:
        """Drop the checkpoints of texts with more than ``num_general`` tokens in common, but for anchored ways."""

    def reading(self, request_id: str) -> tuple[int, int]:
        """How many tokens of a request's prompt are read, and how many of these were there already."""

    def submit(self, request: GenerationRequest) -> None:
        """Accept the request or raise ``RequestRefused``."""

    def abort(self, request_id: str) -> bool:
        """Drop the request if it is there; say whether it was."""

    def pause(self, request_id: str) -> None:
        """Step this request no more until ``resume``; it keeps what it holds."""

    def resume(self, request_id: str) -> None:
        """Let a paused request go on."""

    def step(self) -> list[TokenEvent]:
        """Do one unit of work, end the requests whose time is up, and return what became visible."""

    def has_work(self) -> bool:
        """Whether there are requests that are not paused."""

    def next_deadline(self) -> float | None:
        """Seconds until the time of any request is up; 0 when it is, None when none has a limit."""

    def stats(self) -> EngineStats:
        """The last published snapshot."""

    def refresh(self) -> None:
        """Publish what is true now."""
