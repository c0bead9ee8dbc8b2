"""A compact Jamba for training on forests (Mamba-1 and attention without positions, no experts, tied embeddings).

Parameter names are those of the Hugging Face JambaForCausalLM, so that the state dict is the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.forest import Forest, Place
from training.scan import Segments, causal_conv, selective_scan

EMBEDDING_RMS = 0.3  # large beside what the layers add, so that a token's identity survives in the residual stream
FINAL_SCALE = 0.13  # the last norm takes that back, or the tied output matrix would begin with far too sharp logits
OUTPUT_SCALE = 0.2


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
            "fano": {"policy": "window", "sinks": 64, "window": 2048, "reads": "sentence"},
        }  # fmt: skip

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

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = causal_conv(u.float(), self.conv1d.weight[:, 0].t(), self.conv1d.bias, segments)
        dt, b, c = self.x_proj(u).float().split([self.rank, 16, 16], dim=-1)
        dt = F.softplus(self.dt_proj(self.dt_layernorm(dt)).float())
        y = selective_scan(u, dt, -torch.exp(self.A_log), self.b_layernorm(b), self.c_layernorm(c), self.D, segments)
        return self.out_proj(y * F.silu(gate))


class Attention(nn.Module):
    """Causal within the root and within a branch; a branch also sees its root. Returns extra losses on attention."""

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

    def forward(
        self, x: Tensor, places: list[Place], supervise: str | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        q = self.q_proj(x).view(-1, self.heads, self.width)
        k = self.k_proj(x).view(-1, self.kv_heads, self.width)
        v = self.v_proj(x).view(-1, self.kv_heads, self.width)
        out, losses = [], []
        for place in places:
            if place.hidden is None or place.asking > place.start:
                out.append(self._causal(q, k, v, slice(place.start, place.end)))
            if place.hidden is not None:
                branch, loss = self._branches(q, k, v, place, supervise)
                out.append(branch)
                losses += loss
        return self.o_proj(torch.cat(out).reshape(len(x), -1)), losses

    def begin_as_copy(self) -> None:
        """The first query head of each key/value head writes what it attends to into the residual stream."""
        nn.init.orthogonal_(self.v_proj.weight)
        repeat = self.heads // self.kv_heads
        for group, value in enumerate(self.v_proj.weight.data.split(self.width)):
            first = group * repeat * self.width
            self.o_proj.weight.data[:, first : first + self.width] = 0.5 * value.t()

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, span: slice) -> Tensor:
        repeat = self.heads // self.kv_heads
        key, value = (t[span].transpose(0, 1).repeat_interleave(repeat, 0)[None] for t in (k, v))
        return F.scaled_dot_product_attention(q[span].transpose(0, 1)[None], key, value, is_causal=True)[0].transpose(
            0, 1
        )

    def _branches(
        self, q: Tensor, k: Tensor, v: Tensor, place: Place, supervise: str | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        keys, values = (t[place.start : place.last].transpose(0, 1) for t in (k, v))  # [G, T, E]
        g, tokens, root = self.kv_heads, place.last - place.asking, place.end - place.start
        asked = (q[place.asking : place.last] * self.width**-0.5).view(tokens, g, -1, self.width)
        asked = asked.permute(1, 2, 0, 3).reshape(g, -1, self.width)  # [G, repeat * asking, E]
        scores = torch.bmm(asked, keys.transpose(1, 2)).float().view(g, -1, tokens, place.last - place.start)
        p = scores.masked_fill_(place.hidden, -1e9).softmax(-1)
        y = torch.bmm(p.view(g, -1, p.shape[-1]).to(values.dtype), values).view(g, -1, tokens, self.width)
        y = y.permute(2, 0, 1, 3).reshape(tokens, -1, self.width)
        losses = []
        rows, targets = {
            "pointer": (place.pointer_rows, place.pointer_targets),
            "evidence": (place.evidence_rows, place.evidence_targets),
        }.get(supervise or "", (None, None))
        if rows is not None:
            looked = p[:, 0, rows, :root]  # the first query head of each key/value head
            mass = (looked * targets).sum(-1)
            weights = place.pointer_weights if supervise == "pointer" else torch.ones(len(rows))
            losses.append(((-torch.log(mass + 1e-5).mean(0) * weights).sum(), weights.sum()))
        return y, losses


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
    """forward(forest) -> (hidden rows after the final norm [T, hidden], extra attention losses by name)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        nn.init.normal_(self.model.embed_tokens.weight, std=EMBEDDING_RMS)
        self.model.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.layers))
        self.model.final_layernorm = Norm(shape.hidden)
        self.model.final_layernorm.weight.data.fill_(FINAL_SCALE)
        [layer.self_attn for layer in self.model.layers if hasattr(layer, "self_attn")][-1].begin_as_copy()

    def forward(self, forest: Forest) -> tuple[Tensor, dict[str, Tensor]]:
        attention = [i for i in range(self.shape.layers) if self.shape.is_attention(i)]
        supervised = {attention[-1]: "pointer"}
        if len(attention) > 1:
            supervised[attention[-2]] = "evidence"
        x = self.model.embed_tokens(forest.ids)
        extra: dict[str, Tensor] = {}
        for index, layer in enumerate(self.model.layers):
            inputs = layer.input_layernorm(x)
            if self.shape.is_attention(index):
                name = supervised.get(index)
                y, losses = layer.self_attn(inputs, forest.places, name)
                if losses and name is not None:
                    extra[name] = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
            else:
                y = layer.mamba(inputs, forest.segments)
            x = x + y
            x = x + layer.feed_forward(layer.pre_ff_layernorm(x))
        return self.model.final_layernorm(x), extra

    def logits(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.model.embed_tokens.weight)
