"""Live updates as server-sent events: what a page listens to, instead of asking again and again."""

import asyncio
import random
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import HeaderParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from app.api import wire
from app.api.answers import SAFE_HEADERS, Answer
from app.api.docs import problems
from app.api.strict import ApiRequest, query
from app.errors import InvalidRequest
from app.live import Hub, Stream

#: A stream ends after about so long, and its client comes back to whatever process accepts it: after a deployment, or
#: when a process was added, the streams spread by themselves, and none that was forgotten stays for ever. No sooner: to
#: come back costs as much as thirty events.
LIFE_SECONDS = 50.0
LIFE_JITTER_SECONDS = 20.0

_EVENTS = (
    "`text/event-stream`. `event: slot`: its data is the slot, as `GET /v1/slots/{slot_id}` shows it. `event: reset`: "
    "more changed than is known here, load the page's slots anew. `event: degraded`: there are no live updates for a "
    "while, poll `GET /v1/slots` and try again. A stream ends after about a minute; resume it with `Last-Event-ID`."
)
_STREAM = ResponseSpec(bytes, generate_examples=False, media_type="text/event-stream", description=_EVENTS)

LastEventId = Annotated[
    str | None, HeaderParameter(name="Last-Event-ID", description="the `id` that was last received: resume after it")
]


class LiveQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of them is needed. Both: the resource, if it is the venue's."""

    venue: wire.Slug | None = None
    resource_id: UUID | None = None


@get("/v1/live", opt={"query": LiveQuery}, responses={**problems(404), 200: _STREAM})
async def follow_slots(request: ApiRequest, last_event_id: LastEventId = None) -> Response[bytes]:
    """Follow the slots of a venue, or of one resource: each is told within a second of a change. Open the
    stream before you read the slots, or what changes between the two is missed.
    """
    asked = query(request, LiveQuery)
    hub: Hub = request.app.state.live
    # Postgres is asked only for what nobody listens to yet: half a thousand streams come back every minute.
    if (venue := asked.venue) is None:
        if asked.resource_id is None:
            raise InvalidRequest("venue", "Missing, and no resource_id either")
        venue = hub.venue_of(asked.resource_id) or await request.catalogue.venue_of(asked.resource_id)
    elif not hub.watches(venue):
        await request.catalogue.venue(venue)
    return Events(hub, await hub.join(venue, asked.resource_id, last_event_id))


class Events(Answer):
    """The answer that goes on. It notices when its client leaves, and always gives its place back."""

    def __init__(self, hub: Hub, stream: Stream) -> None:
        super().__init__(200, b"", b"text/event-stream", {"X-Accel-Buffering": "no"})  # nginx would gather events
        self._hub, self._stream = hub, stream

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]
        return self._follow

    async def _follow(self, _: Scope, receive: Receive, send: Send) -> None:
        listening = asyncio.create_task(_until_gone(receive, self._stream))
        try:
            await self._pour(send)
        finally:
            # Nothing here waits: an await after a cancellation may never come back (litestar #3772).
            self._hub.leave(self._stream)
            listening.cancel()

    async def _pour(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
        life = LIFE_SECONDS + random.uniform(0, LIFE_JITTER_SECONDS)  # noqa: S311 so that not all come back at once
        writing = False
        try:
            async with asyncio.timeout(life) as patience:
                self._stream.cut = lambda: patience.reschedule(0)
                while (data := await self._stream.next()) is not None:
                    writing = True  # it may be long: a client that reads slowly holds us up here
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    writing = False
        except TimeoutError:
            if writing:  # the connection is closed in the middle, and the client resumes where it was
                return
        self._stream.end()
        rest = await self._stream.next() or b""
        await send({"type": "http.response.body", "body": rest, "more_body": False})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        told = {**SAFE_HEADERS, "Content-Type": "text/event-stream", **self.headers}
        return [(name.lower().encode(), value.encode()) for name, value in told.items()]


async def _until_gone(receive: Receive, stream: Stream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.end()


ROUTES: list[HTTPRouteHandler] = [follow_slots]
