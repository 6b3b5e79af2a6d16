"""What goes over the wire about paying, in addition to `wire`: checkouts, and payments beside others.

What a booking tells of its own payment is the booking's: it stands in `wire`. What Stripe sends is read by `payments`.
"""

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from app import domain
from app.api import wire
from app.api.strict import said, whole
from app.domain import PaymentStatus, RefundStatus

Url = Annotated[
    str,
    Meta(
        max_length=2_000,
        pattern=said(whole(rf"{wire.ORIGIN}([/?#][!-~]*)?"), "Not an address, such as https://salon.example/thanks"),
        description="https, of one of the venue's `return_origins` if it has named any",
    ),
]


class CheckoutOfSlot(wire.BookingOfSlot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take places of a slot and pay for them."""

    success_url: Url | None = None
    cancel_url: Url | None = None


class CheckoutOfHold(wire.BookingOfHold, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pay for the places of a hold."""

    success_url: Url | None = None
    cancel_url: Url | None = None


class PaymentQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    status: PaymentStatus | None = None
    refund_status: RefundStatus | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


class ListedPayment(wire.Payment, frozen=True, kw_only=True):
    """A payment beside others, with what it is for."""

    booking_id: UUID | None
    slot_id: UUID
    quantity: int
    created_at: wire.At


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """Where to pay, and until when. A booking that costs nothing is confirmed, and the rest is null."""

    booking: wire.Booking
    checkout_url: str | None
    session_id: str | None
    expires_at: wire.At | None


class PaymentPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ListedPayment]
    next_cursor: str | None = None


def payment(known: domain.Payment) -> ListedPayment:
    return ListedPayment(
        **msgspec.structs.asdict(wire.shown_payment(known)),
        booking_id=known.booking_id,
        slot_id=known.slot_id,
        quantity=known.quantity,
        created_at=known.created_at,
    )
