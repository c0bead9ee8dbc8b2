"""A compact Jamba for training (Mamba-1 and attention without positions, no experts, tied embeddings).

Parameter names are those of the Hugging Face JambaForCausalLM, so that the state dict is the checkpoint. How tokens
follow one another is the layout's business: a `Forest` of questions that share their passages, or `Rows` of packed
documents whose state is carried from chunk to chunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING_RMS = 0.3  # large beside what the layers add, so that a token's identity survives in the residual stream
FINAL_SCALE = 0.13  # the last norm takes that back, or the tied output matrix would begin with far too sharp logits
OUTPUT_SCALE = 0.2
SINKS, WINDOW = 64, 2048  # the attention policy a checkpoint is made for: the first and the last tokens in sight

Losses = list[tuple[Tensor, Tensor]]  # sums of added losses on attention, each with its weight


class Layout(Protocol):
    """Which tokens precede which. `...` are the layout's axes of tokens: [T] in a forest, [B, T] in rows."""

    ids: Tensor

    def conv(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """silu of the depthwise causal convolution of x [..., I]; weight [4, I], bias [I]."""

    def scan(self, layer: int, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """The selective scan: y [..., I] of u, dt [..., I], a [I, 16], b, c [..., 16], d [I]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, supervise: str | None) -> tuple[Tensor, Losses]:
        """Causal attention [..., heads, E] of q [..., heads, E], k, v [..., kv_heads, E], and the added losses."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of the model; the head width is `hidden // heads`, the Mamba inner width 2 * hidden."""

    vocab: int = 16_384
    hidden: int = 256
    layers: int = 6
    period: int = 2
    offset: int = 1
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512

    def is_attention(self, layer: int) -> bool:
        return layer % self.period == self.offset

    def to_config(self) -> dict[str, object]:
        """config.json of a JambaForCausalLM, with the attention policy it was made for."""
        return {
            "architectures": ["JambaForCausalLM"], "model_type": "jamba", "dtype": "bfloat16",
            "vocab_size": self.vocab, "hidden_size": self.hidden, "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "attn_layer_period": self.period,
            "attn_layer_offset": self.offset, "num_experts": 1, "num_experts_per_tok": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "hidden_act": "silu", "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
            "mamba_dt_rank": self.hidden // 16, "mamba_conv_bias": True, "mamba_proj_bias": False,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 262_144,
            "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "bos_token_id": 1,
            "eos_token_id": [2, 263], "pad_token_id": 0,
            "fano": {"policy": "window", "sinks": SINKS, "window": WINDOW, "reads": "sentence"},
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shape:
        """The shape whose `to_config` this is."""
        return cls(
            vocab=config["vocab_size"], hidden=config["hidden_size"], layers=config["num_hidden_layers"],
            period=config["attn_layer_period"], offset=config["attn_layer_offset"],
            heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"],
            feed_forward=config["intermediate_size"],
        )  # fmt: skip

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class Linear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        nn.init.normal_(self.weight, std=1 / math.sqrt(inputs))


class Mamba(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner, rank = 2 * shape.hidden, shape.hidden // 16
        self.rank = rank
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner)
        self.in_proj = Linear(shape.hidden, 2 * inner)
        self.x_proj = Linear(inner, rank + 32)
        self.dt_proj = Linear(rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, 17.0)).expand(inner, 16).clone())
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, shape.hidden)
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = Norm(rank), Norm(16), Norm(16)
        step = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.dt_proj.bias.data.copy_(step + torch.log(-torch.expm1(-step)))
        self.dt_proj.weight.data.mul_(0.5)

    def forward(self, x: Tensor, layout: Layout, layer: int) -> Tensor:
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = layout.conv(layer, u, self.conv1d.weight[:, 0].t(), self.conv1d.bias)
        dt, b, c = self.x_proj(u).float().split([self.rank, 16, 16], dim=-1)
        dt = F.softplus(self.dt_proj(self.dt_layernorm(dt)).float())
        y = layout.scan(layer, u, dt, -torch.exp(self.A_log), self.b_layernorm(b), self.c_layernorm(c), self.D)
        return self.out_proj(y * F.silu(gate))


class Attention(nn.Module):
    """Grouped-query attention without positions. Returns the layout's added losses beside the output."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.width = shape.hidden // shape.heads
        kv = shape.kv_heads * self.width
        self.q_proj, self.k_proj = Linear(shape.hidden, shape.hidden), Linear(shape.hidden, kv)
        self.v_proj, self.o_proj = Linear(shape.hidden, kv), Linear(shape.hidden, shape.hidden)
        repeat = shape.heads // shape.kv_heads
        nn.init.orthogonal_(self.k_proj.weight)
        tied = self.k_proj.weight.data.view(shape.kv_heads, self.width, -1).repeat_interleave(repeat, 0)
        self.q_proj.weight.data.copy_(tied.reshape(shape.hidden, -1))

    def forward(self, x: Tensor, layout: Layout, layer: int, supervise: str | None = None) -> tuple[Tensor, Losses]:
        q = self.q_proj(x).unflatten(-1, (self.heads, self.width))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.width))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.width))
        y, losses = layout.attend(layer, q, k, v, supervise)
        return self.o_proj(y.flatten(-2)), losses

    def begin_as_copy(self) -> None:
        """The first query head of each key/value head writes what it attends to into the residual stream."""
        nn.init.orthogonal_(self.v_proj.weight)
        repeat = self.heads // self.kv_heads
        for group, value in enumerate(self.v_proj.weight.data.split(self.width)):
            first = group * repeat * self.width
            self.o_proj.weight.data[:, first : first + self.width] = 0.5 * value.t()


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (Linear(shape.hidden, shape.feed_forward) for _ in range(2))
        self.down_proj = Linear(shape.feed_forward, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        if shape.is_attention(index):
            self.self_attn = Attention(shape)
            self.self_attn.o_proj.weight.data.mul_(OUTPUT_SCALE)
        else:
            self.mamba = Mamba(shape)
            self.mamba.out_proj.weight.data.mul_(OUTPUT_SCALE)
        self.feed_forward = FeedForward(shape)
        self.feed_forward.down_proj.weight.data.mul_(OUTPUT_SCALE)
        self.input_layernorm, self.pre_ff_layernorm = Norm(shape.hidden), Norm(shape.hidden)


class Reader(nn.Module):
    """forward(layout) -> (hidden rows after the final norm [..., hidden], added attention losses by name)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = 0.0  # of what each layer adds, in training only
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        nn.init.normal_(self.model.embed_tokens.weight, std=EMBEDDING_RMS)
        self.model.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.layers))
        self.model.final_layernorm = Norm(shape.hidden)
        self.model.final_layernorm.weight.data.fill_(FINAL_SCALE)
        [layer.self_attn for layer in self.model.layers if hasattr(layer, "self_attn")][-1].begin_as_copy()

    def forward(self, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
        attention = [i for i in range(self.shape.layers) if self.shape.is_attention(i)]
        supervised = {attention[-1]: "pointer"}
        if len(attention) > 1:
            supervised[attention[-2]] = "evidence"
        x = self._dropped(self.model.embed_tokens(layout.ids))
        extra: dict[str, Tensor] = {}
        for index, layer in enumerate(self.model.layers):
            inputs = layer.input_layernorm(x)
            if self.shape.is_attention(index):
                name = supervised.get(index)
                y, losses = layer.self_attn(inputs, layout, index, name)
                if losses and name is not None:
                    extra[name] = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
            else:
                y = layer.mamba(inputs, layout, index)
            x = x + self._dropped(y)
            x = x + self._dropped(layer.feed_forward(layer.pre_ff_layernorm(x)))
        return self.model.final_layernorm(x), extra

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def logits(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.model.embed_tokens.weight)
