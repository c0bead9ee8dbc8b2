"""The Triton kernels under the tests of `triton_parity` and `triton_listed`: interpreted here, compiled on a GPU.

Triton decides between the two when it is imported, so each runs in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
ROOT = Path(__file__).parents[2]
SUITES = [str(Path(__file__).with_name(name)) for name in ("triton_parity.py", "triton_listed.py")]


def run_suite(**environment):
    # Triton 3.9 warns unless it is told whether to contract multiplications and additions, as it always has.
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    # Without the fixtures of this folder, which take transformers a while to make.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", *SUITES]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@needs_triton
def test_interpreted():
    if version("triton").startswith("3.6."):
        pytest.skip("the interpreter of Triton 3.6 cannot loop over a loaded number under NumPy 2.4")
    run_suite(TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled():
    run_suite(TRITON_INTERPRET="0")


# Triton's names for what the kernels of a bfloat16 pool are given.
INDICES = [
    "bounds",
    "slots",
    "tile_sequence",
    "tile_row",
    "tile_token",
    "first_tile",
    "spans",
    "entries",
    "decodes",
    "offsets",
]
NUMBERS = ["inner", "num_states", "width", "table_width", "num_splits"]
POOLED = ["queries", "keys", "values", "fetched", "out"]


def types_of(kernel, constants, pooled):
    types = dict.fromkeys([*INDICES, "lengths", "offsets"], "*i32") | {"rows": "*i64", "scale": "fp32"}
    types |= dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(POOLED, f"*{pooled}")
    names = [parameter.name for parameter in kernel.params if parameter.name not in constants]
    return {name: "i32" if name.endswith("_stride") else types.get(name, "*fp32") for name in names}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("pooled", ["fp32", "bf16"])
def test_every_kernel_compiles_for_hopper(pooled, monkeypatch, tmp_path):
    """Down to machine code, which takes no GPU."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.kernels.triton import attention, convolution, decoding, listing, scan, store, tables

    tile, states = {"TILE": tables.TILE_TOKENS}, {"BLOCK": scan.BLOCK, "STATES": 16}
    unrolled, gated = {"UNROLLED": scan.UNROLLED}, {"GATED": True}
    taps = {"TAPS": 4, "BLOCK": convolution.BLOCK}
    heads = {"HEADS": 32, "WIDTH": 128, "PADDED": 128}
    paged = heads | {"GROUPS": 8, "BLOCK": 64}
    rows = attention.TILE_ROWS[2 if pooled == "bf16" else 4]
    kernels = [
        (scan._ends, tile | unrolled | states, scan.WARPS),
        (scan._begins, states, scan.WARPS),
        (scan._outputs, tile | unrolled | states | gated, scan.WARPS),
        (scan._step, states | gated, scan.WARPS),
        (convolution._outputs, tile | taps | {"ROWS": convolution.ROWS, "BIASED": True}, convolution.WARPS),
        (convolution._tails, taps, convolution.WARPS),
        (convolution._step, taps | {"BLOCK": convolution.STEP_BLOCK, "BIASED": True}, convolution.STEP_WARPS),
        (attention._tiles, paged | {"PER_GROUP": 4, "TOKENS": rows // 4, "ROWS": rows}, attention.WARPS),
        (decoding._splits, paged | {"ROWS": attention.LEAST_ROWS}, decoding.WARPS),
        (listing._splits, paged | {"ROWS": attention.LEAST_ROWS}, listing.WARPS),
        (decoding._together, heads | {"SPLITS": tables.MAX_SPLITS}, decoding.WARPS),
        (store._store, {"BLOCK": store.BLOCK}, store.WARPS),
    ]
    for kernel, constants, num_warps in kernels:
        source = ASTSource(kernel, types_of(kernel, constants, pooled), constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
        assert compiled.asm["cubin"]
