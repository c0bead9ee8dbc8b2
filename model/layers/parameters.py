"""Things that hold parameters.

The layers are plain classes: a decode step makes about a hundred small calls, and the hooks and attribute look-ups of
``torch.nn.Module``, none of which inference needs, would cost as much as the arithmetic of a small model.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


class Parameterised:
    """Something that holds parameters: tensors among its attributes, and those of what it is built from."""

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter once, under the dotted path of attributes that leads to it."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield name, value
        for name, part in self.parts():
            yield from ((f"{name}.{path}", tensor) for path, tensor in part.named_parameters())

    def parameters(self) -> Iterator[Tensor]:
        """Each parameter once."""
        return (tensor for _, tensor in self.named_parameters())

    def parts(self) -> Iterator[tuple[str, "Parameterised"]]:
        """What it is built from, by name."""
        for name, value in vars(self).items():
            if isinstance(value, Parameterised):
                yield name, value
            elif isinstance(value, list) and value and isinstance(value[0], Parameterised):
                yield from ((f"{name}.{index}", part) for index, part in enumerate(value))


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A parameter without values: loading fills it, and nothing here is trained."""
    return torch.empty(shape, dtype=dtype)
