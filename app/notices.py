"""Which e-mails follow from which events, and what they say: reads the booking, renders, sends. Repeating it sends a
copy with the same Message-ID.
"""

from typing import Any, Literal
from uuid import UUID

import structlog

from app import waiting
from app.domain import Payment
from app.engine import Engine
from app.mail.delivery import send as deliver
from app.mail.message import render
from app.mail.notice import Kind, MailRefused, Money, Notice, NoticeVenue, Recipient, Refund
from app.payments import Offer

log = structlog.get_logger()


def kind_of(event_type: str, data: dict[str, Any]) -> Kind | None:
    """Tell which e-mail an event calls for; None for most of them."""
    if event_type == "booking.confirmed":
        return "confirmed"
    if event_type == "booking.rescheduled":
        return "moved"
    if event_type == "booking.cancelled":
        return "cancelled"
    if event_type == "payment.late" and data.get("outcome") == "refunded":
        return "refunded"
    if event_type == "waiting.offered":
        return "place_free"
    return None


async def send(engine: Engine, kind: Kind, booking_id: str, version: int | None = None) -> str:
    """Send one e-mail about a booking to its customer; returns what became of it.

    `version`: of the booking that it is about; not sent when the booking has moved on since, of which another tells.

    Raises:
        MailServerAway, Unavailable: to be tried again.
    """
    smtp_url = engine.settings.smtp_url
    tell = _offer_notice if kind == "place_free" else _notice
    notice = await tell(engine, kind, UUID(booking_id))
    if notice is not None and version is not None and notice.sequence != version - 1:
        return "overtaken"
    if smtp_url is None or notice is None:
        return "nothing to send"
    try:
        await deliver(smtp_url, render(notice, engine.settings.mail_from))
    except MailRefused as error:
        log.warning("mail_refused", booking_id=booking_id, kind=kind, reason=str(error))
        return "refused"
    return "sent"


async def _notice(engine: Engine, kind: Kind, booking_id: UUID) -> Notice | None:
    stored = await engine.ledger.booking(booking_id)
    if stored is None or (customer := stored.booking.customer) is None:
        return None
    booking, payment = stored.booking, await engine.payments.of_booking(booking_id)
    if kind == "cancelled" and booking.confirmed_at is None:
        return None  # who was never told that it is booked need not hear that it is not
    offer = await engine.payments.offer(booking.slot_id)
    if offer is None:
        return None
    return Notice(
        kind=kind,
        booking_id=booking_id,
        venue=NoticeVenue(offer.venue, offer.venue_name, offer.timezone),
        resource_name=offer.what,
        starts_at=offer.starts_at,
        ends_at=offer.ends_at,
        quantity=booking.quantity,
        customer=Recipient(customer.name, customer.email),
        price=_price(payment, offer, booking.quantity),
        refund=_refund(payment),
        # Grows with each e-mail about it that changes a calendar.
        sequence=booking.version - 1 if kind in ("confirmed", "moved") else booking.version,
    )


async def _offer_notice(engine: Engine, kind: Kind, hold_id: UUID) -> Notice | None:
    """Tell who waited of the hold that was made for him, unless it has been taken or has ended meanwhile."""
    entry = await waiting.of_hold(engine.ledger, hold_id)
    if entry is None or entry.offer is None or (token := waiting.hold_token(engine, entry)) is None:
        return None
    offer = await engine.payments.offer(entry.offer.slot_id)
    if offer is None:
        return None
    return Notice(
        kind=kind,
        booking_id=hold_id,
        venue=NoticeVenue(offer.venue, offer.venue_name, offer.timezone),
        resource_name=offer.what,
        starts_at=offer.starts_at,
        ends_at=offer.ends_at,
        quantity=entry.quantity,
        customer=Recipient(entry.customer.name, entry.customer.email),
        price=_price(None, offer, entry.quantity),
        held_until=entry.offer.until,
        hold_token=token,
    )


def _price(payment: Payment | None, offer: Offer, quantity: int) -> Money | None:
    if payment is not None:
        return Money(payment.amount, payment.currency)
    if offer.price_amount and offer.price_currency:
        return Money(offer.price_amount * quantity, offer.price_currency)
    return None


def _refund(payment: Payment | None) -> Refund | None:
    if payment is None or payment.refund_status == "none":
        return None
    status: Literal["due", "waived"] = "waived" if payment.refund_status == "waived" else "due"
    return Refund(status, Money(payment.amount, payment.currency))
