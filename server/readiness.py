"""Where the process stands between start and end, and how many requests are inside it."""

import time
from dataclasses import dataclass, field
from enum import StrEnum

from model.errors import EngineDraining
from server.errors import NotReady


class Stage(StrEnum):
    """What may be asked of the process."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(slots=True)
class Readiness:
    """Changed by the event loop only. ``reason`` is for people, ``changed_at`` in monotonic seconds."""

    stage: Stage = Stage.LOADING
    reason: str = "the model and the library are loading"
    num_requests: int = 0
    changed_at: float = field(default_factory=time.monotonic)

    def ready(self) -> None:
        """Model and library stand. A drain that began meanwhile goes on."""
        if self.stage is Stage.LOADING:
            self._turn(Stage.READY, "ready")

    def drain(self) -> None:
        """Take nothing new from now on."""
        if self.stage is not Stage.FAILED:
            self._turn(Stage.DRAINING, "the server is shutting down")

    def fail(self, reason: str) -> None:
        """Nothing will ever be served by this process."""
        self._turn(Stage.FAILED, reason)

    def check(self) -> None:
        """Raise what a request that needs the model or the library is to be answered now."""
        if self.stage is Stage.DRAINING:
            raise EngineDraining
        if self.stage is not Stage.READY:
            raise NotReady(self.reason)

    def _turn(self, stage: Stage, reason: str) -> None:
        if stage is not self.stage:
            self.changed_at = time.monotonic()
        self.stage, self.reason = stage, reason
