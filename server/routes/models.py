"""The models that are served: the one that writes, and the one that embeds."""

from typing import Any, get_args

from fastapi import APIRouter

from server.answers.inquiry import ServedModel
from server.chat.schema import PolicyOptions
from server.dependencies import ServicesDep
from server.errors import UnknownModel
from server.rendering import policy_view
from server.schemas import Recall, error_responses
from server.services import Services

router = APIRouter(prefix="/v1/models", tags=["models"], responses=error_responses(401, 404, 503))


@router.get("")
async def list_models(services: ServicesDep) -> dict[str, Any]:
    """Both models."""
    return {"object": "list", "data": [_view(services.model), _embedder_view(services)]}


# A hub id has a slash in it.
@router.get("/{model_id:path}")
async def retrieve_model(model_id: str, services: ServicesDep) -> dict[str, Any]:
    """One model by its id."""
    if model_id == services.model.name:
        return _view(services.model)
    if model_id == services.embeddings.embedder.name:
        return _embedder_view(services)
    raise UnknownModel(model_id, services.model.name)


def _view(model: ServedModel) -> dict[str, Any]:
    fano = {
        "policy": policy_view(model.policy),
        "policies": list(get_args(PolicyOptions.model_fields["name"].annotation)),
        "recalls": list(get_args(Recall)),
        "dtype": model.dtype,
        "max_context_tokens": model.max_context_tokens,
    }
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "fano", "fano": fano}


def _embedder_view(services: Services) -> dict[str, Any]:
    embedder = services.embeddings.embedder
    fano = {"dimension": embedder.dimension, "max_input_tokens": embedder.max_tokens}
    created = services.model.created
    return {"id": embedder.name, "object": "model", "created": created, "owned_by": "fano", "fano": fano}
