"""For machines: is it alive, is it ready, how is it doing. None of it says versions, and none is cached by others."""

import asyncio
import time
from typing import Any

import structlog
from litestar import Response, get, route
from litestar.handlers import HTTPRouteHandler

from app import telemetry
from app.api import answers
from app.api.answers import SAFE_HEADERS
from app.api.strict import ApiRequest
from app.engine import Engine
from app.errors import Unavailable

log = structlog.get_logger()

#: Many probes ask at once; the stores are asked at most so often.
REMEMBER_SECONDS = 1.0


class Readiness:
    """What the last look at both stores said. One look at a time; the others wait for its result."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looking = asyncio.Lock()
        self._until = 0.0
        self._said: dict[str, str] = {}

    async def look(self) -> dict[str, str]:
        async with self._looking:
            if time.monotonic() >= self._until:
                self._said = {"postgres": await self._postgres(), "redis": await self._redis()}
                self._until = time.monotonic() + REMEMBER_SECONDS
        return self._said

    async def _postgres(self) -> str:
        try:
            await self._engine.ledger.ping()
        except Unavailable as error:
            return error.code
        return "ok"

    async def _redis(self) -> str:
        """Redis away is no reason to be taken out of service: bookings go on without it (design 7)."""
        return "ok" if self._engine.redis_ok and await self._engine.holds.pipelines.probe() else "degraded"


@route("/livez", http_method=["GET", "HEAD"], include_in_schema=False)
async def alive(request: ApiRequest) -> Response[Any]:
    """Answer without asking anybody: a restart would mend no store."""
    return answers.ok({"status": "ok"})


@route("/readyz", http_method=["GET", "HEAD"], include_in_schema=False)
async def ready(request: ApiRequest) -> Response[Any]:
    """Tell whether requests should be sent here: 503 without Postgres."""
    readiness: Readiness = request.app.state.readiness
    said = await readiness.look()
    answer = answers.ok(said)
    if said["postgres"] != "ok":
        answer.status_code = 503
        answer.headers["Retry-After"] = "1"
    return answer


@get("/metrics", include_in_schema=False)
async def metrics(request: ApiRequest) -> Response[bytes]:
    """Expose the metrics of all worker processes."""
    exposing: asyncio.Lock = request.app.state.exposing
    async with exposing:  # in a thread, one at a time: customers do not wait until all files are added up
        body, media_type = await asyncio.to_thread(telemetry.exposition)
    # As a header: to a media type of text Litestar would add a second charset.
    return Response(body, headers={**SAFE_HEADERS, "Content-Type": media_type})


ROUTES: list[HTTPRouteHandler] = [alive, ready, metrics]
