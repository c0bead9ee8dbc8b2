"""Whether the Triton kernels can be had on a device, and why not; importing this needs no triton."""

import subprocess
from importlib.util import find_spec

import torch

from model.config import ModelConfig
from model.kernels import Kernels
from model.kernels.native import load_native
from model.kernels.selection import chosen_places


def load_triton(device: str, num_threads: int, model: ModelConfig | None = None) -> tuple[Kernels | None, str]:
    """``(kernels, reason)`` for ``device``, or ``(None, reason)`` where they cannot be had.

    Each kernel is compiled and run beside its twin first, in the geometry of ``model`` or in a small one; the name says
    for which architecture it was compiled. On ``cpu`` there is Triton's interpreter alone, which is for tests and has
    to be asked for by ``TRITON_INTERPRET=1``.
    """
    if find_spec("triton") is None:
        return None, "triton is not installed; install Fano with the extra gpu"
    if device == "cpu":
        name = "triton-interpreted"
    elif not torch.cuda.is_available():
        return None, f"torch sees no CUDA device, and {device} was asked for"
    else:
        name = "triton-sm{}{}".format(*torch.cuda.get_device_capability(device))
    try:
        import triton

        if bool(triton.knobs.runtime.interpret) != (device == "cpu"):
            return None, "Triton's interpreter is for tests on a CPU: TRITON_INTERPRET=1 there, and not set elsewhere"
        from model.kernels.triton.launch import TritonKernels
        from model.kernels.triton.parity import Geometry, disagreement
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return None, f"triton cannot be used: {type(error).__name__}: {error}"
    made = TritonKernels(device)
    recurrence = made.causal_conv, made.selective_scan
    # The host chooses among what left the windows, with its own kernels.
    native, _ = load_native(num_threads)
    kernels = Kernels(
        name,
        *recurrence,
        made.attend,
        num_threads=num_threads,
        store_kv=made.store_kv,
        attend_listed=made.attend_listed,
        choose=chosen_places if native is None else native.choose,
        frame=made.frame,
    )
    try:
        if device != "cpu":
            # Triton launches on the current device, whatever the tensors say.
            torch.cuda.set_device(device)
        found = disagreement(kernels, device, Geometry() if model is None else Geometry.of(model))
    # What a compiler, its child processes and a driver may raise; torch's errors of the device are RuntimeErrors.
    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError, triton.TritonError) as error:
        found = f"{type(error).__name__}: {error}"
    if found is not None:
        return None, f"{name} was tried beside the reference and is not used: {found}"
    return kernels, f"{name}: Triton {triton.__version__}, each kernel beside its twin on this device"
