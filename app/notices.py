"""Which e-mails follow from which events, and what they say: reads the booking, renders, sends. Repeating it sends a
copy with the same Message-ID.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import structlog

from app import booking, waiting, written
from app.domain import BookingStatus, Payment
from app.engine import Engine
from app.errors import BookingNotFound, Conflict
from app.mail.calendar import calendar_entry
from app.mail.delivery import send as deliver
from app.mail.message import author_of, render
from app.mail.notice import Kind, MailRefused, Money, Notice, NoticeVenue, Recipient, Refund
from app.payments import Offer

log = structlog.get_logger()

#: Which entry stands in a calendar for a booking: of other statuses none does.
_ENTRIES: Mapping[BookingStatus, Kind] = {"confirmed": "confirmed", "cancelled": "cancelled"}


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


async def calendar(engine: Engine, booking_id: UUID) -> bytes:
    """Write the calendar entry of a booking just as its newest e-mail has it: whoever has both, has one.

    Raises:
        BookingNotFound. Conflict: it was never confirmed.
    """
    stored = await engine.ledger.booking(booking_id)
    if stored is None:
        raise BookingNotFound
    kind = _ENTRIES.get(stored.booking.status)
    notice = await _notice(engine, kind, booking_id) if kind else None
    if notice is None:
        raise Conflict("A booking that was not confirmed stands in no calendar")
    return calendar_entry(notice, author_of(engine.settings.mail_from), datetime.now(UTC).replace(microsecond=0))


async def _notice(engine: Engine, kind: Kind, booking_id: UUID) -> Notice | None:
    stored = await engine.ledger.booking(booking_id)
    if stored is None or (customer := stored.booking.customer) is None:
        return None
    made, payment = stored.booking, await engine.payments.of_booking(booking_id)
    if kind == "cancelled" and made.confirmed_at is None:
        return None  # who was never told that it is booked need not hear that it is not
    offer = await engine.payments.offer(made.slot_id)
    if offer is None:
        return None
    return Notice(
        kind=kind,
        booking_id=booking_id,
        venue=NoticeVenue(offer.venue, offer.venue_name, offer.timezone),
        resource_name=offer.what,
        starts_at=offer.starts_at,
        ends_at=offer.ends_at,
        quantity=made.quantity,
        customer=Recipient(customer.name, customer.email),
        price=_price(payment, offer, made.quantity),
        refund=_refund(payment),
        # Behind the `#`, which no browser sends: so no log of a server or proxy ever holds it.
        link=f"{engine.settings.public_url}/manage/{booking_id}#{booking.token_of(engine, stored)}",
        language=written.language_of(made.metadata),
        # Grows with each e-mail about it that changes a calendar.
        sequence=made.version - 1 if kind in ("confirmed", "moved") else made.version,
    )


async def _offer_notice(engine: Engine, kind: Kind, hold_id: UUID) -> Notice | None:
    """Tell who waited of the hold that was made for him, unless it has been taken or has ended meanwhile."""
    entry = await waiting.of_hold(engine.ledger, hold_id)
    if entry is None or entry.offer is None or waiting.hold_token(engine, entry) is None:
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
        link=f"{engine.settings.public_url}/offer/{entry.id}#{waiting.token_of(engine, entry.id)}",
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
