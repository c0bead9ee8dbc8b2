"""Verbatim decoding: a character automaton over the evidence decides which tokens may come. No torch.

Exactness is a promise of this decoder, not a hope about the model: the answer is
``evidence[i][start:end]``, found by position, and never text put together from token ids. The
automaton runs on the UTF-8 bytes of the evidence, since a token may be a part of a character;
spans begin and end at the borders that ``model.engine.words`` allows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.engine.evidence import EvidenceBytes
from model.engine.request import EvidenceSpan
from model.engine.token_trie import TokenTrie


class VerbatimConstraint:
    """The tokens allowed next, given those taken so far; at the end, the spans that were written.

    ``allowed`` is never empty. The end of text is among the allowed tokens where a span may end,
    and not before the first word is whole. One space before a span is free, because tokenizers
    write it before every text. With ``max_spans`` above one, a new span may follow a whole one
    after a space. With ``is_whole`` a span is one of the texts of the evidence from end to end.
    """

    def __init__(
        self, evidence: Sequence[str], vocabulary: TokenTrie, max_spans: int = 1, is_whole: bool = False
    ) -> None:
        self._evidence = EvidenceBytes(evidence, is_whole)
        self._vocabulary = vocabulary
        self._max_spans = max_spans
        self._paths = [_Path((), tuple(self._evidence.starts), 0)]
        self._openings = self._opening_moves()
        self._moves: dict[int, list[_Move]] | None = None
        self._written = b""
        self._num_taken = 0
        self._best = _Best(0, ())

    @property
    def text(self) -> str:
        """What is certain to be in the answer: it grows word by word and is never taken back."""
        return self._written[: self._best.num_bytes].decode("utf-8")

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of text may come."""
        return not self._next_moves()

    def allowed(self) -> list[int]:
        """Ids that may come next, ascending."""
        moves = self._next_moves()
        if not moves or any(
            self._evidence.earliest_whole(path.starts, path.length) is not None for path in self._paths
        ):
            return sorted(moves.keys() | self._vocabulary.eos_ids)
        return sorted(moves)

    def advance(self, token_id: int) -> None:
        """Take an allowed token. Raises ValueError for any other; the answer stays what it was."""
        if token_id in self._vocabulary.eos_ids:
            return
        moves = self._next_moves().get(token_id)
        if moves is None:
            raise ValueError(f"token {token_id} is not allowed here; take one of allowed()")
        # Paths whose open span is equally long have the same future, and fewer spans leave more of it.
        by_length: dict[int, _Path] = {}
        for move in moves:
            known = by_length.get(move.length)
            if known is None or len(move.closed) < len(known.closed):
                by_length[move.length] = _Path(move.closed, tuple(move.starts), move.length)
        spelling = self._vocabulary.token_bytes(token_id)
        self._written += spelling.removeprefix(b" ") if self._num_taken == 0 else spelling
        self._num_taken += 1
        self._paths = list(by_length.values())
        self._moves = None
        self._remember_best()

    def result(self) -> list[EvidenceSpan]:
        """The answer: up to the last place where it could end, else to the end of the word begun.

        Of several places with the same text it is the earliest of the earliest evidence. Empty
        only if no evidence has a word.
        """
        spans = self._best.spans
        if not spans and self._evidence.starts:
            path = self._paths[0]
            start = path.starts[0]
            spans = ((start, self._evidence.end_from(start + path.length)),)
        return [self._evidence.span(start, end) for start, end in spans]

    def answer(self) -> str:
        """Text of ``result``, spans joined by one space. ``text`` is always the beginning of it."""
        return " ".join(self._evidence.quote(span) for span in self.result())

    def _next_moves(self) -> dict[int, list["_Move"]]:
        if self._moves is None:
            self._moves = {}
            for path in self._paths:
                for token_id, move in self._moves_from(path):
                    self._moves.setdefault(token_id, []).append(move)
        return self._moves

    def _moves_from(self, path: "_Path") -> Iterable[tuple[int, "_Move"]]:
        plain, spaced = self._openings
        if path.length == 0:
            for token_id, (starts, length) in plain.items():
                yield token_id, _Move(path.closed, starts, length)
            if self._num_taken == 0:
                for token_id, (starts, length) in spaced.items():
                    yield token_id, _Move(path.closed, starts, length)
            return
        for token_id, (starts, length) in self._extensions(path).items():
            yield token_id, _Move(path.closed, starts, length)
        whole = self._evidence.earliest_whole(path.starts, path.length)
        if whole is not None and len(path.closed) + 1 < self._max_spans:
            closed = (*path.closed, (whole, whole + path.length))
            for token_id, (starts, length) in spaced.items():
                yield token_id, _Move(closed, starts, length)

    def _extensions(self, path: "_Path") -> dict[int, tuple[list[int], int]]:
        """Tokens that go on with the open span, each with the starts that remain and the new length."""
        found: dict[int, tuple[list[int], int]] = {}
        for start in path.starts:
            place = start + path.length
            for token_id, end in self._vocabulary.spelled_by(self._evidence.data, place, self._evidence.limit(start)):
                found.setdefault(token_id, ([], end - start))[0].append(start)
        return found

    def _opening_moves(self) -> tuple[dict[int, tuple[list[int], int]], dict[int, tuple[list[int], int]]]:
        """Tokens that open a span: those that write no space before it, and those that do."""
        plain: dict[int, tuple[list[int], int]] = {}
        spaced: dict[int, tuple[list[int], int]] = {}
        data, vocabulary = self._evidence.data, self._vocabulary
        for start in self._evidence.starts:
            limit = self._evidence.limit(start)
            for token_id, end in vocabulary.spelled_by(data, start, limit):
                plain.setdefault(token_id, ([], end - start))[0].append(start)
            for token_id, end in vocabulary.spelled_after_space(data, start, limit):
                spaced.setdefault(token_id, ([], end - start))[0].append(start)
        return plain, spaced

    def _remember_best(self) -> None:
        for path in sorted(self._paths, key=lambda path: len(path.closed)):
            opened_at = len(self._written) - path.length
            for start in path.starts:
                end = self._evidence.end_before(start + path.length)
                num_bytes = opened_at + end - start
                # Starts ascend, so the first with a given length is the earliest.
                if end > start and num_bytes > self._best.num_bytes:
                    self._best = _Best(num_bytes, (*path.closed, (start, end)))


@dataclass(frozen=True, slots=True)
class _Path:
    """A reading of the text so far: closed spans, and one of ``length`` bytes that is open since any of ``starts``."""

    closed: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True)
class _Move:
    """The path that a token leads to; ``starts`` is shared and not changed."""

    closed: tuple[tuple[int, int], ...]
    starts: list[int]
    length: int


@dataclass(frozen=True, slots=True)
class _Best:
    """The longest beginning of the text, in bytes, that is a whole answer, and its spans."""

    num_bytes: int
    spans: tuple[tuple[int, int], ...]
