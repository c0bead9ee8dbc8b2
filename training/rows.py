"""Packed documents in rows: every row is a stream of documents whose state is carried from step to step.

A step takes the next T tokens of B streams. What the model keeps of the tokens before them is carried without its
gradient (truncated backpropagation through time), so that a document of any length is learnt from its first token to
its last. Documents in a row do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from training import parallel_scan
from training.model import SINKS, WINDOW, Losses

TAPS = 4
KINDS = ("pointer", "evidence")
NONE = -1  # the document of a place that holds no token

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def scan_for(device: torch.device) -> Scan:
    """The fused kernels on a GPU, their twin in plain torch elsewhere."""
    if device.type == "cuda":
        from training import triton_scan

        return torch.compiler.disable(triton_scan.selective_scan)
    return parallel_scan.selective_scan


@dataclass(frozen=True, slots=True)
class Look:
    """Where attention is told to look: the query at `column` of `row`, at the positions [low, high) of its document.

    `kind` is "pointer" (the token that comes next is copied from there) or "evidence" (the sentence it stands in).
    """

    row: int
    column: int
    low: int
    high: int
    kind: str
    weight: float = 1.0


@dataclass(slots=True)
class Carried:
    """What a step leaves to the next: documents and positions of the keys kept, and per layer what the layer keeps.

    `documents`, `positions` [B, SINKS + WINDOW]: first the places of the last document's first tokens, then those of
    the last tokens. `tails` [B, 3, I] are inputs of the convolution, `states` [B, I, 16] the scan's, `keys` and
    `values` [B, SINKS + WINDOW, kv_heads, E].
    """

    documents: Tensor
    positions: Tensor
    tails: dict[int, Tensor] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class Rows:
    """A layout of ids [B, T]; `documents` [B, T] numbers each token's document, rising along a row's whole stream.

    `carried` is the `left` of the same streams' previous step, or None at their begin. `sinks` and `window` are the
    attention policy the model is served with: a token sees the first `sinks` and the last `window` tokens, itself
    included. Raises ValueError when T exceeds the window, because a key could then be both in the row and out of sight.
    """

    def __init__(
        self, ids: Tensor, documents: Tensor, carried: Carried | None = None, looks: list[Look] | None = None,
        *, sinks: int = SINKS, window: int = WINDOW, scan: Scan | None = None,
    ) -> None:  # fmt: skip
        rows, tokens = ids.shape
        documents = documents.int()
        if tokens > window:
            raise ValueError(f"tokens a row: {tokens}; at most the attention window, {window}: cut the rows shorter")
        self.ids, self.documents, self.sinks, self.window = ids, documents, sinks, window
        self.scan_rows = scan or scan_for(ids.device)
        if carried is None:
            nothing = documents.new_full((rows, sinks + window), NONE)
            carried = Carried(nothing, nothing)
        self.before = carried
        before = torch.cat([carried.documents[:, -1:], documents[:, :-1]], 1)
        self.reset = documents != before
        self.positions = self._positions()
        self.key_documents = torch.cat([carried.documents, documents], 1)
        self.key_positions = torch.cat([carried.positions, self.positions], 1)
        self.seen = self._seen()
        self.kept = self._kept()
        self.left = Carried(self.key_documents.gather(1, self.kept), self.key_positions.gather(1, self.kept))
        self.left.documents.masked_fill_(self.absent, NONE)
        self.taps = self._taps()
        self.looks = {kind: self._targets([look for look in looks or [] if look.kind == kind]) for kind in KINDS}

    def conv(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, tokens, inner = x.shape
        tail = self.before.tails.get(layer)
        if tail is None:
            tail = x.new_zeros(rows, TAPS - 1, inner)
        path = torch.cat([tail.to(x.dtype), x], 1)
        self.left.tails[layer] = path[:, tokens:].detach()
        y = bias + weight[-1] * x
        for back in range(1, TAPS):
            y = y + weight[-1 - back] * path[:, TAPS - 1 - back : TAPS - 1 - back + tokens] * self.taps[back - 1]
        return F.silu(y).to(x.dtype)  # weights are fp32: the sum is, what is kept of it has the width of its input

    def scan(self, layer: int, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        begin = self.before.states.get(layer)
        if begin is None:
            begin = a.new_zeros(len(u), *a.shape)
        y, final = self.scan_rows(u, dt, a, b, c, d, begin, self.reset)
        self.left.states[layer] = final.detach()
        return y

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, supervise: str | None) -> tuple[Tensor, Losses]:
        keys, values = self._with_carried(layer, k, self.before.keys), self._with_carried(layer, v, self.before.values)
        at = self.kept[..., None, None].expand(-1, -1, *k.shape[2:])
        self.left.keys[layer], self.left.values[layer] = keys.detach().gather(1, at), values.detach().gather(1, at)
        repeat = q.shape[2] // k.shape[2]
        heads = [x.transpose(1, 2).repeat_interleave(repeat, 1) for x in (keys, values)]
        y = F.scaled_dot_product_attention(q.transpose(1, 2), *heads, attn_mask=self.seen[:, None])
        return y.transpose(1, 2), self._look_losses(q, keys, supervise)

    def _with_carried(self, layer: int, new: Tensor, kept: dict[int, Tensor]) -> Tensor:
        old = kept.get(layer)
        if old is None:
            old = new.new_zeros(len(new), self.sinks + self.window, *new.shape[2:])
        return torch.cat([old.to(new.dtype), new], 1)

    def _look_losses(self, q: Tensor, keys: Tensor, supervise: str | None) -> Losses:
        """-log of the attention that falls on the places looked for, by the first query head of each key/value head."""
        found = self.looks.get(supervise or "")
        if found is None:
            return []
        rows, columns, targets, weights = found
        groups, width = keys.shape[2:]
        asked = q[rows, columns].view(len(rows), groups, -1, width)[:, :, 0]
        scores = torch.einsum("nge,nkge->ngk", asked, keys[rows]).float() * width**-0.5
        p = scores.masked_fill(~self.seen[rows, columns][:, None], -torch.inf).softmax(-1)
        mass = (p * targets[:, None]).sum(-1)
        return [((-torch.log(mass + 1e-5).mean(1) * weights).sum(), weights.sum())]

    def _positions(self) -> Tensor:
        """[B, T]: each token's place in its document, counted from 0."""
        column = torch.arange(self.ids.shape[1], dtype=torch.int32, device=self.ids.device).expand_as(self.ids)
        begun = torch.where(self.reset, column, -1).cummax(1).values
        return torch.where(begun >= 0, column - begun, self.before.positions[:, -1:] + 1 + column)

    def _seen(self) -> Tensor:
        """[B, T, SINKS + WINDOW + T] bool."""
        distance = self.positions[:, :, None] - self.key_positions[:, None]
        same = self.documents[:, :, None] == self.key_documents[:, None]
        near = (distance >= 0) & (distance < self.window)
        # A document's first tokens stand twice, among the sinks and in the window: they count once.
        near[..., : self.sinks] = distance[..., : self.sinks] >= self.window
        return same & near

    def _kept(self) -> Tensor:
        """[B, SINKS + WINDOW]: which of the keys at hand the next step needs."""
        rows, tokens = self.ids.shape
        device = self.ids.device
        place = torch.arange(self.sinks, device=device).expand(rows, -1)
        # Where the last token's document begins in this row; before it, if negative.
        column = tokens - 1 - self.positions[:, -1:] + place
        first = torch.where(column >= 0, self.sinks + self.window + column.clamp(0, tokens - 1), place)
        last = torch.arange(tokens, tokens + self.window, device=device).expand(rows, -1) + self.sinks
        kept = torch.cat([first, last], 1)
        self.absent = torch.zeros_like(kept, dtype=torch.bool)
        self.absent[:, : self.sinks] = column >= tokens
        stale = (column < 0) & (self.before.documents[:, : self.sinks] != self.documents[:, -1:])
        self.absent[:, : self.sinks] |= stale
        return kept

    def _taps(self) -> list[Tensor]:
        """For 1, 2, 3 tokens back, [B, T, 1] bool: that token is of the same document."""
        return [(self.positions >= back)[..., None] for back in range(1, TAPS)]

    def _targets(self, looks: list[Look]) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Rows, columns, targets [n, SINKS + WINDOW + T] and weights [n] of the looks that have something in sight."""
        if not looks:
            return None
        numbers = torch.tensor([(x.row, x.column, x.low, x.high) for x in looks], device=self.ids.device)
        rows, columns, low, high = numbers.unbind(1)
        positions = self.key_positions[rows]
        targets = self.seen[rows, columns] & (positions >= low[:, None]) & (positions < high[:, None])
        some = targets.any(1)
        if not some.any():
            return None
        weights = torch.tensor([x.weight for x in looks], device=self.ids.device)
        return rows[some], columns[some], targets[some], weights[some]
