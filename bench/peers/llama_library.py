"""llama.cpp in process: its library through the bindings that its package carries, as ``llama-bench`` calls it.

What ``llama-bench`` takes is taken here: context sizes of 2,048 and 512 tokens a batch, keys and values in float16,
flash attention where it thinks best. Its threads wait without spinning, as everybody's do in this comparison.
"""

import ctypes
import importlib
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.llama import LlamaBuild
from bench.peers.engines import Floats

BATCH_TOKENS = 2048
PADDED_TOKENS = 256
MOST_THREADS = 512  # GGML_MAX_N_THREADS


class ThreadPoolParams(ctypes.Structure):
    """``ggml_threadpool_params`` of ggml.h."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * MOST_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class LlamaFailed(Exception):
    """A call into the library did not do what it should."""


def load_bindings(build: LlamaBuild) -> types.ModuleType:
    """The package's ctypes module alone: its own ``__init__`` wants libraries that nothing here needs."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(build.libraries)
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(build.package / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class LlamaEngine:
    """A context with a sequence for each stream, as ``llama-server`` has it."""

    def __init__(self, build: LlamaBuild, gguf: Path, num_threads: int) -> None:
        self.api = load_bindings(build)
        self.num_threads = num_threads
        self._silence = self.api.llama_log_callback(lambda *_: None)
        self.api.llama_log_set(self._silence, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        self.model = self.api.llama_model_load_from_file(str(gguf).encode(), self.api.llama_model_default_params())
        if not self.model:
            raise LlamaFailed(f"{gguf} was not loaded")
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.pool = self._make_pool(build) if num_threads > 1 else None
        self.context: Any = None
        self.batch: Any = None

    def open(self, num_streams: int, num_tokens: int) -> None:
        if self.context:
            self.api.llama_free(self.context)
            self.api.llama_batch_free(self.batch)
        params = self.api.llama_context_default_params()
        params.n_ctx = num_streams * -(-num_tokens // PADDED_TOKENS) * PADDED_TOKENS
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = num_streams
        params.n_threads = params.n_threads_batch = self.num_threads
        # As its own header advises for streams that share no beginning.
        params.kv_unified = False
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise LlamaFailed(f"no context for {num_streams} streams of {num_tokens} tokens")
        if self.pool:
            self._library.llama_attach_threadpool(ctypes.c_void_p(self.context), self.pool, None)
        self.batch = self.api.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.num_tokens = 0

    def read(self, ids: Sequence[int]) -> int:
        for start in range(0, len(ids), BATCH_TOKENS):
            piece = ids[start : start + BATCH_TOKENS]
            is_last = start + BATCH_TOKENS >= len(ids)
            self._decode(piece, [0] * len(piece), range(self.num_tokens, self.num_tokens + len(piece)), int(is_last))
            self.num_tokens += len(piece)
        return int(self._logits(len(piece) - 1).argmax())

    def spread(self, num_streams: int) -> None:
        memory = self.api.llama_get_memory(self.context)
        for stream in range(1, num_streams):
            # Keys and values are copied at once, the recurrent state when the streams part.
            self.api.llama_memory_seq_cp(memory, 0, stream, -1, -1)

    def step(self, tokens: Sequence[int]) -> list[int]:
        count = len(tokens)
        self._decode(tokens, range(count), [self.num_tokens] * count, count)
        self.num_tokens += 1
        return [int(self._logits(row).argmax()) for row in range(count)]

    def all_logits(self, ids: Sequence[int]) -> Floats:
        self.open(1, len(ids))
        rows: list[Floats] = []
        for start in range(0, len(ids), BATCH_TOKENS):
            piece = ids[start : start + BATCH_TOKENS]
            self._decode(piece, [0] * len(piece), range(start, start + len(piece)), len(piece))
            rows += [self._logits(row).copy() for row in range(len(piece))]
        return np.stack(rows)

    def _decode(self, tokens: Sequence[int], streams: Sequence[int], positions: Sequence[int], num_logits: int) -> None:
        """Run tokens, with logits for the last ``num_logits``."""
        count, batch = len(tokens), self.batch
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.token, (count,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (count,))[:] = positions
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
        wanted = np.ctypeslib.as_array(batch.logits, (count,))
        wanted[:] = 0
        wanted[count - num_logits :] = 1
        for row, stream in enumerate(streams):
            batch.seq_id[row][0] = stream
        status = self.api.llama_decode(self.context, batch)
        if status != 0:
            raise LlamaFailed(f"llama_decode of {count} tokens says {status}")

    def _logits(self, row: int) -> Floats:
        """[V], valid until the next call."""
        found: Floats = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, row), (self.vocab_size,))
        return found

    def _make_pool(self, build: LlamaBuild) -> ctypes.c_void_p:
        """Threads that sleep while they wait."""
        cpu, self._library = (ctypes.CDLL(str(build.libraries / f"lib{name}.so")) for name in ("ggml-cpu", "llama"))
        base = ctypes.CDLL(str(build.libraries / "libggml-base.so"))
        params = ThreadPoolParams()
        base.ggml_threadpool_params_init(ctypes.byref(params), self.num_threads)
        params.poll = 0
        cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        return ctypes.c_void_p(cpu.ggml_threadpool_new(ctypes.byref(params)))
