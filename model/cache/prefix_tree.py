"""A radix tree over token ids: which stretches of text were read, and at which tokens something was kept. No torch.

The idea is RadixAttention's (Zheng et al. 2024, arXiv 2312.07104, section 3), at any token instead of at page borders:
a recurrent state can only be taken up where it was kept, so what matters is the deepest kept place on the common path.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Kept = TypeVar("Kept")
# Tokens compared at once, so that texts that part early cost little.
COMPARED_TOKENS = 1 << 15


class PrefixNode(Generic[Kept]):
    """The end of a stretch of tokens: ``depth`` tokens from the root. ``kept`` is what was kept there, if anything."""

    __slots__ = ("children", "depth", "edge", "kept", "num_anchors", "parent", "was_kept")

    def __init__(self, parent: "PrefixNode[Kept] | None", edge: "array[int]", depth: int) -> None:
        self.parent = parent
        self.edge = edge
        self.depth = depth
        self.children: dict[int, PrefixNode[Kept]] = {}
        self.kept: Kept | None = None
        # Something was kept here and given up, which tells a miss for want of memory from a text never seen.
        self.was_kept = False
        self.num_anchors = 0

    def upward(self) -> "Iterator[PrefixNode[Kept]]":
        """This node and those above it."""
        node: PrefixNode[Kept] | None = self
        while node is not None:
            yield node
            node = node.parent

    def subtree(self) -> "Iterator[PrefixNode[Kept]]":
        """This node and all below it."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending += node.children.values()


@dataclass(frozen=True, slots=True)
class Match(Generic[Kept]):
    """How far a text runs along the tree: ``num_common`` tokens. ``kept`` are the nodes on the way that hold something,
    shallow to deep; ``was_kept`` says whether a deeper one once did."""

    num_common: int
    kept: tuple[PrefixNode[Kept], ...]
    was_kept: bool


class PrefixTree(Generic[Kept]):
    """Nodes by their path of tokens. A node stands where something is kept, where an anchor is, or where paths part.

    ``num_tokens`` is the length of all edges together; an edge takes four bytes a token.
    """

    def __init__(self) -> None:
        self.root = PrefixNode[Kept](None, array("i"), 0)
        self.num_tokens = 0

    def match(self, token_ids: Sequence[int]) -> Match[Kept]:
        """Walk along ``token_ids`` as far as the tree goes."""
        ids = as_ids(token_ids)
        kept: list[PrefixNode[Kept]] = []
        node, was_kept = self.root, False
        num_common = 0
        while True:
            if node.kept is not None:
                kept.append(node)
                was_kept = False
            was_kept = was_kept or node.was_kept
            child = node.children.get(ids[node.depth]) if node.depth < len(ids) else None
            if child is None:
                return Match(num_common, tuple(kept), was_kept)
            num_equal = common_length(child.edge, ids, node.depth)
            num_common += num_equal
            if num_equal < len(child.edge):
                return Match(num_common, tuple(kept), was_kept)
            node = child

    def node(self, token_ids: Sequence[int], num_tokens: int) -> PrefixNode[Kept]:
        """The node after the first ``num_tokens`` of ``token_ids``, made if need be.

        A node that comes to hold nothing is taken away with ``prune``.
        """
        ids = as_ids(token_ids)
        node = self.root
        while node.depth < num_tokens:
            child = node.children.get(ids[node.depth])
            if child is None:
                return self._grow(node, ids[node.depth : num_tokens])
            num_equal = min(common_length(child.edge, ids, node.depth), num_tokens - node.depth)
            node = child if num_equal == len(child.edge) else self._split(child, num_equal)
        return node

    def prune(self, node: PrefixNode[Kept]) -> None:
        """Take away ``node`` and what stands above it, as far as they hold nothing and part nothing.

        A leaf at which something was given up stays with the nearest node above that is needed, so that no memory goes
        on growing: its mark moves up.
        """
        while node.parent is not None and node.kept is None and not node.num_anchors:
            parent = node.parent
            if len(node.children) > 1:
                return
            if node.children:
                (child,) = node.children.values()
                child.edge = node.edge + child.edge
                child.parent = parent
                parent.children[child.edge[0]] = child
                child.was_kept = child.was_kept or node.was_kept
                return
            del parent.children[node.edge[0]]
            self.num_tokens -= len(node.edge)
            parent.was_kept = parent.was_kept or node.was_kept
            node = parent

    def nodes(self) -> Iterator[PrefixNode[Kept]]:
        """All nodes but the root."""
        return (node for node in self.root.subtree() if node is not self.root)

    def beyond(self, token_ids: Sequence[int], num_tokens: int) -> PrefixNode[Kept] | None:
        """The node under which stands everything that has more than ``num_tokens`` in common with ``token_ids``."""
        ids = as_ids(token_ids)
        node = self.root
        while node.depth < len(ids) and (child := node.children.get(ids[node.depth])) is not None:
            num_equal = common_length(child.edge, ids, node.depth)
            if node.depth + num_equal > num_tokens:
                return child
            if num_equal < len(child.edge):
                return None
            node = child
        return None

    def check(self) -> None:
        """Assert that edges, depths and counts fit together, and that no node stands for nothing."""
        num_tokens = 0
        for node in self.nodes():
            assert node.parent is not None and node.edge, "a node below the root has a parent and an edge"
            assert node.depth == node.parent.depth + len(node.edge), "depths differ from edges"
            assert node.parent.children[node.edge[0]] is node, "a child stands under another token"
            assert node.kept is not None or node.num_anchors or len(node.children) > 1, "a node stands for nothing"
            num_tokens += len(node.edge)
        assert num_tokens == self.num_tokens, "the number of tokens is wrong"

    def _grow(self, parent: PrefixNode[Kept], edge: "array[int]") -> PrefixNode[Kept]:
        node = PrefixNode(parent, edge, parent.depth + len(edge))
        parent.children[edge[0]] = node
        self.num_tokens += len(edge)
        return node

    def _split(self, node: PrefixNode[Kept], num_tokens: int) -> PrefixNode[Kept]:
        """A node ``num_tokens`` into the edge of ``node``."""
        parent = node.parent
        assert parent is not None
        upper = PrefixNode(parent, node.edge[:num_tokens], parent.depth + num_tokens)
        parent.children[upper.edge[0]] = upper
        node.parent, node.edge = upper, node.edge[num_tokens:]
        upper.children[node.edge[0]] = node
        return upper


def as_ids(token_ids: Sequence[int]) -> "array[int]":
    """The ids as 32-bit integers in one piece; those that are so already are not copied."""
    return token_ids if isinstance(token_ids, array) and token_ids.typecode == "i" else array("i", token_ids)


def common_length(edge: "array[int]", ids: "array[int]", start: int) -> int:
    """How many tokens ``edge`` and ``ids[start:]`` have in common at their beginning."""
    longest = min(len(edge), len(ids) - start)
    # Views of numpy, which compare a million tokens in a third of a millisecond, and copy none.
    left, right = np.frombuffer(edge, dtype=np.intc), np.frombuffer(ids, dtype=np.intc)[start:]
    for place in range(0, longest, COMPARED_TOKENS):
        end = min(place + COMPARED_TOKENS, longest)
        differs = left[place:end] != right[place:end]
        if differs.any():
            return place + int(differs.argmax())
    return longest
