"""The application: settings in, an ASGI app out. Nothing happens before its lifespan begins."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State

from app import api, engine, settings, telemetry
from app.api import docs, problems
from app.api.direct import Direct
from app.api.machines import Readiness
from app.api.strict import ApiRequest, exact_path
from app.appointments import Appointments
from app.catalogue import Catalogue
from app.settings import Settings

#: No request needs more, except those that say so themselves.
MAX_BODY = 16 * 1024


def create_app(chosen: Settings) -> telemetry.Observed:
    """Build the application. Stores are opened when its lifespan begins, and it starts also while they are away."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with engine.running(chosen) as running:
            catalogue = Catalogue(chosen.database_url)
            app.state.engine, app.state.catalogue = running, catalogue
            app.state.appointments = Appointments(running)
            app.state.readiness = Readiness(running)
            try:
                yield
            finally:
                with contextlib.suppress(Exception):
                    await catalogue.close()

    app = Litestar(
        route_handlers=api.ROUTES,
        request_class=ApiRequest,
        before_request=exact_path,
        lifespan=[lifespan],
        exception_handlers=problems.HANDLERS,
        openapi_config=docs.config(),
        request_max_body_size=MAX_BODY,
        state=State(),
        logging_config=None,
        debug=False,
    )
    return telemetry.Observed(Direct(app, MAX_BODY))


def app_factory() -> telemetry.Observed:
    """Build the application from the environment: what the server's workers call."""
    telemetry.configure_logging()
    return create_app(settings.from_env())
