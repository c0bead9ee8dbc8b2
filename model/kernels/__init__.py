"""The door to the kernels: one set of functions, chosen once per process, with the reason for the choice.

Every fast kernel has a reference twin of the same signature in ``model.kernels.reference``, which is its
specification. Callers hold a :class:`Kernels` and never ask which one it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from model.config import ModelConfig
from model.kernels import reference, selection
from model.kernels.arguments import NativeModel, NativeStep
from model.kernels.listed import ListedTokens
from model.kernels.selection import ArchivedLayer
from model.policy import AttentionPolicy

if TYPE_CHECKING:
    from model.kernels.triton.frame import DecodeFrame

CausalConv = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]
SelectiveScan = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor
]
StoreKV = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
Product = Callable[[Tensor, Tensor, int], Tensor]
Step = Callable[[NativeModel, NativeStep, int, Tensor], Tensor]
Choose = Callable[[Tensor, Tensor, Sequence[int], Sequence[AttentionPolicy], ArchivedLayer], Tensor]
AttendListed = Callable[[Tensor, Tensor, Tensor, Tensor, ListedTokens, Tensor], None]


class Attend(Protocol):
    """Attention over paged keys and values; see :func:`model.kernels.reference.attend`."""

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        query_start: Tensor,
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        policies: Sequence[AttentionPolicy],
        archive: ArchivedLayer | None = None,
    ) -> Tensor:
        """[T, H, E] -> [T, H, E]."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each kernel. ``name`` goes into build information and session fingerprints.

    ``product`` multiplies by a matrix in strips; ``step`` runs a step of any tokens through the whole model, on as many
    threads as it is told, at most ``num_threads``, in the workspace it is given, or a larger one where that is too
    small; it returns the one it used. Without them torch and the layers do. ``choose`` always runs on the host, where
    the archive is; ``attend_listed`` is for devices, to which what was chosen has to be brought. ``frame`` makes the
    tables of a decode step that can be recorded and replayed; without it every step is launched anew.
    """

    name: str
    causal_conv: CausalConv
    selective_scan: SelectiveScan
    attend: Attend
    product: Product | None = None
    step: Step | None = None
    num_threads: int = 1
    store_kv: StoreKV = reference.store_kv
    attend_listed: AttendListed = reference.attend_listed
    choose: Choose = selection.chosen_places
    frame: "Callable[[int, int], DecodeFrame] | None" = None


REFERENCE = Kernels("reference", reference.causal_conv, reference.selective_scan, reference.attend)


def choose(device: str, num_threads: int, model: ModelConfig | None = None) -> tuple[Kernels, str]:
    """The fastest kernels that work on ``device`` and why it is these: ``(kernels, reason)``.

    On a CUDA device they are first tried beside their twins, in the geometry of ``model``. Raises nothing where they
    are missing, broken or wrong: the reference twins answer then, and the reason says so.
    """
    twins = _reference(num_threads)
    kind = device.partition(":")[0]
    if kind == "cpu":
        from model.kernels.native import load_native

        kernels, reason = load_native(num_threads)
    elif kind == "cuda":
        from model.kernels.triton.loading import load_triton

        kernels, reason = load_triton(device, num_threads, model)
    else:
        return twins, f"there are no fast kernels for device {device!r}"
    return kernels or twins, reason


def forced(name: str, num_threads: int = 1, device: str = "cpu", model: ModelConfig | None = None) -> Kernels:
    """The kernels called ``name``: ``reference``, ``native`` on a CPU or ``triton`` on a CUDA device. Raises ValueError
    where they are not to be had."""
    if name == REFERENCE.name:
        return _reference(num_threads)
    kernels, reason = choose(device, num_threads, model)
    if kernels.name.split("-")[0] != name:
        raise ValueError(f"kernels {name!r} were asked for, expected ones that work on device {device!r}: {reason}")
    return kernels


def _reference(num_threads: int) -> Kernels:
    return REFERENCE if num_threads == REFERENCE.num_threads else replace(REFERENCE, num_threads=num_threads)
