"""The ASGI application: state, middleware, routes, and a lifespan that loads while it already answers."""

import asyncio
import gc
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI

from server.dependencies import AppState
from server.error_table import install_error_handlers
from server.logs import log_event
from server.measures.stage_collector import StageCollector
from server.metrics import Metrics
from server.middleware import BodyLimit, HeadOfGet, LocalOnly, PlainBodies, RequestScope
from server.readiness import Readiness
from server.reference.document import DocumentedApp
from server.reference.words import TAGS
from server.routes import (
    answers,
    bill,
    chat,
    completions,
    console,
    documents,
    embeddings,
    facts,
    files,
    models,
    operations,
    responses,
    sessions,
    store_files,
    uploads,
    vector_stores,
)
from server.routes.reference import install_reference
from server.services import Services, load_services
from server.settings import Settings
from server.tenants import open_tenants

logger = logging.getLogger(__name__)


def create_app(settings: Settings, services: Services | None = None, metrics: Metrics | None = None) -> FastAPI:
    """An app of its own, sharing nothing with another. ``services`` that are given are used, started and stopped.

    Without them they are loaded once the lifespan begins; until they stand, /healthz answers, /readyz
    and everything that needs them is a 503. ``metrics`` are those that given services count into. Raises
    ``SettingsInvalid`` where no key protects what other machines can reach, and ``KeysUnreadable``.
    """
    state = AppState(settings, open_tenants(settings), metrics or Metrics(), Readiness())
    stages = StageCollector(state.readiness, lambda: state.standing()[0], settings.drain_seconds)
    state.metrics.registry.register(stages)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(state, services))
        loading.add_done_callback(partial(_tell_failure, state))
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.wait({loading})
            if state.services is not None:
                await state.services.aclose()
            state.tenants.close()

    app = DocumentedApp(
        title="Fano",
        version=version("fano"),
        summary="A long-context inference server whose memory bill is fixed, printed and true",
        lifespan=lifespan,
        openapi_tags=list(TAGS),
        docs_url=None,
        redoc_url=None,
    )
    app.state.fano = state
    install_error_handlers(app, state.metrics.refused)
    for routes in (
        documents,
        facts,
        answers,
        chat,
        completions,
        embeddings,
        responses,
        files,
        uploads,
        vector_stores,
        store_files,
        sessions,
        models,
        bill,
        operations,
        console,
    ):
        app.include_router(routes.router)
    install_reference(app)
    app.add_middleware(PlainBodies)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_request_bytes,
        setting="FANO_MAX_REQUEST_BYTES",
        own_limit_paths=(re.compile(documents.UPLOAD_PATH), re.compile(files.FILES_PATH), uploads.PARTS_PATH),
    )
    app.add_middleware(LocalOnly, tenants=state.tenants)
    app.add_middleware(HeadOfGet)
    app.add_middleware(RequestScope, readiness=state.readiness, answered=state.metrics.answered)
    return app


async def _load(state: AppState, given: Services | None) -> None:
    if given is None:
        with _made_to_last():
            given = await anyio.to_thread.run_sync(load_services, state.settings, state.metrics)
    await given.start()
    state.services = given
    state.readiness.ready()
    log_event(logger, "ready", model=given.model.name)


@contextmanager
def _made_to_last() -> Iterator[None]:
    """The garbage collector does not look at what is made meanwhile, neither now nor later.

    Libraries and model are 330,000 objects that live as long as the process. Looking for garbage among them again and
    again while they come takes a sixth of the start, and later a full look would hold up every stream for 0.2 seconds.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _tell_failure(state: AppState, loading: "asyncio.Task[None]") -> None:
    """Whatever went wrong, the process cannot serve; who started it decides what to do, and is told why."""
    error = None if loading.cancelled() else loading.exception()
    if error is None:
        return
    state.readiness.fail(f"{error}" or type(error).__name__)
    logger.error("the server cannot start: %s", error, exc_info=error if state.settings.log_level == "debug" else None)
