"""Packs question trees into one flat step: passages are read once, each question continues that reading.

A tree is a root (the prompt up to the end of the passages) and branches (question, answer). Mamba states and the
convolution continue from the root's end; attention of a branch sees the root and itself. So every branch is computed
exactly as if its prompt stood alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.model import Losses
from training.scan import Segments, causal_conv, selective_scan

SMALL_ROOT = 320  # up to here one masked product for the whole tree is faster than a causal one beside it


@dataclass(slots=True)
class Branch:
    """Token ids after the root; `answer` is the index of the first answer token; `pointers[j]` the places in the root
    where the j-th answer token may be read, `evidence` the root's half-open range of the answer's sentence."""

    ids: list[int]
    answer: int
    pointers: list[list[int]] = field(default_factory=list)
    evidence: tuple[int, int] | None = None


@dataclass(slots=True)
class Tree:
    root: list[int]
    branches: list[Branch]

    def __len__(self) -> int:
        return len(self.root) + sum(len(branch.ids) for branch in self.branches)


@dataclass(slots=True)
class Place:
    """Where one tree lies in the flat step, and what its attention is told to look at."""

    start: int
    end: int
    last: int = 0  # end of the branches, which follow the root
    asking: int = 0  # first token whose attention is computed under `hidden`; the root's are plainly causal else
    hidden: Tensor | None = None  # [last - asking, last - start] bool: what each of them does not see
    pointer_rows: Tensor | None = None  # [n] tokens, counted from `asking`
    pointer_targets: Tensor | None = None  # [n, root] bool
    pointer_weights: Tensor | None = None  # [n]: the first token of an answer is the hard one, later ones only go on
    evidence_rows: Tensor | None = None
    evidence_targets: Tensor | None = None


class Forest:
    """The flat step of several trees: ids, segments, places, and the rows that are predicted with their weights."""

    def __init__(
        self, trees: list[Tree], rng: np.random.Generator, root_rate: float = 0.0, question_rate: float = 0.0
    ) -> None:
        ids: list[int] = []
        segments: list[tuple[int, int, int]] = []
        rows: list[np.ndarray] = []
        self.num_answers = 0
        self.places: list[Place] = []
        for tree in trees:
            start, root_segment = len(ids), len(segments)
            ids += tree.root
            segments.append((start, len(tree.root), -1))
            rows.append(start + np.flatnonzero(rng.random(len(tree.root) - 1) < root_rate))
            place = Place(start, len(ids))
            pointers: list[tuple[int, list[int], float]] = []
            evidence: list[tuple[int, tuple[int, int]]] = []
            for branch in tree.branches:
                first = len(ids)
                ids += branch.ids
                segments.append((first, len(branch.ids), root_segment))
                question = rng.random(max(0, branch.answer - 4)) < question_rate
                rows.append(first + 2 + np.flatnonzero(question))
                rows.append(np.arange(first + branch.answer - 1, len(ids) - 1))
                self.num_answers += 1
                cell = first - place.end + branch.answer - 1
                pointers += [(cell + j, places, 0.2 if j else 1.0) for j, places in enumerate(branch.pointers)]
                if branch.evidence is not None:
                    evidence += [(cell - back, branch.evidence) for back in (0, 1, 2)]
            if tree.branches:
                place.last = len(ids)
                place.asking = place.start if place.end - place.start <= SMALL_ROOT else place.end
                place.hidden = _hidden(tree)[place.asking - place.start :]
                shift = place.end - place.asking
                root = len(tree.root)
                if pointers:
                    targets = torch.zeros(len(pointers), root, dtype=torch.bool)
                    for n, (_, places, _) in enumerate(pointers):
                        targets[n, places] = True
                    place.pointer_rows, place.pointer_targets = torch.tensor([c + shift for c, *_ in pointers]), targets
                    place.pointer_weights = torch.tensor([weight for *_, weight in pointers])
                if evidence:
                    targets = torch.zeros(len(evidence), root, dtype=torch.bool)
                    for n, (_, (low, high)) in enumerate(evidence):
                        targets[n, low:high] = True
                    place.evidence_rows, place.evidence_targets = (
                        torch.tensor([c + shift for c, _ in evidence]),
                        targets,
                    )
            self.places.append(place)
        self.ids = torch.tensor(ids)
        self.segments = Segments(segments)
        self.rows = torch.from_numpy(np.concatenate(rows))
        self.targets = self.ids[self.rows + 1]
        self.is_answer = self._answer_mask(trees)[self.rows]

    def __len__(self) -> int:
        return len(self.ids)

    def conv(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG002
        return causal_conv(x.float(), weight, bias, self.segments)

    def scan(
        self, layer: int, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor  # noqa: ARG002
    ) -> Tensor:  # fmt: skip
        return selective_scan(u, dt, a, b, c, d, self.segments)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, supervise: str | None) -> tuple[Tensor, Losses]:  # noqa: ARG002
        out: list[Tensor] = []
        losses: Losses = []
        for place in self.places:
            if place.hidden is None or place.asking > place.start:
                out.append(_causal(q, k, v, slice(place.start, place.end)))
            if place.hidden is not None:
                branch, loss = _branches(q, k, v, place, place.hidden, supervise)
                out.append(branch)
                losses += loss
        return torch.cat(out), losses

    def _answer_mask(self, trees: list[Tree]) -> Tensor:
        mask = torch.zeros(len(self.ids), dtype=torch.bool)
        at = 0
        for tree in trees:
            at += len(tree.root)
            for branch in tree.branches:
                mask[at + branch.answer - 1 : at + len(branch.ids) - 1] = True
                at += len(branch.ids)
        return mask


def _hidden(tree: Tree) -> Tensor:
    """[T, T]: False at earlier tokens of the root and of the same branch, which is what a token sees."""
    lengths = torch.tensor([len(tree.root)] + [len(branch.ids) for branch in tree.branches])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    position = torch.arange(len(owner))
    foreign = (owner[:, None] != owner) & (owner != 0)
    return foreign | (position[:, None] < position)


def _causal(q: Tensor, k: Tensor, v: Tensor, span: slice) -> Tensor:
    """Attention [n, heads, E] within one run of tokens."""
    repeat = q.shape[1] // k.shape[1]
    key, value = (t[span].transpose(0, 1).repeat_interleave(repeat, 0)[None] for t in (k, v))
    y = F.scaled_dot_product_attention(q[span].transpose(0, 1)[None], key, value, is_causal=True)
    return y[0].transpose(0, 1)


def _branches(
    q: Tensor, k: Tensor, v: Tensor, place: Place, hidden: Tensor, supervise: str | None
) -> tuple[Tensor, Losses]:
    """Attention [asking, heads, E] of a tree's tokens under its mask, and the loss of where they look."""
    keys, values = (t[place.start : place.last].transpose(0, 1) for t in (k, v))  # [G, T, E]
    g, width = k.shape[1:]
    tokens, root = place.last - place.asking, place.end - place.start
    asked = (q[place.asking : place.last] * width**-0.5).view(tokens, g, -1, width)
    asked = asked.permute(1, 2, 0, 3).reshape(g, -1, width)  # [G, repeat * asking, E]
    scores = torch.bmm(asked, keys.transpose(1, 2)).float().view(g, -1, tokens, place.last - place.start)
    p = scores.masked_fill_(hidden, -1e9).softmax(-1)
    y = torch.bmm(p.view(g, -1, p.shape[-1]).to(values.dtype), values).view(g, -1, tokens, width)
    y = y.permute(2, 0, 1, 3).reshape(tokens, -1, width)
    losses: Losses = []
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
