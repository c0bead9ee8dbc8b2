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

from training.scan import Segments

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
