"""What a customer is told, as plain values that can wait in a queue as JSON; and how telling it fails."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

#: `moved`: to another slot. `refunded`: a payment came too late to be booked, and goes back. `place_free`: places that
#: the customer has waited for are held for a while.
Kind = Literal["confirmed", "moved", "cancelled", "refunded", "place_free"]


class Money(msgspec.Struct, frozen=True):
    """`amount` is in the currency's minor units, as Stripe counts them."""

    amount: int
    #: ISO 4217
    currency: str


class Refund(msgspec.Struct, frozen=True):
    """What becomes of the money of a booking that ended. `waived`: the venue's policy gives nothing back."""

    status: Literal["due", "waived"]
    money: Money


class NoticeVenue(msgspec.Struct, frozen=True):
    slug: str
    name: str
    #: Of the tz database, such as Europe/Berlin: times are told as its people say them.
    timezone: str


class Recipient(msgspec.Struct, frozen=True):
    name: str
    email: str


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One e-mail about one booking. Names may hold anything that a person can type."""

    kind: Kind
    booking_id: UUID
    venue: NoticeVenue
    resource_name: str
    starts_at: datetime
    ends_at: datetime
    quantity: int
    customer: Recipient
    #: Of all places together; None: free
    price: Money | None = None
    #: None: nothing was paid, or nothing is to be said about it
    refund: Refund | None = None
    #: It holds the customer's right to the booking, or to take the place, and stands in no other part than the text.
    link: str | None = None
    #: Of `place_free`, until when the places are held.
    held_until: datetime | None = None
    #: That the customer booked in; one of those that e-mails are written in.
    language: str = "en"
    #: Grows with each change of the booking, so that calendars take the newest one.
    sequence: int = 0


class MailError(Exception):
    """An e-mail did not leave. The text names no person and no address, so that it may stand in a log.

    MailError
      MailRefused      it never will: the address is wrong, or a server has refused the message for good
      MailServerAway   not now: try again later
    """


class MailRefused(MailError):
    """Sending this message to this address will never work."""


class MailServerAway(MailError):
    """The server cannot be reached, is slow, does not let us in, or said: later."""
