"""The use case of checking out: places become a booking that waits for payment, and the customer is told where to pay.

    checkout ─→ booking.book      the places become a booking that waits for payment, with its payment row: one commit
             ─→ gateway.create    then, with no transaction open, the Stripe session: key and parameters from that row
             ─→ payments.open     and its URL, which the customer is sent to
             on failure: payments.fail, the mirror, then 502: the places are back in both stores before the answer

What becomes of the session afterwards is `settlement`'s. Nobody can pay for places that are not taken: they are,
before Stripe is asked. Everything can be repeated, and finds the same booking, the same row and the same session.
"""

import asyncio
import time
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import structlog

from app import booking, places, written
from app.booking import BookingRequest
from app.claims import claimed
from app.domain import Booking, Caller, Payment
from app.engine import Engine
from app.errors import AlreadyResolved, BookingNotFound, HoldNotFound, InvalidRequest, PaymentFailed, SlotNotFound
from app.gateway import ANSWER_SECONDS, Gateway, InProgress, NoSuchSession, Refused, Session, Unclear
from app.ledger import NewPayment
from app.payments import Offer
from app.settlement import tell_mirror
from app.telemetry import outcomes
from app.tokens import new_id, read_hold

log = structlog.get_logger()

#: A session lives at least 30 minutes, says Stripe, counted on its clock when it gets to it: two more for the way there
#: and for clocks that differ (libraries.md, finding 1). The booking lives as long.
SESSION_MINUTES = 32
#: Pages a customer may be sent to without TLS: those of a developer's own machine.
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Started(msgspec.Struct, frozen=True):
    """A booking that waits for payment, and where to pay. A free one is confirmed, and has neither URL nor deadline."""

    booking: Booking
    manage_token: str
    checkout_url: str | None
    session_id: str | None
    expires_at: datetime | None


class Order(msgspec.Struct, frozen=True):
    """What is bought, and the id that its booking will have."""

    offer: Offer
    quantity: int
    booking_id: UUID


class Way(msgspec.Struct, frozen=True):
    """Where the customer goes afterwards; None: a page of ours."""

    success_url: str | None
    cancel_url: str | None


async def checkout(engine: Engine, request: BookingRequest, way: Way, *, caller: Caller) -> Started:
    """Take places and open a Stripe session for them. When this returns, the booking is committed and can be paid.

    A repeated request with the same key gets the first answer again, and never a second session. A 409 left nothing
    behind, and neither did a 502: the same request may be sent again, also with the same key.

    Raises:
        PaymentFailed: Stripe refused, failed, or did not answer in time; the places are free again in both stores.
        And what `booking.book` raises.
    """
    order = await _order(engine, request)
    _require_allowed(order.offer, way)
    request = msgspec.structs.replace(
        request, booking_id=order.booking_id, asked=("checkout", way.success_url, way.cancel_url)
    )
    if not order.offer.price_amount:
        made, token = await booking.book(engine, request, caller=caller)
        return Started(made, token, None, None, None)
    if engine.gateway is None:
        raise PaymentFailed("No payment is set up here")
    facts = await engine.mirror.facts(order.offer.slot_id)
    unpaid = places.Claim(facts, order.booking_id, order.quantity, None)
    ttl_ms, keyed = SESSION_MINUTES * 60_000, request.key is not None
    async with claimed(engine, caller.client, [unpaid], ttl_ms, keyed=keyed):
        to_pay = _new_payment(engine, request, order, way)
        waiting = msgspec.structs.replace(request, payment=to_pay, ttl_ms=ttl_ms)
        return await _to_be_paid(engine, engine.gateway, waiting, caller)


async def _to_be_paid(engine: Engine, gateway: Gateway, waiting: BookingRequest, caller: Caller) -> Started:
    try:
        made, token = await booking.book(engine, waiting, caller=caller)
    except BookingNotFound as error:  # of a request with the same key, which gave it up at this moment
        raise PaymentFailed from error
    payment = await engine.payments.of_booking(made.id)
    if payment is None:
        raise AssertionError("a booking that waits for payment has one")
    if payment.status == "creating":
        payment = await _open_session(engine, gateway, payment)
    if payment.session_url is None and payment.status == "expired":  # its time was over before anybody could pay
        raise AlreadyResolved(made.id, "expired", None)
    if payment.session_url is None or payment.status == "abandoned":
        raise PaymentFailed
    outcomes("checkout", "replayed" if made.replayed else "created").inc()
    made = msgspec.structs.replace(made, expires_at=payment.expires_at)
    return Started(made, token, payment.session_url, payment.session_id, payment.expires_at)


async def _order(engine: Engine, request: BookingRequest) -> Order:
    """Tell what is bought, and under which id it will be booked: that of the hold, or of the key, or a new one."""
    slot_id, quantity, booking_id = request.slot_id, request.quantity, None
    if request.hold_token is not None:
        grant = read_hold(engine.settings.secrets, request.hold_token)
        if grant is None:
            raise HoldNotFound
        slot_id, quantity, booking_id = grant.slot_id, grant.quantity, grant.hold_id
    if slot_id is None:
        raise InvalidRequest("slot_id", "Give a slot_id or a hold_token")
    offer = await engine.payments.offer(slot_id)
    if offer is None:
        raise SlotNotFound
    return Order(offer, quantity, booking_id or booking.id_of(request, offer.venue_id))


def _require_allowed(offer: Offer, way: Way) -> None:
    """Let customers be sent to pages that the venue has named, or, where it named none, to any over TLS."""
    for field, url in (("success_url", way.success_url), ("cancel_url", way.cancel_url)):
        if url is None:
            continue
        try:
            parts = urlsplit(url)
        except ValueError:
            raise InvalidRequest(field, "Must be a URL") from None
        origin = f"{parts.scheme}://{parts.netloc}"
        if offer.return_origins is not None:
            if origin not in offer.return_origins:
                raise InvalidRequest(field, "Its origin is not among the venue's return_origins")
        elif not parts.hostname or (parts.scheme != "https" and parts.hostname not in _LOOPBACK):
            raise InvalidRequest(field, "Must begin with https:// and name a host")


def _new_payment(engine: Engine, request: BookingRequest, order: Order, way: Way) -> NewPayment:
    payment_id = new_id()
    params = _session_params(engine, request, order, way, payment_id)
    offer = order.offer
    amount = (offer.price_amount or 0) * order.quantity
    return NewPayment(payment_id, amount, offer.price_currency or "", msgspec.json.encode(params).decode())


def _session_params(
    engine: Engine, request: BookingRequest, order: Order, way: Way, payment_id: UUID
) -> dict[str, Any]:
    """Write down what Stripe is asked, word for word and for good: a repetition must not differ (T-21)."""
    offer = order.offer
    begins = offer.starts_at.astimezone(ZoneInfo(offer.timezone))
    ours = {
        "slots_reserved": "true",
        "payment_id": str(payment_id),
        "booking_id": str(order.booking_id),
        "slot_id": str(offer.slot_id),
        "quantity": str(order.quantity),
    }
    language = written.language_of(request.metadata)
    stays = f"&lang={language}" if request.metadata.get("language") == language else ""  # else the browser's
    ours_after = f"{engine.settings.public_url}/checkout/{{}}?venue={offer.venue}{stays}"
    return {
        "mode": "payment",
        # A card is paid or declined at once. Slower ways would keep places for days (T-25).
        "payment_method_types": ["card"],
        "client_reference_id": str(order.booking_id),
        "customer_email": request.customer.email,
        "metadata": ours,
        "payment_intent_data": {"metadata": ours},
        "line_items": [
            {
                "quantity": order.quantity,
                "price_data": {
                    "currency": (offer.price_currency or "").lower(),
                    "unit_amount": offer.price_amount,
                    "product_data": {
                        "name": f"{offer.what}, {written.short_moment(language, begins)}",
                        "description": offer.venue_name,
                    },
                },
            }
        ],
        "success_url": way.success_url or ours_after.format("thanks"),
        "cancel_url": way.cancel_url or ours_after.format("cancelled"),
        "expires_at": int(time.time()) + SESSION_MINUTES * 60,
    }


async def _open_session(engine: Engine, gateway: Gateway, payment: Payment) -> Payment:
    """Have Stripe make the session of a payment, or find the one it made, and give the places back if it does not.

    Requests with the same key come here side by side: what one of them brought about holds for all.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            session = await _make_session(engine, gateway, payment)
    except (Refused, NoSuchSession, Unclear, TimeoutError) as error:
        maybe, why = isinstance(error, Unclear | TimeoutError), str(error) or "no answer in time"
        change = await engine.payments.fail(payment.id, maybe=maybe, why=why)
        if change.word == "failed":
            await tell_mirror(engine, change)
            outcomes("checkout", "payment_failed").inc()
            log.warning("checkout_failed", payment_id=str(payment.id), reason=why, session_may_exist=maybe)
            raise PaymentFailed from error
    else:
        if session is not None:
            await engine.payments.open(payment.id, session)
    decided = await engine.payments.payment(payment.id)
    if decided is None:
        raise AssertionError("payments are never deleted")
    if decided.status == "closing":  # cancelled meanwhile
        raise PaymentFailed
    return decided


async def _make_session(engine: Engine, gateway: Gateway, payment: Payment) -> Session | None:
    """Ask Stripe for a session as long as it is busy with this very call. None: another request has decided it."""
    params = await engine.payments.params(payment.id)
    while True:
        try:
            return await gateway.create_session(params or {}, str(payment.id))
        except InProgress:
            found = await engine.payments.payment(payment.id)
            if found is None or found.status != "creating":
                return None
