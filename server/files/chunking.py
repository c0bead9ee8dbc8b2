"""How texts are cut for vector stores: as a client wants it, in tokens of the served model."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from retrieval.cutting import pieces_of
from retrieval.passage import Cutting, Span
from server.errors import RequestInvalid
from server.files.schemas import AutoChunking, StaticChunking
from server.invalid_fields import invalid_fields

if TYPE_CHECKING:
    from model.tokenizer import Encoding

# Tokens and their places take some hundred times the room of the text, so no more of it is encoded at once.
BLOCK_CHARACTERS = 1 << 16


class CutTokenizer(Protocol):
    """What cutting needs of ``model.tokenizer.Tokenizer``."""

    def encode(self, text: str) -> "Encoding":
        """Ids of a text, and where each token stands."""

    def encode_ids(self, text: str) -> list[int]:
        """Ids of a text."""


class Cutter:
    """Cuts texts into pieces of a number of tokens. Blocking; on any thread."""

    def __init__(self, tokenizer: CutTokenizer) -> None:
        self._tokenizer = tokenizer

    def pieces(self, text: str, cutting: Cutting) -> list[Span]:
        """``text`` cut so, as ``retrieval.cutting`` has it."""
        starts = [
            block.start + start
            for block in _blocks(text)
            for start, _ in self._tokenizer.encode(text[block.start : block.end]).offsets
        ]
        return pieces_of(text, cutting, starts, lambda piece: len(self._tokenizer.encode_ids(piece)))


def asked_cutting(strategy: Mapping[str, Any] | None, path: str = "chunking_strategy") -> Cutting | None:
    """How a request wants files cut; None between sentences, as each question wants it. Raises ``RequestInvalid``."""
    if strategy is None:
        return None
    kind = strategy.get("type")
    if kind not in ("auto", "static"):
        told = f"is {kind!r}, expected" if "type" in strategy else "is missing, expected"
        raise RequestInvalid(f"{path}.type {told} 'auto' or 'static'", f"{path}.type")
    try:
        if kind == "auto":
            AutoChunking.model_validate(dict(strategy))
            return None
        static = StaticChunking.model_validate(dict(strategy)).static
    except ValidationError as error:
        located = [{**each, "loc": ("body", *path.split("."), *each["loc"])} for each in error.errors()]
        raise invalid_fields(located, "application/json") from None
    if 2 * static.chunk_overlap_tokens > static.max_chunk_size_tokens:
        raise RequestInvalid(
            f"{path}.static.chunk_overlap_tokens is {static.chunk_overlap_tokens}, expected at most half of "
            f"max_chunk_size_tokens, which is {static.max_chunk_size_tokens}",
            f"{path}.static.chunk_overlap_tokens",
        )
    return Cutting(static.max_chunk_size_tokens, static.chunk_overlap_tokens)


def _blocks(text: str) -> Iterator[Span]:
    """The text in pieces that end before a blank, where there is one: tokens do not run over it."""
    start = 0
    while start < len(text):
        most = min(len(text), start + BLOCK_CHARACTERS)
        borders = range(most, start + BLOCK_CHARACTERS // 2, -1) if most < len(text) else ()
        end = next((place for place in borders if text[place].isspace()), most)
        yield Span(start, end)
        start = end
