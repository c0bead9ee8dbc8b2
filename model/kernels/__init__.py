"""The door to the kernels: one set of functions, chosen once per process, with the reason for the choice.

Every fast kernel has a reference twin of the same signature in ``model.kernels.reference``, which is its
specification. Callers hold a :class:`Kernels` and never ask which one it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from model.kernels import reference
from model.kernels.arguments import NativeModel, NativeStep
from model.policy import AttentionPolicy

CausalConv = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]
SelectiveScan = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor
]
Attend = Callable[
    [Tensor, Tensor, Tensor, Tensor, Sequence[int], Sequence[Sequence[int]], Sequence[AttentionPolicy]],
    Tensor,
]
Product = Callable[[Tensor, Tensor, int], Tensor]
Step = Callable[[NativeModel, NativeStep, int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each kernel. ``name`` goes into build information and session fingerprints.

    ``product`` multiplies by a matrix in strips; ``step`` runs a step of any tokens through the whole model, on as many
    threads as it is told, at most ``num_threads``, in the workspace it is given, or a larger one where that is too
    small; it returns the one it used. Without them torch and the layers do.
    """

    name: str
    causal_conv: CausalConv
    selective_scan: SelectiveScan
    attend: Attend
    product: Product | None = None
    step: Step | None = None
    num_threads: int = 1


REFERENCE = Kernels("reference", reference.causal_conv, reference.selective_scan, reference.attend)


def choose(device: str, num_threads: int) -> tuple[Kernels, str]:
    """The fastest kernels that work on ``device`` and why it is these: ``(kernels, reason)``.

    Raises nothing for a missing or broken native library: the reference twins answer then, and the reason says so.
    """
    twins = _reference(num_threads)
    if device != "cpu":
        return twins, f"there are no fast kernels for device {device!r}"
    from model.kernels.native import load_native

    kernels, reason = load_native(num_threads)
    return kernels or twins, reason


def forced(name: str, num_threads: int = 1) -> Kernels:
    """The kernels called ``name``: ``reference`` or ``native``. Raises ValueError where they are not to be had."""
    if name == REFERENCE.name:
        return _reference(num_threads)
    kernels, reason = choose("cpu", num_threads)
    if kernels.name.split("-")[0] != name:
        raise ValueError(f"kernels {name!r} were asked for, expected one that works on this machine: {reason}")
    return kernels


def _reference(num_threads: int) -> Kernels:
    return REFERENCE if num_threads == REFERENCE.num_threads else replace(REFERENCE, num_threads=num_threads)
