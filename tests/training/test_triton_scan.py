"""The Triton kernels under the tests of `test_parallel_scan`: interpreted here, compiled where there is a GPU.

Triton decides between the two when it is imported, so each runs in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
SUITE = Path(__file__).with_name("test_parallel_scan.py")


def run_suite(**environment):
    # Triton 3.9 warns unless it is told whether to contract multiplications and additions, as it always has.
    environment |= {"SCAN_UNDER_TEST": "training.triton_scan", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_interpreted():
    run_suite(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled():
    run_suite(TRITON_INTERPRET="0")


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["fp32", "bf16"])
def test_every_kernel_compiles_for_hopper(activations, monkeypatch, tmp_path):
    """Down to machine code, which takes no GPU."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from training import triton_scan as scan

    sizes = {"CHUNK": scan.CHUNK, "TILE": scan.TILE, "BLOCK": scan.BLOCK}
    kernels = [
        (scan._ends, sizes | {"REVERSE": False}),
        (scan._ends, sizes | {"REVERSE": True}),
        (scan._combine, {"LANES": scan.LANES, "REVERSE": False}),
        (scan._combine, {"LANES": scan.LANES, "REVERSE": True}),
        (scan._outputs, sizes),
        (scan._gradients, sizes | {"TILE": scan.BACKWARD_TILE}),
    ]
    types = dict.fromkeys(["u", "dt", "dy", "y", "du", "ddt", "x", "b", "c", "v"], f"*{activations}")
    types |= dict.fromkeys(["tokens", "inner", "chunks", "width", "rows", "first"], "i32") | {"reset": "*u8"}
    for kernel, constants in kernels:
        signature = {p.name: types.get(p.name, "*fp32") for p in kernel.params if p.name not in constants}
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": scan.WARPS})
        assert compiled.asm["cubin"]
