"""What becomes of money: take note of what Stripe says, end what nobody paid, give back what is owed.

    a webhook, a look, a deadline ─→ settle    the one way in which the state of a session becomes that of a booking

Why paid means booked or refunded once: the places are taken before anybody can pay (`checkout`), and are given back
only when Stripe says that the session can never be paid any more ("expire first"). What is paid all the same, late or
in error, finds its places again or becomes a refund that is owed, in the transaction that notes the payment; a refund
asks for all that is left, which Stripe gives once. A webhook is only a reason to look: everything can be repeated, in
any order.
"""

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from app import booking
from app.domain import Booking, Caller, Payment
from app.engine import Engine
from app.errors import AlreadyResolved
from app.gateway import AlreadyRefunded, Gateway, NoSuchSession, NotOpen, Refused, Session, Unclear, session_of
from app.payments import Change, Inbox
from app.telemetry import outcomes
from app.tokens import id_from_key, manage_token, token_hash

log = structlog.get_logger()

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
    await tell_mirror(engine, change)
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
            await tell_mirror(engine, change)
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
    await tell_mirror(engine, change)
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
        await tell_mirror(engine, await engine.payments.fail(payment.id, maybe=False, why=str(error)))
        await tell_mirror(engine, await engine.payments.end(payment.id, "failed"))
        return None
    except Unclear:
        # An error that Stripe has stored under the key is repeated to us until it forgets the key. Whatever it may have
        # made under it, nobody was ever told where to pay, and its own time is up by now.
        if payment.expires_at is None or payment.expires_at > datetime.now(UTC):
            raise
        await tell_mirror(engine, await engine.payments.end(payment.id, "expired"))
        return None
    await engine.payments.open(payment.id, session)
    return session.id


async def _forgotten(engine: Engine, payment: Payment) -> str:
    """End a payment whose session Stripe does not know: the key is of another account now. It cannot be paid here."""
    log.warning("session_unknown_to_stripe", payment_id=str(payment.id))
    change = await engine.payments.end(payment.id, "expired")
    await tell_mirror(engine, change)
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
    await tell_mirror(engine, change)
    return change.word


async def note_by_hand(engine: Engine, payment_id: UUID) -> bool:
    """Note for an operator that a payment was given back without Stripe: it could not, or nobody wants it to. False:
    there was nothing to give back, or Stripe may still do it.
    """
    change = await engine.payments.record_by_hand(payment_id)
    await tell_mirror(engine, change)
    return change.word not in ("already", "unknown")


async def tell_mirror(engine: Engine, change: Change) -> None:
    """Have the mirror follow what became of a booking."""
    if change.counts is not None:
        await engine.mirror.sync_quietly([change.counts])
