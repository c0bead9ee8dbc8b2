"""Files that can crash what reads them, or keep it busy, are read in a process of their own.

Other threads go on, a crash is a failed document and not a dead server, and reading ends after ten minutes at most.
A process takes some 0.2 s to start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retrieval.errors import ParseFailed

_MAX_SECONDS = 600.0
_MAX_ADDRESS_BYTES = 4 << 30
_ROOT = str(Path(__file__).resolve().parent.parent)


def read_apart(module: str, path: Path, max_characters: int, kind: str, messages: Mapping[str, str]) -> dict[str, Any]:
    """What ``module``, run by itself with :func:`answer`, makes of the file; ``kind`` and ``messages`` are for people.

    Raises ParseFailed with the ``code`` that the answer names, ``damaged`` after a crash, ``too_slow``.
    """
    command = [sys.executable, "-P", "-m", module, str(path.resolve()), str(max_characters)]
    # -P: what merely lies in the current directory is not imported; this package is, wherever it was found.
    search = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    try:
        finished = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MAX_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        message = f"the {kind} could not be read within {_MAX_SECONDS:.0f} seconds; split it"
        raise ParseFailed("too_slow", message) from error
    if finished.returncode != 0:
        last_line = finished.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        detail = f" (reader ended with {finished.returncode}{': ' + last_line if last_line else ''})"
        raise ParseFailed("damaged", messages["damaged"] + detail)
    answer: dict[str, Any] = json.loads(finished.stdout)
    if answer["code"] is not None:
        raise ParseFailed(answer["code"], answer.get("message") or messages[answer["code"]])
    return answer


def answer(read: Callable[[str, int], dict[str, object]]) -> None:
    """The worker's side: the arguments to ``read``, within a limit of memory, and its answer to standard output."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _MAX_ADDRESS_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MAX_ADDRESS_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    json.dump(read(sys.argv[1], int(sys.argv[2])), sys.stdout)
