"""The model that is served."""

from typing import Any

from fastapi import APIRouter

from server.dependencies import ServicesDep
from server.errors import UnknownModel
from server.inquiry import ServedModel
from server.rendering import policy_view
from server.schemas import error_responses

router = APIRouter(prefix="/v1/models", tags=["models"], responses=error_responses(401, 404, 503))


@router.get("")
async def list_models(services: ServicesDep) -> dict[str, Any]:
    """All models, which is one."""
    return {"object": "list", "data": [_view(services.model)]}


# A hub id has a slash in it.
@router.get("/{model_id:path}")
async def retrieve_model(model_id: str, services: ServicesDep) -> dict[str, Any]:
    """One model by its id."""
    if model_id != services.model.name:
        raise UnknownModel(model_id, services.model.name)
    return _view(services.model)


def _view(model: ServedModel) -> dict[str, Any]:
    fano = {"policy": policy_view(model.policy), "dtype": model.dtype, "max_context_tokens": model.max_context_tokens}
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "fano", "fano": fano}
