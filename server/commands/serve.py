"""One server process: a socket, uvicorn, and an orderly end.

SIGTERM and SIGINT begin a drain: the process goes on listening, so that /readyz and new requests get
their 503, while the answers under way are finished; then it ends with status 0. A second signal ends it
at once.
"""

import logging
import socket
import sys
import time
from types import FrameType

import anyio.to_thread
import uvicorn
from typing_extensions import override

from server.app import create_app
from server.commands.allocator import limit_arenas
from server.dependencies import AppState
from server.logs import log_event
from server.readiness import Stage
from server.settings import Settings

logger = logging.getLogger(__name__)

# After the drain nothing is left to wait for but connections that are closing.
CLOSING_SECONDS = 2
SWITCH_SECONDS = 0.0005
BACKLOG = 512


class AddressUnavailable(Exception):
    """The address cannot be listened on."""


def serve(settings: Settings) -> int:
    """Serve until a signal comes; the exit status. Raises ``AddressUnavailable`` and what ``create_app`` raises."""
    limit_arenas()
    app = create_app(settings)
    listener = bind(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        # Named, so that what is installed beside Fano does not change how it serves.
        loop="asyncio",
        http="httptools",
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    server = DrainingServer(config, app.state.fano)
    log_event(logger, "listening", url=url_of(listener))
    # The event loop shares the interpreter with the engine and the ingestion; it must not wait long for its turn.
    sys.setswitchinterval(SWITCH_SECONDS)
    server.run(sockets=[listener])
    return 1 if app.state.fano.readiness.stage is Stage.FAILED else 0


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises ``AddressUnavailable`` with the remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's delay off; without it every reply takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        listener.close()
        raise AddressUnavailable(
            f"{host}:{port} cannot be listened on ({error.strerror}); stop what uses it or choose another --port"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Where the socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """uvicorn, but a signal first drains, and a failed start ends the process."""

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self._state = state
        self._deadline: float | None = None

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain at the first signal, end at the second."""
        if self._deadline is not None:
            self.should_exit = self.force_exit = True
            return
        self._deadline = time.monotonic() + self._state.settings.drain_seconds
        self._state.readiness.drain()

    @override
    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end now."""
        readiness = self._state.readiness
        if readiness.stage is Stage.FAILED:
            return True
        if self._deadline is not None:
            late = time.monotonic() > self._deadline
            if late and self._state.services is not None:
                # Whoever still waits is told so in an error event instead of a cut connection.
                await anyio.to_thread.run_sync(self._state.services.bridge.stop)
            if late or readiness.num_requests == 0:
                log_event(logger, "drained", left=readiness.num_requests)
                return True
        return await super().on_tick(counter)
