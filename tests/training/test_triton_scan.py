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
