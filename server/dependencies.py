"""What the routes ask for by type: the app's state, the services behind it, and the tenant.

All of them are coroutines because the framework would give each plain function a hop to a worker thread.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from server.errors import NotReady
from server.metrics import Metrics
from server.readiness import Readiness, Stage
from server.services import Services
from server.settings import Settings
from server.tenants import Tenants


@dataclass(slots=True)
class AppState:
    """Everything one app holds. ``services`` is None until they are loaded."""

    settings: Settings
    tenants: Tenants
    metrics: Metrics
    readiness: Readiness
    services: Services | None = None

    def standing(self) -> tuple[Stage, str]:
        """Where the process stands, and why: one whose engine has stopped has failed."""
        stage, reason = self.readiness.stage, self.readiness.reason
        if stage is Stage.READY and self.services is not None and self.services.bridge.failure is not None:
            return Stage.FAILED, f"the engine has stopped: {self.services.bridge.failure}"
        return stage, reason


async def app_state(request: Request) -> AppState:
    """The state of the app that serves this request."""
    state: AppState = request.app.state.fano
    return state


StateDep = Annotated[AppState, Depends(app_state)]


async def tenant(request: Request, state: StateDep) -> str:
    """The tenant whose key came with the request. Raises ``KeyRefused``."""
    name = state.tenants.tenant_of(request.headers.get("authorization"))
    request.scope["fano_tenant"] = name
    return name


TenantDep = Annotated[str, Depends(tenant)]


async def watcher(request: Request, state: StateDep) -> None:
    """Who may see the numbers of the whole process: anyone where only this machine can ask or the operator opened
    them, else whoever has a key. Raises ``KeyRefused``."""
    if not (state.settings.on_loopback or state.settings.open_metrics):
        state.tenants.tenant_of(request.headers.get("authorization"))


async def services(state: StateDep, _: TenantDep) -> Services:
    """The services, for one who may use them and while new requests are taken. Raises ``NotReady`` and the like."""
    state.readiness.check()
    if state.services is None:
        raise NotReady(state.readiness.reason)
    return state.services


ServicesDep = Annotated[Services, Depends(services)]


async def request_id(request: Request) -> str:
    """The id that the middleware gave the request."""
    return str(request.scope["fano_request_id"])


async def arrival(request: Request) -> float:
    """Monotonic seconds at which the request arrived."""
    return float(request.scope["fano_started"])


RequestIdDep = Annotated[str, Depends(request_id)]
ArrivalDep = Annotated[float, Depends(arrival)]
