"""Greedy answers from the training model: a prompt, then one token at a time with explicit states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.engine.token_trie import TokenTrie
from model.engine.verbatim import VerbatimConstraint
from model.tokenizer import Tokenizer
from training.forest import Forest, Tree
from training.model import Attention, Mamba, Reader


class Cache:
    """Keys and values, convolution tails and scan states of one sequence, filled by `Decoder.read`."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.tail: dict[int, Tensor] = {}
        self.state: dict[int, Tensor] = {}


class Decoder:
    """Reads a prompt with the training forward pass and continues it token by token in fp32."""

    def __init__(self, model: Reader) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def read(self, ids: list[int]) -> tuple[Tensor, Cache]:
        """Logits [vocabulary] after the prompt, and the cache."""
        cache = Cache()
        forest = Forest([Tree(ids, [])], np.random.default_rng(0))
        x = self.model.model.embed_tokens(forest.ids)
        for index, layer in enumerate(self.model.model.layers):
            inputs = layer.input_layernorm(x)
            if self.model.shape.is_attention(index):
                block: Attention = layer.self_attn
                cache.keys[index] = block.k_proj(inputs).view(len(ids), block.kv_heads, block.width)
                cache.values[index] = block.v_proj(inputs).view(len(ids), block.kv_heads, block.width)
                y, _ = block(inputs, forest, index)
            else:
                mixer: Mamba = layer.mamba
                u = F.linear(inputs[-3:], mixer.in_proj.weight[: mixer.in_proj.weight.shape[0] // 2])
                cache.tail[index] = u
                y = mixer(inputs, forest, index)
                cache.state[index] = forest.segments.finals[0].t().clone()
            x = x + y
            x = x + layer.feed_forward(layer.pre_ff_layernorm(x))
        return self.model.logits(self.model.model.final_layernorm(x[-1])), cache

    @torch.no_grad()
    def step(self, token: int, cache: Cache) -> Tensor:
        x = self.model.model.embed_tokens.weight[token]
        for index, layer in enumerate(self.model.model.layers):
            inputs = layer.input_layernorm(x)
            y = (
                self._attend(layer.self_attn, inputs, index, cache)
                if self.model.shape.is_attention(index)
                else self._mix(layer.mamba, inputs, index, cache)
            )
            x = x + y
            x = x + layer.feed_forward(layer.pre_ff_layernorm(x))
        return self.model.logits(self.model.model.final_layernorm(x))

    def _attend(self, block: Attention, x: Tensor, index: int, cache: Cache) -> Tensor:
        cache.keys[index] = torch.cat([cache.keys[index], block.k_proj(x).view(1, block.kv_heads, block.width)])
        cache.values[index] = torch.cat([cache.values[index], block.v_proj(x).view(1, block.kv_heads, block.width)])
        q = block.q_proj(x).view(block.kv_heads, -1, block.width) * block.width**-0.5
        p = torch.einsum("gre,tge->grt", q, cache.keys[index]).softmax(-1)
        return block.o_proj(torch.einsum("grt,tge->gre", p, cache.values[index]).reshape(-1))

    def _mix(self, mixer: Mamba, x: Tensor, index: int, cache: Cache) -> Tensor:
        u, gate = mixer.in_proj(x).chunk(2)
        taps = torch.cat([cache.tail[index], u[None]])
        cache.tail[index] = taps[1:]
        u = F.silu((taps * mixer.conv1d.weight[:, 0].t()).sum(0) + mixer.conv1d.bias)
        dt, b, c = mixer.x_proj(u).split([mixer.rank, 16, 16])
        dt = F.softplus(mixer.dt_proj(mixer.dt_layernorm(dt)))[:, None]
        b, c = mixer.b_layernorm(b), mixer.c_layernorm(c)
        state = torch.exp(dt * -torch.exp(mixer.A_log)) * cache.state[index] + dt * u[:, None] * b
        cache.state[index] = state
        return mixer.out_proj((state @ c + mixer.D * u) * F.silu(gate))


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    num_tokens: int
    finished: bool


class Answerer:
    """Answers prompts greedily, freely or under the server's verbatim constraint."""

    def __init__(self, model: Reader, tokenizer: Tokenizer, max_tokens: int = 32) -> None:
        self.decoder, self.tokenizer, self.max_tokens = Decoder(model), tokenizer, max_tokens
        self.trie = TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)

    def free(self, prompt: list[int]) -> Answer:
        logits, cache = self.decoder.read(prompt)
        ids: list[int] = []
        while len(ids) < self.max_tokens:
            token = int(logits.argmax())
            if token in self.tokenizer.eos_ids:
                return Answer(self.tokenizer.decode(ids), len(ids), True)
            ids.append(token)
            logits = self.decoder.step(token, cache)
        return Answer(self.tokenizer.decode(ids), len(ids), False)

    def verbatim(self, prompt: list[int], evidence: list[str]) -> Answer:
        logits, cache = self.decoder.read(prompt)
        constraint, count = VerbatimConstraint(evidence, self.trie), 0
        while count < self.max_tokens:
            allowed = constraint.allowed()
            token = allowed[int(logits[allowed].argmax())]
            if token in self.tokenizer.eos_ids:
                return Answer(constraint.answer(), count, True)
            constraint.advance(token)
            count += 1
            logits = self.decoder.step(token, cache)
        return Answer(constraint.answer(), count, False)
