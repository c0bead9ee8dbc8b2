"""Greedy answers from the training model: a prompt, then one token at a time with explicit states."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

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
                y, _ = block(inputs, forest.places)
            else:
                mixer: Mamba = layer.mamba
                u = F.linear(inputs[-3:], mixer.in_proj.weight[: mixer.in_proj.weight.shape[0] // 2])
                cache.tail[index] = u
                y = mixer(inputs, forest.segments)
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


class Spans:
    """What may be generated so that the answer is one span of the evidence which begins and ends at a word border."""

    PART = re.compile(r"[^\W_]+(?:[-'’_./@][^\W_]+|[.,:](?=\d)\d+)*|\S")

    def __init__(self, evidence: list[str], tokens: dict[str, int]) -> None:
        self.evidence, self.tokens = evidence, tokens
        self.longest = max(map(len, tokens))
        self.starts, self.ends = set(), set()
        for number, text in enumerate(evidence):
            for match in self.PART.finditer(text):
                self.starts.add((number, match.start()))
                self.ends.add((number, match.end()))
        self.at: dict[tuple[int, int], tuple[int, int]] = {}  # end so far -> start
        self.begun = False

    def allowed(self) -> dict[int, dict[tuple[int, int], tuple[int, int]]]:
        """Token id -> the (end -> start) pairs that it leads to."""
        result: dict[int, dict[tuple[int, int], tuple[int, int]]] = {}
        current = self.at if self.begun else {start: start for start in self.starts}
        for (number, place), start in current.items():
            text = self.evidence[number]
            for size in range(0 if not self.begun else 1, self.longest):
                if place + size > len(text):
                    break
                piece = text[place : place + size].replace(" ", "▁")
                token = self.tokens.get(piece if self.begun else "▁" + piece)
                if token is not None:
                    result.setdefault(token, {}).setdefault((number, place + size), start)
        return result

    def may_end(self) -> bool:
        return self.begun and any(end in self.ends for end in self.at)

    def text(self) -> str:
        for end in sorted(self.at):
            if end in self.ends:
                number, start = self.at[end]
                return self.evidence[number][start : end[1]]
        return ""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    num_tokens: int
    finished: bool


class Answerer:
    def __init__(self, model: Reader, tokenizer: Tokenizer, max_tokens: int = 32) -> None:
        self.decoder, self.tokenizer, self.max_tokens = Decoder(model), tokenizer, max_tokens
        self.eos = [2, tokenizer.token_to_id("<|end|>")]
        special = re.compile(r"<.+>$")
        self.tokens = {t: i for t, i in tokenizer.get_vocab().items() if not special.match(t)}

    def free(self, prompt: list[int]) -> Answer:
        logits, cache = self.decoder.read(prompt)
        ids: list[int] = []
        while len(ids) < self.max_tokens:
            token = int(logits.argmax())
            if token in self.eos:
                return Answer(self.tokenizer.decode(ids), len(ids), True)
            ids.append(token)
            logits = self.decoder.step(token, cache)
        return Answer(self.tokenizer.decode(ids), len(ids), False)

    def verbatim(self, prompt: list[int], evidence: list[str]) -> Answer:
        """Greedy among the tokens that keep the answer a span; characters outside the vocabulary cannot be spelled."""
        logits, cache = self.decoder.read(prompt)
        spans, count, finished = Spans(evidence, self.tokens), 0, False
        last_good = ""
        while count < self.max_tokens:
            allowed = spans.allowed()
            choices = list(allowed) + (self.eos if spans.may_end() else [])
            if not choices:
                break
            token = choices[int(logits[choices].argmax())]
            if token in self.eos:
                finished = True
                break
            spans.at, spans.begun = allowed[token], True
            last_good = spans.text() or last_good
            count += 1
            logits = self.decoder.step(token, cache)
        return Answer(last_good, count, finished)
