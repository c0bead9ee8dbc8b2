"""The gated feed-forward, alone or as one of several routed experts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.kernels import Kernels
from model.layers.matrix import Matrix
from model.layers.parameters import Parameterised


class GatedFeedForward(Parameterised):
    """``down(silu(gate(x)) * up(x))`` with gate and up as one product (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, kernels: Kernels, dtype: torch.dtype) -> None:
        self.gate_up_proj = Matrix(2 * config.intermediate_size, config.hidden_size, dtype, kernels)
        self.down_proj = Matrix(config.hidden_size, config.intermediate_size, dtype, kernels)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, D] float32 -> [T, D] float32."""
        return self.down_proj(_gate(self.gate_up_proj(x)))


class ExpertFeedForward(Parameterised):
    """Each token through the ``num_experts_per_token`` experts its router scores highest, summed by probability.

    As in Jamba the probabilities are a softmax over all experts and the chosen ones are not rescaled to sum to 1.
    The router is float32 under every weight dtype, so that rounding does not change who is chosen.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels, dtype: torch.dtype) -> None:
        num_experts, width, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.num_chosen = config.num_experts_per_token
        self.router = Matrix(num_experts, width, torch.float32, kernels)
        self.gate_up = [Matrix(2 * inner, width, dtype, kernels) for _ in range(num_experts)]
        self.down = [Matrix(width, inner, dtype, kernels) for _ in range(num_experts)]

    def __call__(self, x: Tensor) -> Tensor:
        """[T, D] float32 -> [T, D] float32."""
        scores = torch.softmax(self.router(x), dim=-1)
        weights, experts = torch.topk(scores, self.num_chosen, dim=-1)
        # Tokens of one expert become neighbours: one product per expert that has any.
        order = torch.argsort(experts.flatten(), stable=True)
        counts = torch.bincount(experts.flatten(), minlength=len(self.gate_up)).tolist()
        tokens = torch.div(order, self.num_chosen, rounding_mode="floor")
        grouped = x[tokens]
        shares = weights.flatten()[order, None]
        out = torch.zeros_like(x)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                end = start + count
                # Not given a name: one expert's hidden rows must be gone before the next one's are made.
                mixed = self.down[expert](_gate(self.gate_up[expert](grouped[start:end])))
                mixed = mixed.mul_(shares[start:end])
                out.index_add_(0, tokens[start:end], mixed)
                start = end
        return out


def _gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, in place in the left half of ``gate_up`` [T, 2F]."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate, inplace=True).mul_(up)
