"""How many arenas a server's allocator keeps, in processes of their own: the setting is for a whole one."""

import json
import os
import subprocess
import sys

import pytest

from server.commands.allocator import NUM_ARENAS

PROCESS = """
import ctypes, json, tempfile, threading
from server.commands.allocator import limit_arenas

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]

was_told = limit_arenas()
together, done = threading.Barrier(9), threading.Barrier(9)

def work():
    together.wait()
    block = libc.malloc(100_000)
    done.wait()
    libc.free(block)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
done.wait()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(json.dumps([was_told, file.read().decode().count("<heap nr=")]))
"""


def run(**environment: str) -> list[int]:
    """Whether the allocator was told, and how many arenas it had for eight threads."""
    decided = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    own = {name: value for name, value in os.environ.items() if name not in decided}
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, env=own | environment)
    if "malloc_info" in done.stderr:
        pytest.skip("no glibc here")
    assert done.returncode == 0, done.stderr
    told: list[int] = json.loads(done.stdout)
    return told


def test_threads_share_two_arenas() -> None:
    assert run() == [True, NUM_ARENAS]


def test_what_the_operator_decided_stays() -> None:
    was_told, arenas = run(MALLOC_ARENA_MAX="5")
    assert not was_told and arenas == 5
    was_told, arenas = run(GLIBC_TUNABLES="glibc.malloc.arena_max=4")
    assert not was_told and arenas == 4


def test_tunables_of_other_things_are_no_decision() -> None:
    assert run(GLIBC_TUNABLES="glibc.malloc.tcache_count=3") == [True, NUM_ARENAS]
