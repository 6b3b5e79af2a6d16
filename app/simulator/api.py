"""/v1: what of Stripe's API the official SDK needs for Checkout, refunds and events."""

from collections.abc import Callable
from typing import Any, TypeVar

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.simulator import forms, objects
from app.simulator.exchange import Asking, Execute, Simulator, answered
from app.simulator.forms import StripeError, missing
from app.simulator.objects import Json
from app.simulator.params import Created, EventPage, Nothing, Page, RefundPage, RefundParams, SessionPage, SessionParams
from app.simulator.state import Event, Refund, Session

One = TypeVar("One")


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
