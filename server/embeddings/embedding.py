"""Texts to vectors for clients, by the embedder that documents are searched with."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import numpy as np

from server.embeddings.schema import EmbeddingRequest
from server.errors import RequestInvalid, UnknownModel

if TYPE_CHECKING:
    from retrieval.embedder import Embedder, Vectors

# OpenAI's bound on a request: a minute of one core.
MAX_REQUEST_TOKENS = 300_000
# Between slices a client that has left is noticed.
SLICE_TEXTS = 32


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors [texts, dimension] of a request, and the tokens that were read for them."""

    vectors: "Vectors"
    num_tokens: int


class Embeddings:
    """Embeds for one request at a time, so that questions wait for one batch of one client at most."""

    def __init__(self, embedder: "Embedder") -> None:
        self.embedder = embedder
        self._turn = anyio.CapacityLimiter(1)

    def check_model(self, model: str) -> None:
        """Raises ``UnknownModel`` for the name of any other model."""
        if model != self.embedder.name:
            raise UnknownModel(model, self.embedder.name)

    async def embed(self, body: EmbeddingRequest) -> Embedded:
        """The vectors of the texts. A text is read whole or refused: none is cut.

        Raises ``UnknownModel``, and ``RequestInvalid`` for other dimensions than the model's, and for more tokens than
        the model reads of one text or a request may have.
        """
        self.check_model(body.model)
        width = self.embedder.dimension
        if body.dimensions is not None and body.dimensions != width:
            raise RequestInvalid(
                f"dimensions is {body.dimensions}, but the vectors of {body.model!r} have {width}; leave it out",
                "dimensions",
            )
        async with self._turn:
            counts = await anyio.to_thread.run_sync(self.embedder.count_tokens, body.input)
            self._check_lengths(counts)
            slices = [body.input[start : start + SLICE_TEXTS] for start in range(0, len(body.input), SLICE_TEXTS)]
            vectors = [await anyio.to_thread.run_sync(self.embedder.embed_passages, each) for each in slices]
        return Embedded(np.concatenate(vectors), sum(counts))

    def _check_lengths(self, counts: Sequence[int]) -> None:
        most = self.embedder.max_tokens
        for place, count in enumerate(counts):
            if most is not None and count > most:
                raise RequestInvalid(
                    f"input {place} has {count} tokens, but {self.embedder.name} reads {most} of a text and would "
                    "leave out the rest; send shorter texts",
                    f"input.{place}",
                    "context_length_exceeded",
                )
        if sum(counts) > MAX_REQUEST_TOKENS:
            raise RequestInvalid(
                f"input has {sum(counts)} tokens together, but a request may have {MAX_REQUEST_TOKENS}; send several",
                "input",
            )


def embedding_json(body: EmbeddingRequest, found: Embedded) -> bytes:
    """The reply as OpenAI shapes it. In base64 a vector is its float32, least byte first."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if body.encoding_format == "base64"
            else vector.tolist(),
        }
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.num_tokens, "total_tokens": found.num_tokens}
    return json.dumps({"object": "list", "data": data, "model": body.model, "usage": usage}).encode()
