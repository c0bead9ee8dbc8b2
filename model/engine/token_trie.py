"""All tokens of a vocabulary by their bytes, for finding those that spell what comes next. No torch."""

from collections.abc import Callable, Iterable, Iterator


class TokenTrie:
    """Built once per tokenizer; read by any number of constraints. Tokens without bytes are left out."""

    def __init__(self, token_bytes: Callable[[int], bytes], vocab_size: int, eos_ids: Iterable[int]) -> None:
        self.eos_ids = frozenset(eos_ids)
        self.token_bytes = token_bytes
        self._root = _Node()
        for token_id in range(vocab_size):
            if token_id not in self.eos_ids and (spelling := token_bytes(token_id)):
                node = self._root
                for byte in spelling:
                    # Not ``setdefault``, which would make a node for every byte that has one.
                    child = node.children.get(byte)
                    if child is None:
                        child = node.children[byte] = _Node()
                    node = child
                node.token_ids.append(token_id)

    def spelled_by(self, data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Tokens whose bytes are ``data[start:end]`` for some end up to ``stop``: pairs of id and end."""
        node = self._root
        for place in range(start, stop):
            child = node.children.get(data[place])
            if child is None:
                return
            node = child
            for token_id in node.token_ids:
                yield token_id, place + 1

    def spelled_after_space(self, data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """As ``spelled_by``, for tokens that write one space first; a lone space ends at ``start``."""
        node = self._root.children.get(ord(" "))
        if node is None:
            return
        for token_id in node.token_ids:
            yield token_id, start
        for place in range(start, stop):
            child = node.children.get(data[place])
            if child is None:
                return
            node = child
            for token_id in node.token_ids:
                yield token_id, place + 1


class _Node:
    __slots__ = ("children", "token_ids")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.token_ids: list[int] = []
