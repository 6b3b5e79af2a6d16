"""/v1: what of Stripe's API the official SDK needs for Checkout, refunds and events."""

import base64
import binascii
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import HTTPRouteHandler
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath

from app.settings import SIMULATOR_KEY_PREFIX
from app.simulator import faults, forms, objects
from app.simulator.delivery import Delivery
from app.simulator.faults import Fault, Faults
from app.simulator.forms import StripeError, missing
from app.simulator.idempotency import Idempotency, fingerprint
from app.simulator.ledger import Ledger
from app.simulator.objects import Json
from app.simulator.params import Created, EventPage, Nothing, Page, RefundPage, RefundParams, SessionPage, SessionParams
from app.simulator.state import Books, Event, Refund, Session

Asking = Request[Any, Any, Any]
One = TypeVar("One")
#: Done after the parameters were found good: what of it fails is a result, and kept like one.
Execute = Callable[[], Any]

#: In the scope of a request whose connection is to be cut instead of answered; `server.py` does it.
CUT = "simulator.cut"


@dataclass
class Simulator:
    """What the routes work with: `app.state.simulator`."""

    books: Books
    ledger: Ledger
    idempotency: Idempotency
    delivery: Delivery
    faults: Faults = field(default_factory=Faults)


def simulator_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Simulator:
    """Find the simulator behind a request."""
    found: Simulator = connection.app.state.simulator
    return found


def with_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler | None = None) -> None:
    """Let only keys of simulators pass, as bearer token or as the user of Basic authentication.

    Raises:
        StripeError: the text never repeats the key, which may be a real one that came here by mistake.
    """
    scheme, _space, given = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    if not given:
        raise StripeError(401, "You did not provide an API key. You need to provide it in the Authorization header.")
    if not given.strip().startswith(SIMULATOR_KEY_PREFIX):
        only = f"this is a simulator, and takes only keys that begin with {SIMULATOR_KEY_PREFIX}"
        raise StripeError(401, f"Invalid API Key provided: {only}")


# -- one request ------------------------------------------------------------------------------------------------------


async def answered(
    request: Asking, operation: str, prepare: Callable[[Simulator, dict[str, Any]], Execute]
) -> Response[bytes]:
    """Answer a request. `prepare` checks its parameters and returns what then executes it."""
    simulator = simulator_of(request)
    key = request.headers.get("idempotency-key") or None if request.method == "POST" else None
    headers = {"Request-Id": f"req_{secrets.token_hex(7)}", "Stripe-Version": objects.API_VERSION}
    try:
        with_key(request)
        encoded = await _encoded(request)
        _count(simulator, operation, key)
        fault = simulator.faults.take(operation, executing=False)
        if fault and fault.fault == "reset_before":
            request.scope[CUT] = True  # type: ignore[literal-required]
            return Response(b"")
        if fault:
            faults.refuse(fault.fault)
        params = forms.decode(encoded)
        call = Call(operation, key, fingerprint(request.url.path, params), fault)
        answer = await _carry_out(simulator, call, lambda: prepare(simulator, params))
    except StripeError as error:
        return _response(error.status, msgspec.json.encode(error.body), headers)
    if key:
        headers["Idempotency-Key"] = key
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    if answer.status >= 500 and key:
        # It would only be replayed. The SDK listens to this.
        headers["Stripe-Should-Retry"] = "false"
    if fault and fault.fault == "reply_lost":
        request.scope[CUT] = True  # type: ignore[literal-required]
    return _response(answer.status, answer.body, headers)


@dataclass(frozen=True)
class Call:
    """A request that may be executed."""

    operation: str
    key: str | None
    asked: str
    fault: Fault | None

    @property
    def pause(self) -> float:
        """How long a fault has it wait."""
        return self.fault.seconds if self.fault else 0.0


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    replayed: bool = False


async def _carry_out(simulator: Simulator, call: Call, prepare: Callable[[], Execute]) -> Answer:
    """Execute a request, or find its first answer."""
    idempotency = simulator.idempotency
    saved = idempotency.first_answer(call.key, call.asked)
    if saved is not None:
        await simulator.faults.pause(call.pause)
        return Answer(saved.status, saved.body.encode(), replayed=True)
    execute = prepare()
    with idempotency.running(call.key, call.asked):
        if call.fault and call.fault.fault == "timeout":
            await simulator.faults.pause(call.pause)
        idempotency.count(call.key, call.operation, executed=True)
        # A request meets one fault at most.
        inner = None if call.fault else simulator.faults.take(call.operation, executing=True)
        status, body = _executed(simulator, inner, execute)
        idempotency.keep(call.key, call.asked, status, body)
    if call.fault and call.fault.fault == "late_reply":
        simulator.books.save()  # whoever asks meanwhile finds it done
        await simulator.faults.pause(call.pause)
    return Answer(status, body)


def _executed(simulator: Simulator, fault: Fault | None, execute: Execute) -> tuple[int, bytes]:
    try:
        if fault and fault.fault != "500_after":
            faults.refuse(fault.fault)
        simulator.ledger.expire_due()  # the time may have come during a pause
        done = execute()
        if fault:
            faults.refuse(fault.fault)
    except StripeError as error:
        return error.status, msgspec.json.encode(error.body)
    return 200, msgspec.json.encode(done)


async def _encoded(request: Asking) -> str:
    if request.method == "GET":
        return request.scope["query_string"].decode("latin-1")
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise StripeError(400, "Invalid request (the body is not UTF-8)") from None


def _count(simulator: Simulator, operation: str, key: str | None) -> None:
    counts = simulator.books.state.requests
    counts[operation] = counts.get(operation, 0) + 1
    simulator.idempotency.count(key, operation, executed=False)
    simulator.books.changed()


def _response(status: int, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    return Response(body, status_code=status, headers={**headers, "Content-Type": "application/json"})


# -- Checkout Sessions ------------------------------------------------------------------------------------------------


@post("/v1/checkout/sessions")
async def create_session(request: Asking) -> Response[bytes]:
    """Create a Checkout Session."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, SessionParams)
        ledger = simulator.ledger
        ledger.check(asked)
        return lambda: _shown_session(simulator, ledger.create_session(asked).id, asked.expand)

    return await answered(request, "sessions.create", prepare)


@get("/v1/checkout/sessions")
async def list_sessions(request: Asking) -> Response[bytes]:
    """List Checkout Sessions, newest first."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, SessionPage)

        def fits(session: Session) -> bool:
            return (
                asked.payment_intent in (None, session.payment_intent)
                and asked.status in (None, session.status)
                and _within(asked.created, session.created)
            )

        def shown(session: Session) -> Json:
            return objects.session(session, simulator.ledger.public_url)

        sessions = simulator.books.state.sessions
        return lambda: _page(simulator, sessions, fits, asked, shown, url="/v1/checkout/sessions")

    return await answered(request, "sessions.list", prepare)


@get("/v1/checkout/sessions/{session_id:str}")
async def retrieve_session(request: Asking, session_id: FromPath[str]) -> Response[bytes]:
    """Read a Checkout Session."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, Nothing)
        return lambda: _shown_session(simulator, session_id, asked.expand)

    return await answered(request, "sessions.retrieve", prepare)


@post("/v1/checkout/sessions/{session_id:str}/expire")
async def expire_session(request: Asking, session_id: FromPath[str]) -> Response[bytes]:
    """End an open Checkout Session."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, Nothing)
        return lambda: _shown_session(simulator, simulator.ledger.expire(session_id).id, asked.expand)

    return await answered(request, "sessions.expire", prepare)


def _shown_session(simulator: Simulator, session_id: str, expand: list[str]) -> Json:
    shown = objects.session(simulator.ledger.session(session_id), simulator.ledger.public_url)
    objects.expand(shown, expand, simulator.books.state)
    return shown


# -- money ------------------------------------------------------------------------------------------------------------


@get("/v1/payment_intents/{payment_intent:str}")
async def retrieve_payment_intent(request: Asking, payment_intent: FromPath[str]) -> Response[bytes]:
    """Read a payment intent."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, Nothing)

        def execute() -> Any:
            shown = objects.payment_intent(simulator.ledger.payment(payment_intent))
            return objects.expand(shown, asked.expand, simulator.books.state)

        return execute

    return await answered(request, "payment_intents.retrieve", prepare)


@post("/v1/refunds")
async def create_refund(request: Asking) -> Response[bytes]:
    """Refund a payment, or a part of it."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, RefundParams)
        if asked.payment_intent is None and asked.charge is None:
            told = "One of the following params should be provided for this request: payment_intent or charge."
            raise StripeError(400, told)
        state = simulator.books.state
        return lambda: objects.expand(objects.refund(simulator.ledger.refund(asked)), asked.expand, state)

    return await answered(request, "refunds.create", prepare)


@get("/v1/refunds")
async def list_refunds(request: Asking) -> Response[bytes]:
    """List refunds, newest first."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, RefundPage)

        def fits(refund: Refund) -> bool:
            return (
                asked.payment_intent in (None, refund.payment_intent)
                and asked.charge in (None, refund.charge)
                and _within(asked.created, refund.created)
            )

        refunds = simulator.books.state.refunds
        return lambda: _page(simulator, refunds, fits, asked, objects.refund, url="/v1/refunds")

    return await answered(request, "refunds.list", prepare)


@get("/v1/refunds/{refund_id:str}")
async def retrieve_refund(request: Asking, refund_id: FromPath[str]) -> Response[bytes]:
    """Read a refund."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, Nothing)
        refunds = simulator.books.state.refunds
        return lambda: objects.expand(
            objects.refund(_found(refunds, refund_id, "refund")), asked.expand, simulator.books.state
        )

    return await answered(request, "refunds.retrieve", prepare)


# -- events -----------------------------------------------------------------------------------------------------------


@get("/v1/events")
async def list_events(request: Asking) -> Response[bytes]:
    """List events, newest first; with `delivery_success=false` those that were not received so far."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        asked = forms.read(params, EventPage)
        types = set(asked.types) | ({asked.type} if asked.type else set())

        def fits(event: Event) -> bool:
            return (
                (not types or event.type in types)
                # Where nobody listens, all who do were told.
                and asked.delivery_success in (None, event.delivery in ("delivered", "none"))
                and _within(asked.created, event.created)
            )

        events = simulator.books.state.events
        return lambda: _page(simulator, events, fits, asked, objects.event, url="/v1/events")

    return await answered(request, "events.list", prepare)


@get("/v1/events/{event_id:str}")
async def retrieve_event(request: Asking, event_id: FromPath[str]) -> Response[bytes]:
    """Read an event."""

    def prepare(simulator: Simulator, params: dict[str, Any]) -> Execute:
        forms.read(params, Nothing)
        return lambda: objects.event(_found(simulator.books.state.events, event_id, "event"))

    return await answered(request, "events.retrieve", prepare)


# -- lists ------------------------------------------------------------------------------------------------------------


def _found(things: dict[str, One], identifier: str, kind: str) -> One:
    if identifier not in things:
        raise missing(kind, identifier, "id")
    return things[identifier]


def _within(created: Created | None, at: int) -> bool:
    if created is None:
        return True
    return (
        (created.gt is None or at > created.gt)
        and (created.gte is None or at >= created.gte)
        and (created.lt is None or at < created.lt)
        and (created.lte is None or at <= created.lte)
    )


def _page(
    simulator: Simulator,
    things: dict[str, One],
    fits: Callable[[One], bool],
    asked: Page,
    shown: Callable[[One], Json],
    *,
    url: str,
) -> Json:
    """Cut a page out of the things that fit. The books have the oldest first, Stripe's lists the newest."""
    newest_first = [(identifier, thing) for identifier, thing in things.items() if fits(thing)][::-1]
    ids = [identifier for identifier, _ in newest_first]
    for cursor in (asked.starting_after, asked.ending_before):
        if cursor is not None and cursor not in ids:
            raise missing("object in this list", cursor, "starting_after", 400)
    if asked.ending_before is not None:
        before = newest_first[: ids.index(asked.ending_before)]
        page, has_more = before[-asked.limit :], len(before) > asked.limit
    else:
        rest = newest_first[ids.index(asked.starting_after) + 1 :] if asked.starting_after else newest_first
        page, has_more = rest[: asked.limit], len(rest) > asked.limit
    listed = objects.listed([shown(thing) for _, thing in page], url, has_more=has_more)
    objects.expand(listed, asked.expand, simulator.books.state)
    return listed


ROUTES: list[HTTPRouteHandler] = [
    create_session,
    list_sessions,
    retrieve_session,
    expire_session,
    retrieve_payment_intent,
    create_refund,
    list_refunds,
    retrieve_refund,
    list_events,
    retrieve_event,
]
