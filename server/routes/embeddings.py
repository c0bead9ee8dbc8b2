"""Embeddings as OpenAI has them."""

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from server.dependencies import ServicesDep
from server.embeddings.embedding import Embedded, embedding_json
from server.embeddings.schema import EmbeddingRequest
from server.schemas import error_responses
from server.streams.delivery import while_connected

router = APIRouter(prefix="/v1", tags=["embeddings"], responses=error_responses(400, 401, 404, 413, 503))


@router.post("/embeddings")
async def create_embeddings(request: Request, body: EmbeddingRequest, services: ServicesDep) -> Response:
    """The vectors of one text or several, each of length one, by the model that documents are searched with.

    A text that is longer than the model reads is refused; none is cut.
    """
    found: Embedded = await while_connected(request, services.embeddings.embed(body))
    # Half a million numbers take half a second to be spelled.
    return Response(await anyio.to_thread.run_sync(embedding_json, body, found), media_type="application/json")
