"""What is decided about a request before anything of it is read: whose page it comes from, and whether too many came.

An ASGI layer in front of all others, so that problems and the way of a crowd (`direct`) are under the same rules. What
customers may call is one table, and whatever is not in it is for operators and machines: no other site's page reads
that.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import structlog
from litestar.datastructures import State

from app.api import appointments, problems, who
from app.errors import RateLimited, Unavailable
from app.limits import SIGN_IN, Limits
from app.settings import Settings
from app.telemetry import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

#: What customers call, and their pages with them; a test compares it with the OpenAPI document.
CUSTOMERS: Mapping[str, Sequence[str]] = {
    "GET": (
        "/v1/venues/{slug}",
        "/v1/slots",
        "/v1/days",
        "/v1/slots/{slot_id}",
        "/v1/holds/{hold_id}",
        "/v1/bookings/{booking_id}",
        "/v1/bookings/{booking_id}/calendar",
        "/v1/waiting-list/{entry_id}",
        "/v1/live",
    ),
    "POST": (
        "/v1/holds",
        "/v1/holds/{hold_id}/extend",
        "/v1/bookings",
        "/v1/bookings/{booking_id}/cancel",
        "/v1/bookings/{booking_id}/reschedule",
        "/v1/checkout",
        "/v1/waiting-list",
        "/api/v1/public/{slug}/book",
    ),
    "DELETE": ("/v1/holds/{hold_id}", "/v1/waiting-list/{entry_id}"),
}
#: … each path a group of its own, which tells which one it was.
_CUSTOMERS = {
    method: re.compile("|".join(f"({re.sub(r'{[a-z_]+}', '[^/]+', path)})" for path in paths))
    for method, paths in CUSTOMERS.items()
}

#: What a page may send, and read. Neither the operators' key nor what their pages say with their session is among it.
_SENT = "Content-Type, Idempotency-Key, Hold-Token, Manage-Token, Waiting-Token, Last-Event-ID, If-None-Match"
_READ = "Location, Retry-After, ETag, Idempotency-Replayed, RateLimit, RateLimit-Policy, X-Request-Id"
_VARY = (b"vary", b"Origin")
_EXPOSED = (b"access-control-expose-headers", _READ.encode())
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (b"access-control-allow-headers", _SENT.encode()),
    (b"access-control-max-age", b"600"),
)

#: So old the origins may be that we know.
ORIGINS_SECONDS = 3.0


class Origins:
    """Whose pages may call: the origins of all venues, as Postgres had them a moment ago. A hold does not say which
    venue it is of before it is read, and what a page may call for one venue harms no other: it is what anybody may.
    """

    def __init__(self, read: Callable[[], Awaitable[Iterable[str]]]) -> None:
        self._read = read
        self._known: Collection[str] | None = None
        self._due = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def include(self, origin: str) -> bool:
        """Tell whether a page of this origin may call: it is one of them to the letter, or anybody may. `null`, which
        every page without an origin sends, is nobody.
        """
        if origin == "null":
            return False
        if time.monotonic() >= self._due and self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        if self._known is None and self._reading is not None:  # else nobody waits for what is only to be fresher
            await asyncio.shield(self._reading)
        return self._known is not None and (origin in self._known or "*" in self._known)

    async def _refresh(self) -> None:
        try:
            self._known = frozenset(await self._read())
        except Unavailable:
            log.warning("origins_not_read")  # what was known is true until the opposite is heard
        finally:
            self._due, self._reading = time.monotonic() + ORIGINS_SECONDS, None


class Edge:
    """The layer itself. A request that names no origin passes at the price of a look for one, and where nobody is
    limited nobody is counted.
    """

    def __init__(self, app: ASGIApp, state: State, settings: Settings) -> None:
        self.app = app
        self._state = state
        self._settings = settings
        self._limits = settings.rate_limit is not None
        #: Else all who come by an unknown proxy were one, and anybody's guesses would lock the operators out.
        self._knows_clients = settings.trusted_proxies is not None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own for what only passes through.
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        origin = key = None
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == b"authorization":
                key = value
        if key is not None and self._knows_clients and key[:7].lower() == b"bearer ":
            return self._with_key(scope, receive, send, origin)
        return self._from(scope, receive, send, origin)

    def _from(self, scope: Scope, receive: Receive, send: Send, origin: bytes | None) -> Awaitable[None]:
        if origin is not None:
            return self._of_a_page(scope, receive, send, origin)
        return self._inside(scope, receive, send)

    def _inside(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        changes = scope["method"] in ("POST", "DELETE")
        if self._limits and changes and is_customers(scope["method"], scope["path"]):
            return self._counted(scope, receive, send)
        return self.app(scope, receive, send)

    async def _with_key(self, scope: Scope, receive: Receive, send: Send, origin: bytes | None) -> None:
        """Let nobody try one key after the other: those that were refused count, wherever they were shown, and who has
        to wait is refused without a look. A right one costs a look into this process's memory.
        """
        limits: Limits = self._state.engine.limits
        client, refused = who.client(self._settings, scope), False

        async def send_counted(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 401:
                try:
                    await limits.ask(SIGN_IN, client)
                except RateLimited as refusal:
                    refused = True
                    await _refuse(scope, send, refusal)
            if not refused:
                await send(message)

        try:
            limits.refuse_who_waits(SIGN_IN, client)
        except RateLimited as refusal:
            await _refuse(scope, send, refusal)
            return
        await self._from(scope, receive, send_counted, origin)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a customer who asks too often, without a look at what was asked."""
        if not self._is_operator(scope):
            try:
                limits: Limits = self._state.engine.limits
                await limits.ask(limits.requests, who.client(self._settings, scope))
            except RateLimited as refusal:
                await _refuse(scope, send, refusal)
                return
        await self.app(scope, receive, send)

    def _is_operator(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        if b"authorization" not in headers and who.PAGE_HEADER.encode() not in headers:
            return False
        return who.is_operator(
            self._settings, {name.decode(): value.decode("latin-1") for name, value in headers.items()}
        )

    async def _of_a_page(self, scope: Scope, receive: Receive, send: Send, origin: bytes) -> None:
        """Let a page read the answer, or (a preflight, which asks before it calls) tell it that it may."""
        asked = _asked_about(scope)
        called = template(asked or scope["method"], scope["path"])
        if called is None:
            await self._inside(scope, receive, send)
            return
        headers = [_VARY]
        if await self._state.origins.include(origin.decode("latin-1")):
            headers.append((b"access-control-allow-origin", origin))
            if asked is not None:
                scope["path_template"] = called
                start = {"type": "http.response.start", "status": 204, "headers": [*headers, *_PREFLIGHT]}
                await send(start)
                await send({"type": "http.response.body", "body": b""})
                return
            headers.append(_EXPOSED)

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*(pair for pair in message.get("headers", ()) if pair != _VARY), *headers]
            await send(message)

        await self._inside(scope, receive, send_readable)


def is_customers(method: str, path: str) -> bool:
    """Tell whether that is for customers to call."""
    return template(method, path) is not None


def template(method: str, path: str) -> str | None:
    """Name what customers call there; None: it is not for them."""
    paths = _CUSTOMERS.get(method)
    match = paths.fullmatch(path) if paths else None
    return CUSTOMERS[method][match.lastindex - 1] if match and match.lastindex else None


async def _refuse(scope: Scope, send: Send, refusal: RateLimited) -> None:
    """Answer in the place of whatever was called, which log and metrics name all the same."""
    if called := template(scope["method"], scope["path"]):
        scope["path_template"] = called
    said: Any = appointments if scope["path"].startswith("/api/") else problems
    await said.render(None, refusal).send(send)


def _asked_about(scope: Scope) -> str | None:
    """Read the method that a preflight asks about; None: it is no preflight."""
    if scope["method"] != "OPTIONS":
        return None
    asked = dict(scope["headers"]).get(b"access-control-request-method")
    return None if asked is None else str(asked.decode("latin-1"))
