"""Files that can crash what reads them, or keep it busy, are read in a process of their own.

Other threads go on, a crash is a failed document and not a dead server, and reading ends after ten minutes at most.
A process takes some 0.2 s to start.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retrieval.errors import ParseFailed

_MAX_SECONDS = 600.0
_MAX_ADDRESS_BYTES = 4 << 30
# This package may have been found where the new process does not look. Last, so that it hides no other module.
_START = f"""
import runpy, sys
sys.path.append({str(Path(__file__).resolve().parent.parent)!r})
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def read_apart(module: str, path: Path, max_characters: int, kind: str, messages: Mapping[str, str]) -> dict[str, Any]:
    """What ``module``, run by itself with :func:`answer`, makes of the file; ``kind`` and ``messages`` are for people.

    Raises ParseFailed with the ``code`` that the answer names, ``damaged`` after a crash, ``too_slow``.
    """
    # -P: what merely lies in the current directory is not imported.
    command = [sys.executable, "-P", "-c", _START, module, str(path.resolve()), str(max_characters)]
    try:
        finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MAX_SECONDS)
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
