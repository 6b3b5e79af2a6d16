"""The application: settings in, an ASGI app out. Nothing happens before its lifespan begins."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from litestar import Litestar
from litestar.datastructures import State

from app import api, engine, telemetry
from app.api import answers, docs, problems, wire
from app.api.direct import Direct
from app.api.edge import Edge, Origins
from app.api.machines import Readiness
from app.api.strict import ApiRequest, exact_path
from app.appointments import Appointments
from app.catalogue import Catalogue
from app.database import Database
from app.domain import Room, Slot
from app.live import Hub
from app.settings import Settings

#: No request needs more, except those that say so themselves.
MAX_BODY = 16 * 1024


class Application(telemetry.Observed):
    """The ASGI app, and what its server must tell it beside requests."""

    def __init__(self, app: telemetry.ASGIApp, always: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(app, always)
        self._live: tuple[asyncio.AbstractEventLoop, Hub] | None = None

    def follows(self, hub: Hub) -> None:
        self._live = asyncio.get_running_loop(), hub

    def stop_soon(self) -> None:
        """End what would not end by itself, so that a stop need not wait for it. From a signal handler."""
        if self._live:
            loop, hub = self._live
            loop.call_soon_threadsafe(hub.stop_soon)


def create_app(chosen: Settings) -> Application:
    """Build the application. Stores are opened when its lifespan begins, and it starts also while they are away."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with engine.running(chosen) as running:
            database = Database(chosen.database_url)
            catalogue = Catalogue(database)
            app.state.engine, app.state.database, app.state.catalogue = running, database, catalogue
            app.state.appointments = Appointments(running)
            app.state.origins = Origins(catalogue.origins)
            app.state.readiness = Readiness(running)
            app.state.exposing = asyncio.Lock()
            app.state.live = hub = Hub(running, _render)
            application.follows(hub)
            try:
                yield
            finally:
                await hub.close()
                with contextlib.suppress(Exception):
                    await database.close()

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
    application = Application(Edge(Direct(app, MAX_BODY), app.state, chosen), answers.always(chosen.public_url))
    return application


def _render(slot: Slot, room: Room | None) -> bytes:
    return msgspec.json.encode(wire.slot(slot, room))


def app_factory(chosen: Settings) -> Application:
    """Build the application as the server's workers run it, with its logs."""
    telemetry.configure_logging()
    return create_app(chosen)
