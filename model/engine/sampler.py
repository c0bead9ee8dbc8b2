"""Logits in, one token id out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.request import SamplingParams


class Sampler:
    """Draws the tokens of one sequence, with a generator of its own.

    The same seed and logits give the same tokens whatever else the process draws. Without a seed
    the generator starts from the operating system's entropy.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def draw(self, logits: Tensor, allowed: Sequence[int] | None = None) -> int:
        """One id from ``logits`` [V] float32, or from ``allowed`` (ascending ids, not empty) alone.

        Temperature first, then the ``top_k`` most probable, then the smallest set of them that
        holds ``top_p`` of their probability; ties go to the lower id. Raises ArithmeticError for
        logits that are not numbers.
        """
        ids = None if allowed is None else torch.tensor(allowed, dtype=torch.int64, device=logits.device)
        row = logits if ids is None else logits[ids]
        # max() passes on a NaN, so one comparison finds any.
        if not torch.isfinite(row.max()):
            raise ArithmeticError("the logits hold NaN or infinity")
        place = int(row.argmax()) if self._params.temperature == 0 or row.numel() == 1 else self._draw_place(row)
        return place if allowed is None else allowed[place]

    def _draw_place(self, row: Tensor) -> int:
        scaled, places = torch.sort(row.float().cpu(), descending=True, stable=True)
        # From the maximum down, so that a temperature near zero gives zeros and not infinities.
        scaled = (scaled - scaled[0]) / self._params.temperature
        if self._params.top_k:
            scaled = scaled[: self._params.top_k]
        probabilities = torch.softmax(scaled, dim=0)
        if self._params.top_p < 1:
            # The token that crosses the border belongs to the set, so it is never empty.
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities[: max(1, int((before < self._params.top_p).sum()))]
        # Inverse of the distribution function, in double: one uniform number per token.
        cumulative = probabilities.double().cumsum(0)
        uniform = torch.rand(1, generator=self._generator, dtype=torch.float64) * cumulative[-1]
        place = int(torch.searchsorted(cumulative, uniform, right=True))
        return int(places[min(place, len(cumulative) - 1)])
