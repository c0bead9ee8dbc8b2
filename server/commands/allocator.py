"""How many arenas the process' allocator keeps: glibc is told once, before threads begin.

What a thread gives back stays in its arena for whoever allocates there next. With up to eight arenas a core, as glibc
comes, each keeps what its threads once needed at most.
"""

import ctypes
import os

M_ARENA_MAX = -8  # of glibc's <malloc.h>; see mallopt(3)
NUM_ARENAS = 2


def limit_arenas() -> bool:
    """Have glibc keep two arenas; whether it was told. An operator's own number stays, and so do other allocators."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    is_decided = "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    return mallopt is not None and not is_decided and mallopt(M_ARENA_MAX, NUM_ARENAS) == 1
