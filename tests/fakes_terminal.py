"""A terminal of one's own for a command, and what the command writes to it."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Screen:
    """What a process writes to its terminal, escapes included."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self.text = ""
        self._master = master

    def wait_for(self, words: str, count: int = 1, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.text.count(words) < count:
            is_late = time.monotonic() > deadline or (self.process.poll() is not None and not self._read())
            assert not is_late or self.text.count(words) >= count, f"no {words!r} in {self.text[-3000:]!r}"
            self._read()

    def end(self) -> int:
        """The exit status, once it ended by itself."""
        while self.process.poll() is None:
            self._read()
        self._read()
        return self.process.returncode

    def _read(self) -> bool:
        """Whether something came."""
        if select.select([self._master], [], [], 0.1)[0]:
            with suppress(OSError):  # EIO is the end of it
                more = os.read(self._master, 1 << 16).decode(errors="replace")
                self.text += more
                return bool(more)
        return False


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Screen]:
    """The command, by default ``fano``'s, in a terminal of 100 columns and 40 rows."""
    master, slave = pty.openpty()
    size = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
    own = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FANO_API_KEY")}
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *command],
        stdin=slave, stdout=slave, stderr=slave, env=own | size | environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        yield Screen(process, master)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
