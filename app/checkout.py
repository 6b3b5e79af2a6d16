"""The use cases of paying: check out, take note of what Stripe says, end what nobody paid, give money back.

    checkout ─→ booking.book      the places become a booking that waits for payment, with its payment row: one commit
             ─→ gateway.create    then, with no transaction open, the Stripe session: key and parameters from that row
             ─→ payments.open     and its URL, which the customer is sent to
             on failure: payments.fail, the mirror, then 502: the places are back in both stores before the answer

    a webhook, a look, a deadline ─→ settle    the one way in which the state of a session becomes that of a booking

Why paid means booked or refunded once: the places are taken before anybody can pay, and are given back only when Stripe
says that the session can never be paid any more ("expire first"). What is paid all the same, late or in error, finds
its places again or becomes a refund that is owed, in the transaction that notes the payment; a refund asks for all that
is left, which Stripe gives once. A webhook is only a reason to look: everything can be repeated, in any order.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import structlog

from app import booking, places
from app.booking import BookingRequest
from app.claims import claimed
from app.domain import Booking, Caller, Payment
from app.engine import Engine
from app.errors import (
    AlreadyResolved,
    BookingNotFound,
    HoldNotFound,
    InvalidRequest,
    PaymentFailed,
    Problem,
    SlotNotFound,
)
from app.gateway import (
    ANSWER_SECONDS,
    AlreadyRefunded,
    Gateway,
    InProgress,
    NoSuchSession,
    NotOpen,
    Refused,
    Session,
    Unclear,
    session_of,
)
from app.ledger import NewPayment
from app.payments import Change, Inbox, Offer
from app.telemetry import outcomes
from app.tokens import id_from_key, manage_token, new_id, read_hold, token_hash

log = structlog.get_logger()

#: A session lives at least 30 minutes, says Stripe, counted on its clock when it gets to it: two more for the way there
#: and for clocks that differ (libraries.md, finding 1). The booking lives as long.
SESSION_MINUTES = 32
#: What we answer 200 to and do something about; everything else is for somebody else.
EVENTS = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
        "checkout.session.expired",
        "charge.refunded",
        "charge.refund.updated",
        "refund.updated",
        "refund.failed",
        "charge.dispute.created",
    }
)
_OF_SESSION = ("id", "status", "payment_status", "amount_total", "currency", "payment_intent", "metadata")
#: Of a charge, or of a refund: whose it is. The rest is read from Stripe.
_OF_MONEY_BACK = ("id", "payment_intent")
_OF_DISPUTE = ("id", "payment_intent", "amount", "reason")
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


# -- checking out -----------------------------------------------------------------------------------------------------


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
    base = engine.settings.public_url
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
                        "name": f"{offer.what}, {begins:%a %d %b %Y, %H:%M}",
                        "description": offer.venue_name,
                    },
                },
            }
        ],
        "success_url": way.success_url or f"{base}/checkout/thanks",
        "cancel_url": way.cancel_url or f"{base}/checkout/cancelled",
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
            await _tell_mirror(engine, change)
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


async def _tell_mirror(engine: Engine, change: Change) -> None:
    if change.counts is not None:
        await engine.mirror.sync_quietly([change.counts])


# -- what Stripe says -------------------------------------------------------------------------------------------------


def needed(event_type: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of an event's object what acting on it needs; who paid, only where no booking of ours knows that."""
    if event_type == "charge.dispute.created":
        return {name: about.get(name) for name in _OF_DISPUTE}
    if "refund" in event_type:
        return {name: about.get(name) for name in _OF_MONEY_BACK}
    kept = {name: about.get(name) for name in _OF_SESSION}
    metadata = about.get("metadata")
    if not isinstance(metadata, Mapping) or metadata.get("slots_reserved") != "true":
        kept |= {name: about.get(name) for name in ("customer_details", "customer_email")}
    return kept


async def apply_event(engine: Engine, event_id: str) -> str:
    """Do what follows from a webhook that is in the inbox; returns the outcome. Done before: changes nothing.

    Raises:
        Unclear: Stripe could not be asked. Problem: Postgres could not. Both: to be tried again.
    """
    event = await engine.payments.event(event_id)
    if event is None or event.applied:
        return "done before"
    if event.type == "charge.dispute.created":
        outcome = await _disputed(engine, event.object)
    elif "refund" in event.type:
        outcome = await _refund_event(engine, str(event.object.get("payment_intent") or ""))
    else:
        outcome = await _settle_event(engine, event)
    await engine.payments.applied(event_id, outcome)
    outcomes("webhook", outcome).inc()
    log.info("webhook_applied", type=event.type, event_id=event_id, outcome=outcome)
    return outcome


async def _settle_event(engine: Engine, event: Inbox) -> str:
    """Being paid is final, so an event that says so is enough. Whatever else it says may be old: look again (T-26)."""
    session = session_of(event.object)
    if not session.is_paid and engine.gateway is not None:
        try:
            session = await engine.gateway.session(session.id)
        except (NoSuchSession, Refused):
            log.warning("session_unknown_to_stripe", event_id=event.event_id)
    return await settle(engine, session, failed=event.type == "checkout.session.async_payment_failed")


async def settle(engine: Engine, session: Session, *, failed: bool = False) -> str:
    """Bring a booking to where its session is; returns what became of it. Harmless when repeated.

    `failed`: a delayed payment did not come, and no other can.
    """
    payment = await _payment_of(engine, session)
    if payment is None:
        return await _settle_foreign(engine, session)
    if session.is_paid:
        new_booking = id_from_key("rebooked", payment.venue_id, str(payment.id))
        token = manage_token(engine.settings.secrets, new_booking)
        change = await engine.payments.apply(payment.id, session, new_booking, token_hash(token))
        if change.word == "confirmed":
            log.info("slots_reserved_decrement_skipped", payment_id=str(payment.id), session_id=session.id)
    elif session.status == "expired":
        change = await engine.payments.end(payment.id, "expired")
    elif failed and session.status == "complete":
        change = await engine.payments.end(payment.id, "failed")
    else:
        return "waiting"
    await _tell_mirror(engine, change)
    return change.word


async def _payment_of(engine: Engine, session: Session) -> Payment | None:
    """Find our row: by the id we gave Stripe (it may know the session before we do), else by the session."""
    if session.payment_id is not None:
        payment = await engine.payments.payment(session.payment_id)
        if payment is not None and payment.session_id in (None, session.id):
            return payment
    return await engine.payments.of_session(session.id)


async def _settle_foreign(engine: Engine, session: Session) -> str:
    """Take the places of an order that an older system took the money for (S0-8); tell of any other that was paid."""
    if not session.is_paid:
        return "not ours"
    slot_id, quantity = _legacy_order(session.metadata)
    if slot_id is not None:
        new_booking = id_from_key("legacy", slot_id, session.id)
        token = manage_token(engine.settings.secrets, new_booking)
        change = await engine.payments.book_legacy(session, slot_id, quantity, new_booking, token_hash(token))
        if change.word != "unknown":
            log.info("legacy_session", session_id=session.id, slot_id=str(slot_id), outcome=change.word)
            await _tell_mirror(engine, change)
            return f"legacy {change.word}"
    # Perhaps another shop's of the same account: its money is not ours to send back, but somebody must look.
    await engine.payments.log(
        "payment.orphaned", {"session_id": session.id, "amount": session.amount, "currency": session.currency}
    )
    log.warning("orphan_payment", session_id=session.id)
    return "orphaned"


def _legacy_order(metadata: Mapping[str, str]) -> tuple[UUID | None, int]:
    if metadata.get("slots_reserved") == "true":
        return None, 0
    try:
        slot_id, quantity = UUID(metadata.get("slot_id", "")), int(metadata.get("quantity", "1"))
    except ValueError:
        return None, 0
    return (slot_id, quantity) if 1 <= quantity <= 100_000 else (None, 0)


async def _refund_event(engine: Engine, intent: str) -> str:
    """Take note of what went back of a payment, whoever sent it, and of what did not arrive. It is read from Stripe:
    news of refunds overtake each other, too. Who has all of the money back has no booking any more.
    """
    gateway = engine.gateway
    if gateway is None or not intent:
        return "not ours"
    payment = await engine.payments.of_intent(intent)
    if payment is None:
        with contextlib.suppress(NoSuchSession, Refused):
            if (session := await gateway.session_of_intent(intent)) is not None:
                await settle(engine, session)  # it overtook the news that it was paid at all
        payment = await engine.payments.of_intent(intent)
    if payment is None:
        return "not ours"
    return await look_at_refunds(engine, payment.id)


async def _disputed(engine: Engine, dispute: Mapping[str, Any]) -> str:
    """Tell operators that a customer wants the money back through the bank. What becomes of the booking is theirs to
    decide, within the days that Stripe gives them to answer.
    """
    payment = await engine.payments.of_intent(str(dispute.get("payment_intent") or ""))
    if payment is None:
        return "not ours"
    await engine.payments.note_dispute(
        payment.id, str(dispute.get("id")), int(dispute.get("amount") or 0), str(dispute.get("reason") or "")
    )
    return "disputed"


async def look_at_refunds(engine: Engine, payment_id: UUID) -> str:
    """Ask Stripe what went back of a payment, and what of that did not arrive.

    Raises:
        As `look`.
    """
    payment, gateway = await engine.payments.payment(payment_id), engine.gateway
    if payment is None or payment.payment_intent is None or gateway is None:
        return "nothing to do"
    change = await engine.payments.record_refunds(payment.id, await gateway.refunds(payment.payment_intent))
    await _tell_mirror(engine, change)
    if change.word == "failed":
        log.warning("refund_failed", payment_id=str(payment.id))
    return change.word


# -- time runs out ----------------------------------------------------------------------------------------------------


async def look(engine: Engine, payment_id: UUID) -> str:
    """Ask Stripe how an open session stands: what a webhook would have told, had it come.

    Raises:
        Unclear: Stripe could not be asked. Problem: Postgres could not. Both: to be tried again.
    """
    payment, gateway = await engine.payments.payment(payment_id), engine.gateway
    if payment is None or gateway is None:
        return "nothing to do"
    session_id = await _session_id(engine, gateway, payment)
    if session_id is None:
        return "ended"
    try:
        return await settle(engine, await gateway.session(session_id))
    except NoSuchSession:
        return await _forgotten(engine, payment)


async def close(engine: Engine, payment_id: UUID) -> str:
    """End a payment whose time is up or whose booking was cancelled: first at Stripe, and only then here.

    In the other order somebody could still pay for places that were sold again. A session that cannot be expired was
    paid, or is about to be.

    Raises:
        As `look`.
    """
    payment, gateway = await engine.payments.payment(payment_id), engine.gateway
    if payment is None or gateway is None or payment.status not in ("creating", "open", "closing", "abandoned"):
        return "nothing to do"
    session_id = await _session_id(engine, gateway, payment)
    if session_id is None:
        return "ended"
    try:
        session = await gateway.expire(session_id)
    except NotOpen:
        session = await gateway.session(session_id)
    except NoSuchSession:
        return await _forgotten(engine, payment)
    return await settle(engine, session)


async def _session_id(engine: Engine, gateway: Gateway, payment: Payment) -> str | None:
    """Tell the session of a payment, also when the answer that named it was lost: the same call finds it again.

    None: Stripe says that there is none and never will be; the payment is ended.
    """
    if payment.session_id is not None:
        return payment.session_id
    params = await engine.payments.params(payment.id)
    try:
        session = await gateway.create_session(params or {}, str(payment.id))
    except (Refused, NoSuchSession) as error:
        # Left half made by a process that died, nobody was told of it, and its key is free again: nothing is kept.
        await _tell_mirror(engine, await engine.payments.fail(payment.id, maybe=False, why=str(error)))
        await _tell_mirror(engine, await engine.payments.end(payment.id, "failed"))
        return None
    except Unclear:
        # An error that Stripe has stored under the key is repeated to us until it forgets the key. Whatever it may have
        # made under it, nobody was ever told where to pay, and its own time is up by now.
        if payment.expires_at is None or payment.expires_at > datetime.now(UTC):
            raise
        await _tell_mirror(engine, await engine.payments.end(payment.id, "expired"))
        return None
    await engine.payments.open(payment.id, session)
    return session.id


async def _forgotten(engine: Engine, payment: Payment) -> str:
    """End a payment whose session Stripe does not know: the key is of another account now. It cannot be paid here."""
    log.warning("session_unknown_to_stripe", payment_id=str(payment.id))
    change = await engine.payments.end(payment.id, "expired")
    await _tell_mirror(engine, change)
    return change.word


# -- money back -------------------------------------------------------------------------------------------------------


async def cancel(engine: Engine, booking_id: UUID, proof: str | None, *, caller: Caller) -> Booking:
    """Cancel a booking, and what was or could be paid for it: `booking.cancel` with Stripe told first.

    A session that can still be paid is expired. What was paid goes back by the venue's policy, all of it when the
    venue itself cancels; the refund is owed when this returns, and made by the worker.

    Raises:
        What `booking.cancel` raises.
    """
    found = await booking.read_booking(engine, booking_id, proof)
    expired = False
    if found.status == "pending_payment" and engine.gateway is not None:
        expired = await _expire_session(engine, engine.gateway, booking_id)
    try:
        return await booking.cancel(engine, booking_id, proof, caller=caller)
    except AlreadyResolved:
        if not expired:
            raise
        return await booking.read_booking(engine, booking_id, proof)  # Stripe's news of what we did came before us


async def _expire_session(engine: Engine, gateway: Gateway, booking_id: UUID) -> bool:
    """Stop a session from being paid, as far as Stripe can be reached; True: that was done. If it cannot, the worker
    goes on trying, and a payment that comes all the same goes back: its booking is cancelled.
    """
    payment = await engine.payments.of_booking(booking_id)
    if payment is None or payment.session_id is None:
        return False
    try:
        await gateway.expire(payment.session_id)
        return True
    except NotOpen:
        try:
            await settle(engine, await gateway.session(payment.session_id))
        except (Unclear, Refused, NoSuchSession):
            log.warning("session_not_read", payment_id=str(payment.id))
    except (Unclear, Refused, NoSuchSession) as error:
        log.warning("session_not_expired", payment_id=str(payment.id), reason=str(error))
    return False


async def refund(engine: Engine, payment_id: UUID) -> str:
    """Give back a payment that is owed: at Stripe once, whatever fails and however often this runs.

    Raises:
        Unclear: to be tried again. Refused: Stripe will not; a person must look.
    """
    payment, gateway = await engine.payments.payment(payment_id), engine.gateway
    if payment is None or gateway is None or payment.refund_status != "due":
        return "nothing to do"
    if payment.payment_intent is None:
        raise Refused("nothing was charged")
    try:
        # Another key each time it is handed out: Stripe would only repeat an error that it has stored.
        key = f"refund:{payment_id}:{payment.asked_at.isoformat()}"
        found = [await gateway.refund(payment.payment_intent, key)]
    except AlreadyRefunded:
        found = await gateway.refunds(payment.payment_intent)
    change = await engine.payments.record_refunds(payment_id, found)
    await _tell_mirror(engine, change)
    return change.word


async def note_by_hand(engine: Engine, payment_id: UUID) -> bool:
    """Note for an operator that a payment was given back without Stripe: it could not, or nobody wants it to. False:
    there was nothing to give back, or Stripe may still do it.
    """
    change = await engine.payments.record_by_hand(payment_id)
    await _tell_mirror(engine, change)
    return change.word not in ("already", "unknown")


def is_retryable(error: Exception) -> bool:
    """Tell whether the same call may succeed a while later."""
    return isinstance(error, Unclear) or (isinstance(error, Problem) and error.status == 503)
