"""Alive, ready, and what Prometheus reads."""

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from server.dependencies import StateDep, watcher
from server.readiness import Stage

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(state: StateDep) -> JSONResponse:
    """200 while questions are taken; 503 with the reason while loading, draining, or when the engine has stopped."""
    stage, reason = state.standing()
    return JSONResponse({"status": stage.value, "reason": reason}, status_code=200 if stage is Stage.READY else 503)


@router.get("/metrics", response_class=Response, dependencies=[Depends(watcher)])
def metrics(state: StateDep) -> Response:
    """Prometheus' text format. Needs a key unless only this machine can ask or the operator opened it."""
    return Response(state.metrics.expose(), media_type=CONTENT_TYPE_LATEST)
