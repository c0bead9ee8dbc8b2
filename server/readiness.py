"""Where the process stands between start and end, and how many requests are inside it."""

from dataclasses import dataclass
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
    """Changed by the event loop only. ``reason`` is for people."""

    stage: Stage = Stage.LOADING
    reason: str = "the model and the library are loading"
    num_requests: int = 0

    def ready(self) -> None:
        """Model and library stand. A drain that began meanwhile goes on."""
        if self.stage is Stage.LOADING:
            self.stage, self.reason = Stage.READY, "ready"

    def drain(self) -> None:
        """Take nothing new from now on."""
        if self.stage is not Stage.FAILED:
            self.stage, self.reason = Stage.DRAINING, "the server is shutting down"

    def fail(self, reason: str) -> None:
        """Nothing will ever be served by this process."""
        self.stage, self.reason = Stage.FAILED, reason

    def check(self) -> None:
        """Raise what a request that needs the model or the library is to be answered now."""
        if self.stage is Stage.DRAINING:
            raise EngineDraining
        if self.stage is not Stage.READY:
            raise NotReady(self.reason)
