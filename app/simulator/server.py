"""The simulator as an application, and the process around it."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvicorn
from litestar import Litestar, Response, get
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.settings import MIN_WEBHOOK_SECRET_LENGTH, SettingsError
from app.simulator import api, control, objects, pages
from app.simulator.delivery import Delivery
from app.simulator.exchange import CUT, Asking, Simulator, simulator_of
from app.simulator.forms import StripeError
from app.simulator.idempotency import Idempotency
from app.simulator.ledger import Ledger
from app.simulator.state import Books

log = logging.getLogger("holdfast.simulator")

#: No form of a checkout is larger.
MAX_BODY = 256 * 1024
#: A stop waits no longer for requests that a fault keeps.
GRACE_SECONDS = 1
#: How long the expiry of sessions is left to a clock that somebody may have set.
LONGEST_SLEEP_SECONDS = 60.0
#: Where the protocol below leaves its way to cut a connection.
RESET = "simulator.reset"


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How a simulator is started."""

    #: Where browsers find it.
    public_url: str
    #: None: events are only listed.
    webhook_url: str | None = None
    #: Each of them signs: two while one is being replaced.
    webhook_secrets: tuple[str, ...] = ()
    #: None: a restart forgets everything.
    state: Path | None = None
    #: Where the mailbox keeps e-mails; its pages are at /mailbox. None: no mailbox.
    mail_dir: Path | None = None


def refuse_production(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to run where money should move.

    Raises:
        SettingsError
    """
    if environ.get("HOLDFAST_ENV", "").strip().lower() == "production":
        raise SettingsError("HOLDFAST_ENV is production: the Stripe simulator is not for production")


def webhook_secrets(text: str, url: str | None) -> tuple[str, ...]:
    """Read the secrets that sign webhooks, comma-separated.

    Raises:
        SettingsError: one is missing or too short.
    """
    secrets = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    if (url and not secrets) or any(len(secret) < MIN_WEBHOOK_SECRET_LENGTH for secret in secrets):
        raise SettingsError(f"STRIPE_WEBHOOK_SECRET must have at least {MIN_WEBHOOK_SECRET_LENGTH} characters")
    return secrets


def create_simulator(setup: Setup, smtp: socket.socket | None = None) -> ASGIApp:
    """Build the application. It reads its state here; while its lifespan lasts it delivers webhooks, and takes e-mails
    at the socket `smtp` if it has one.

    Raises:
        SettingsError: this is production, or the state cannot be read.
    """
    refuse_production()
    try:
        books = Books(setup.state)
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsError(f"The state of the simulator cannot be read from {setup.state}: {error}") from None
    ledger = Ledger(books, setup.public_url)
    delivery = Delivery(books, setup.webhook_url, setup.webhook_secrets)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        expiring = asyncio.create_task(_expire_when_due(ledger))
        async with delivery, _taking_mail(setup.mail_dir, smtp):
            yield
        expiring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await expiring
        books.save()

    app = Litestar(
        route_handlers=[alive, *api.ROUTES, *control.ROUTES, *pages.ROUTES, *_mailbox_routes(setup.mail_dir)],
        lifespan=[lifespan],
        before_request=_by_our_name,
        exception_handlers={StripeError: _refused, HTTPException: _refused_by_litestar, Exception: _broken},
        openapi_config=None,
        request_max_body_size=MAX_BODY,
        state=State({"simulator": Simulator(books, ledger, Idempotency(books), delivery)}),
        logging_config=None,
        debug=False,
    )
    return _Honest(app, ledger)


async def _by_our_name(request: Asking) -> None:
    """Refuse whom a foreign name brought here: a page of its owner, in a browser of this machine, could read e-mails.

    Raises:
        StripeError
    """
    # Asynchronous, though it awaits nothing: any other hook costs every request a trip through a thread.
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # brackets that hold no address
        host = ""
    if not is_loopback(host) and host != urlsplit(simulator_of(request).ledger.public_url).hostname:
        raise StripeError(421, "This simulator does not go by that name.")


def _mailbox_routes(mail_dir: Path | None) -> Sequence[HTTPRouteHandler]:
    if mail_dir is None:
        return []
    from app.simulator import mailbox  # noqa: PLC0415 its SMTP library is not installed everywhere

    return mailbox.routes(mail_dir)


@asynccontextmanager
async def _taking_mail(mail_dir: Path | None, smtp: socket.socket | None) -> AsyncIterator[None]:
    if mail_dir is None or smtp is None:
        yield
        return
    from app.simulator import mailbox  # noqa: PLC0415

    server = await mailbox.start_smtp(mail_dir, port_or_socket=smtp)
    try:
        yield
    finally:
        await server.stop()


async def _expire_when_due(ledger: Ledger) -> None:
    while True:
        ledger.expire_due()
        ledger.books.save()
        due = ledger.next_expiry()
        seconds = LONGEST_SLEEP_SECONDS if due is None else due - ledger.books.now()
        ledger.books.moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max(seconds, 0.0), LONGEST_SLEEP_SECONDS)):
                await ledger.books.moved.wait()


class _Honest:
    """Around every request: what is due has happened, what changed is on disk before it is told, and the answer says
    that it is simulated; or the connection is cut."""

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        self._ledger.expire_due()

        async def tell(message: MutableMapping[str, Any]) -> None:
            self._ledger.books.save()
            if not scope.get(CUT):
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-simulator", objects.NO_MONEY.encode())]
                await send(message)  # type: ignore[arg-type]
            elif message["type"] == "http.response.start":
                reset: Callable[[], None] = scope["extensions"][RESET]  # type: ignore[index, assignment]
                reset()
                # Until the server knows that nobody is there: it would report a missing answer.
                while (await receive())["type"] != "http.disconnect":
                    pass

        await self._app(scope, receive, tell)  # type: ignore[arg-type]


# -- refusals ---------------------------------------------------------------------------------------------------------


def _refused(_: Asking, error: StripeError) -> Response[Any]:
    return Response(error.body, status_code=error.status)


def _refused_by_litestar(request: Asking, error: HTTPException) -> Response[Any]:
    if error.status_code >= 500:
        return _broken(request, error)
    if not request.url.path.startswith(("/v1/", "/_control/")):
        return pages.page("missing.html", status=error.status_code)
    if error.status_code in (404, 405):
        told = f"Unrecognized request URL ({request.method}: {request.url.path}), or one that is not simulated."
        return _refused(request, StripeError(404, told))
    return _refused(request, StripeError(error.status_code, f"{error.detail} {error.extra or ''}".strip()))


def _broken(request: Asking, error: Exception) -> Response[Any]:
    log.error("%s %s broke", request.method, request.url.path, exc_info=error)
    return Response(StripeError(500, "A bug of the simulator.", kind="api_error").body, status_code=500)


@get("/livez")
async def alive(request: Asking) -> Response[Any]:
    """Tell that it runs."""
    return Response({"status": "ok", "simulator": objects.NO_MONEY})


# -- the process ------------------------------------------------------------------------------------------------------


class _Resettable(HttpToolsProtocol):
    """uvicorn's protocol, with a way for the application to cut the connection instead of answering."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {RESET: self._reset}  # type: ignore[dict-item]

    def _reset(self) -> None:
        # Without lingering the kernel sends RST, not FIN: what a client sees of a connection that broke.
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, as seen from this machine only."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def serve(
    setup: Setup,
    listener: socket.socket,
    *,
    smtp: socket.socket | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve on a socket that listens already, until SIGINT or SIGTERM. At `smtp` it takes e-mails into its mailbox.

    Raises:
        SettingsError: it may not run here.
    """
    if not all(is_loopback(each.getsockname()[0]) for each in (listener, smtp) if each):
        raise SettingsError("The Stripe simulator listens on the loopback interface only")
    config = uvicorn.Config(
        create_simulator(setup, smtp),
        loop="asyncio",  # uvloop's sockets cannot be told to reset
        http=_Resettable,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # uvicorn stops cleanly and then raises the signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ready()
    uvicorn.Server(config).run(sockets=[listener])
