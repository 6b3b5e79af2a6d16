"""The words of the business as plain values: no stores, no HTTP, no clock."""

from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

BookingStatus = Literal["held", "pending_payment", "confirmed", "cancelled", "expired"]
ResourceKind = Literal["person", "place", "event"]
DeviationKind = Literal["off", "extra"]
PaymentPolicy = Literal["on_site", "required"]
SlotStatus = Literal["available", "held", "sold_out", "closed", "past"]

#: The statuses that take places. The same words stand in the partial index, the trigger and every query.
LIVE: tuple[BookingStatus, ...] = ("held", "pending_payment", "confirmed")

#: Why a slot has no room for a party: the first two may change, `held` within a hold's life.
UnavailableReason = Literal["held", "booked", "closed", "past"]


class SlotFacts(msgspec.Struct, frozen=True):
    """What never changes about a slot, so that a process may remember it; its venue's hold policy changes rarely."""

    id: UUID
    venue_id: UUID
    resource_id: UUID
    starts_at: datetime
    ends_at: datetime
    #: null: the service's default
    hold_ttl_seconds: int | None
    #: An extended hold ends at most this long after it was taken.
    hold_max_seconds: int
    #: When its person or place is free for another slot; None: an event, whose slots do not exclude each other.
    occupied_until: datetime | None = None
    #: From then on it is too late for customers; None: until it starts.
    closes_at: datetime | None = None
    #: So many places of its venue one client may hold at once; None: the service's default, 0: any number.
    holds_per_client: int | None = None

    def excludes(self, other: "SlotFacts") -> bool:
        """Tell whether one person or place could not do both."""
        if self.resource_id != other.resource_id or self.occupied_until is None or other.occupied_until is None:
            return False
        return self.starts_at < other.occupied_until and other.starts_at < self.occupied_until


class Counts(msgspec.Struct, frozen=True):
    """A slot's counts as Postgres committed them; the higher `version` is the newer truth."""

    slot_id: UUID
    resource_id: UUID
    capacity: int
    available_count: int
    version: int
    open: bool
    starts_at: datetime
    ends_at: datetime
    #: As in `SlotFacts`; not every function of the database tells it.
    occupied_until: datetime | UnsetType | None = UNSET

    @property
    def booked(self) -> int:
        return self.capacity - self.available_count


class Room(msgspec.Struct, frozen=True):
    """A slot's counts with its holds: what can be taken right now."""

    capacity: int
    booked: int
    held: int
    open: bool
    #: Why its person or place has no time for it: another slot of theirs is held or booked meanwhile.
    blocked: Literal["held", "booked"] | None = None

    @property
    def available(self) -> int:
        return 0 if self.blocked else max(0, self.capacity - self.booked - self.held)


class Slot(msgspec.Struct, frozen=True):
    """A slot as Postgres knows it, with the names people read. `version` orders its changes."""

    id: UUID
    venue_id: UUID
    venue: str
    timezone: str
    resource_id: UUID
    resource_name: str
    #: null, both: the resource itself is sold
    service_id: UUID | None
    service_name: str | None
    starts_at: datetime
    ends_at: datetime
    #: From then on it is too late for customers; null: not before it starts.
    closes_at: datetime | None
    capacity: int
    available_count: int
    open: bool
    #: The resource does one thing at a time, and another of its slots is occupied meanwhile.
    blocked: bool
    #: Places of `held` rows: holds taken while Redis was away.
    held_rows: int
    version: int
    price_amount: int | None
    price_currency: str | None
    #: As in `SlotFacts`.
    occupied_until: datetime | None = None

    @property
    def what(self) -> str:
        """What people call it: a haircut with Anna, or the city walk."""
        return f"{self.service_name} · {self.resource_name}" if self.service_name else self.resource_name


class Alternatives(list[tuple[Slot, Room]]):
    """Slots with room for a party instead of the one that it was refused.

    One list for all who were refused at the same moment; so is `rendered`, what the edge makes of it the first time.
    """

    rendered: bytes | None = None


class Hold(msgspec.Struct, frozen=True):
    """A temporary claim. `now` is the clock of the store that keeps it: countdowns start there."""

    id: UUID
    slot_id: UUID
    quantity: int
    since: datetime
    expires_at: datetime
    now: datetime
    #: Kept by Postgres, because Redis was away when it was taken.
    degraded: bool
    #: An earlier request with the same Idempotency-Key took it.
    replayed: bool = False


class Caller(msgspec.Struct, frozen=True):
    """Who asks: customer, operator or system; goes into the audit log with the request's id."""

    actor: str
    request_id: str | None
    #: Stands for a customer's address. None: whose holds are not counted.
    client: str | None = None


class Customer(msgspec.Struct, frozen=True):
    name: str
    email: str
    phone: str | None = None


class Booking(msgspec.Struct, frozen=True, kw_only=True):
    """A durable row. `available_count` is its slot's, after the change that this value tells of."""

    id: UUID
    venue_id: UUID
    slot_id: UUID
    quantity: int
    status: BookingStatus
    customer: Customer | None
    metadata: dict[str, Any]
    expires_at: datetime | None
    created_at: datetime
    confirmed_at: datetime | None
    cancelled_at: datetime | None
    available_count: int
    #: Grows each time it is rescheduled, so that whoever acts on an old view can be told.
    version: int = 1
    replayed: bool = False


#: Where `holdfast race` makes its slots. Nobody's business: who asks for "the" venue does not mean this one.
RACE_VENUE = "holdfast-race"

PaymentStatus = Literal["creating", "open", "closing", "abandoned", "failed", "expired", "paid", "mismatched"]
RefundStatus = Literal["none", "due", "waived", "done", "failed"]


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to be paid for a booking; see the table in migration 0003 for what each status means."""

    id: UUID
    venue_id: UUID
    slot_id: UUID
    #: null when there is no booking (any more) that it could be for
    booking_id: UUID | None
    #: the booking that took the place of `booking_id`, which had expired when it was paid
    rebooked_id: UUID | None
    quantity: int
    #: minor units, of all places together
    amount: int
    currency: str
    status: PaymentStatus
    #: what the customer was told; null for a session of an older system
    expires_at: datetime | None
    session_id: str | None
    session_url: str | None
    payment_intent: str | None
    refund_status: RefundStatus
    refund_reason: str | None
    refunded_amount: int
    created_at: datetime
    #: when Stripe was last asked, or about to be
    asked_at: datetime
    paid_at: datetime | None
    refunded_at: datetime | None


# -- what operators keep and read: see `app/catalogue.py` and `app/records.py` ---------------------------------------


class Resource(msgspec.Struct, frozen=True):
    id: UUID
    venue: str
    name: str
    kind: ResourceKind
    created_at: datetime


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What is sold, and which resources offer it."""

    id: UUID
    venue: str
    name: str
    duration_minutes: int
    #: So long after it nothing else can begin for the same person or place.
    buffer_minutes: int
    capacity: int
    price_amount: int | None
    price_currency: str | None
    active: bool
    created_at: datetime
    resource_ids: list[UUID]


class Hours(msgspec.Struct, frozen=True):
    """Hours of a weekday (1 is Monday), in minutes since midnight on the venue's wall."""

    weekday: int
    opens: int
    closes: int


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """Days that differ from the week: `off` takes hours away (null: whole days), `extra` then adds some."""

    kind: DeviationKind
    from_date: date
    to_date: date
    opens: int | None
    closes: int | None


class ScheduleException(Deviation, frozen=True, kw_only=True):
    id: UUID
    note: str | None


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When a resource can be booked for some services; `app/hours.py` has the rules."""

    id: UUID
    resource_id: UUID
    service_ids: list[UUID]
    hours: list[Hours]
    exceptions: list[ScheduleException]
    step_minutes: int
    from_date: date
    #: null: for ever
    to_date: date | None
    notice_minutes: int
    horizon_days: int
    created_at: datetime


class Venue(msgspec.Struct, frozen=True):
    id: UUID
    slug: str
    name: str
    timezone: str
    payment: PaymentPolicy
    #: null: the service's default
    hold_ttl_seconds: int | None
    hold_max_seconds: int
    #: A customer who cancels later than this before the start gets no money back.
    refund_hours: int
    #: So long a place that became free is kept for who has waited for it.
    waiting_offer_minutes: int
    #: Where a customer may be sent after paying; null: any https page.
    return_origins: list[str] | None
    #: Whose pages may use it from a browser and show its pages in a frame; `*`: anybody's. Ours always may.
    origins: list[str]
    #: So many places of it one client may hold at once; null: the service's default, 0: any number.
    holds_per_client: int | None
    created_at: datetime
    resources: list[Resource]
    #: those that are offered
    services: list[Service]


class Event(msgspec.Struct, frozen=True):
    """One line of the audit log. `seq` is its name; only (transaction, seq) is the order in which it became visible."""

    seq: int
    at: datetime
    type: str
    actor: str
    slot_id: UUID | None
    booking_id: UUID | None
    data: dict[str, Any]
