"""The Mamba-1 mixer of Jamba: one forward for a prompt chunk and for one token, state in, state out."""

import torch
from torch import Tensor

from model.batch import Batch
from model.config import ModelConfig
from model.kernels import Kernels
from model.layers.matrix import Matrix
from model.layers.parameters import Parameterised, parameter
from model.layers.projection import Projection, RMSNorm


class MambaMixer(Parameterised):
    """Projection, causal convolution, selective scan, gate, projection (arXiv 2312.00752).

    Jamba adds norms on the time step, B and C (arXiv 2403.19887). Parameters of the recurrence are float32 under
    every weight dtype: the scan exponentiates them and multiplies the results over the whole sequence.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels, dtype: torch.dtype) -> None:
        self.inner = inner = config.inner_size
        self.split = [config.dt_rank, config.state_size, config.state_size]
        self.kernels = kernels
        self.in_proj = Projection(config.hidden_size, 2 * inner, dtype, kernels, bias=config.proj_bias)
        self.conv_weight = parameter(config.conv_width, inner)
        self.conv_bias = parameter(inner) if config.conv_bias else None
        self.x_proj = Matrix(sum(self.split), inner, dtype, kernels)
        self.dt_norm = RMSNorm(config.dt_rank, config.norm_eps)
        self.b_norm = RMSNorm(config.state_size, config.norm_eps)
        self.c_norm = RMSNorm(config.state_size, config.norm_eps)
        self.dt_proj = Matrix(inner, config.dt_rank, torch.float32, kernels)
        self.dt_bias = parameter(inner)
        # -exp(A_log), transposed: the layout of the scan kernels.
        self.a = parameter(config.state_size, inner)
        self.d = parameter(inner)
        self.out_proj = Projection(inner, config.hidden_size, dtype, kernels, bias=config.proj_bias)

    def __call__(self, x: Tensor, ssm: Tensor, conv: Tensor, batch: Batch) -> Tensor:
        """[T, D] float32 -> [T, D]. Mutates the batch's slots of this layer's ``ssm`` and ``conv`` states.

        ``ssm`` [slots, N, I] and ``conv`` [slots, K-1, I], float32.
        """
        xz = self.in_proj(x)
        u = self.kernels.causal_conv(
            xz[:, : self.inner], self.conv_weight, self.conv_bias, conv, batch.query_start, batch.state_slots
        )
        dt, b, c = self.x_proj(u).split_with_sizes(self.split, dim=1)
        y = self.kernels.selective_scan(
            u,
            self.dt_proj(self.dt_norm(dt)),
            self.dt_bias,
            self.a,
            self.b_norm(b),
            self.c_norm(c),
            self.d,
            xz[:, self.inner :],
            ssm,
            batch.query_start,
            batch.state_slots,
        )
        return self.out_proj(y)
