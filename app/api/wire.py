"""What goes over the wire: request bodies, query strings and answers, field by field, and nothing that decides.

Here is what `public` asks and answers, and what others share with it. What only one module of handlers asks and answers
is in a module beside it: that of `webhooks` in `wire_webhooks`. They import this one, and not one another.

The names and bounds here are the contract (OpenAPI is made from them). Answers list their fields: a new column never
reaches a client by accident. Bodies and query strings forbid what they do not list: it is an error, not a wish granted
silently.
"""

import base64
import binascii
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from math import ceil
from typing import Annotated, Any, Literal, Protocol, TypeVar
from uuid import UUID
from zoneinfo import available_timezones

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app import domain
from app.api.strict import NOT_BLANK, instant, said, whole
from app.domain import BookingStatus, PaymentPolicy, PaymentStatus, RefundStatus, ResourceKind, Room, SlotStatus
from app.errors import InvalidRequest

Row = TypeVar("Row")

#: The database holds slots to the same.
MAX_SLOT_LENGTH = timedelta(days=31)
#: Days that one request may ask about: a month, with what a page shows of its neighbours.
MAX_DAYS = timedelta(days=62)
#: Slots that one request may hold or book together.
MAX_ITEMS = 20

Text200 = Annotated[str, Meta(min_length=1, max_length=200, pattern=NOT_BLANK)]
_SLUG = said(whole("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"), "Must be of a-z, 0-9 and, between them, hyphens")
Slug = Annotated[str, Meta(max_length=63, pattern=_SLUG)]
ORIGIN = "https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?"
Quantity = Annotated[int, Meta(ge=1, le=100_000)]
Instant = Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset")]

#: In answers: always UTC.
At = Annotated[datetime, Meta(tz=True)]
_CURSOR = said(whole("[A-Za-z0-9_-]{32}"), "Not a next_cursor of a page before")
Cursor = Annotated[str, Meta(pattern=_CURSOR, description="`next_cursor` of the page before")]
Limit = Annotated[int, Meta(ge=1, le=100)]
Seq = Annotated[int, Meta(ge=0, le=10**18 - 1)]

#: ASCII only: a letter that merely looks like another one makes another address. Spaces around it are forgiven.
_EMAIL_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_EMAIL_DOMAIN = r"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])"
_EMAIL = said(whole(rf" *{_EMAIL_LOCAL}@{_EMAIL_DOMAIN} *"), "Not an e-mail address")
Email = Annotated[str, Meta(min_length=5, max_length=254, pattern=_EMAIL)]


# -- requests ---------------------------------------------------------------------------------------------------------


class CustomerDetails(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Text200
    email: Email
    phone: Annotated[str, Meta(min_length=1, max_length=40)] | None = None

    def normalised(self) -> domain.Customer:
        local, _, host = self.email.strip().rpartition("@")
        return domain.Customer(self.name.strip(), f"{local}@{host.lower()}", self.phone)


Metadata = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=64)], Any], Meta(max_length=50)]


class HoldWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    slot_id: UUID
    quantity: Quantity = 1


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Places of one slot among several."""

    slot_id: UUID
    quantity: Quantity = 1


Items = Annotated[list[Item], Meta(min_length=1, max_length=MAX_ITEMS)]


class HoldsWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold places of several slots of one venue: all of them, or none."""

    items: Items


class BookingOfSlot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Book places of a slot at once."""

    slot_id: UUID
    quantity: Quantity = 1
    customer: CustomerDetails
    metadata: Metadata = {}


class BookingOfHold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Book the places of a hold."""

    hold_token: Annotated[str, Meta(min_length=1, max_length=256)]
    customer: CustomerDetails
    metadata: Metadata = {}


class BookingOfItems(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Book places of several slots of one venue: all of them, or none."""

    items: Items
    customer: CustomerDetails
    metadata: Metadata = {}


class Reschedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a booking shall go. With `version` only if it is still the one that was seen."""

    slot_id: UUID
    quantity: Quantity | None = None
    version: Annotated[int, Meta(ge=1, le=2_000_000_000)] | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Minor units, and the currency's code."""

    amount: Annotated[int, Meta(ge=0, le=1_000_000_000)]
    currency: Annotated[
        str, Meta(min_length=3, max_length=3, pattern=said(whole("[A-Z]{3}"), "Must be capital letters, such as EUR"))
    ]


def changes(wanted: msgspec.Struct) -> dict[str, Any]:
    """List the fields that a PATCH names."""
    return {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not UNSET}


# -- query strings ----------------------------------------------------------------------------------------------------


class SlotQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: Slug | None = None
    resource_id: UUID | None = None
    service_id: UUID | None = None
    starts_from: Instant | None = msgspec.field(default=None, name="from")
    starts_before: Instant | None = msgspec.field(default=None, name="to")
    quantity: Quantity | None = None
    limit: Limit = 50
    cursor: Cursor | None = None

    def __post_init__(self) -> None:
        check_range(self.starts_from, self.starts_before)


class DayQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`from` and `to`: the first and the last day, of the calendar of `timezone` (default the venue's)."""

    venue: Slug
    resource_id: UUID | None = None
    service_id: UUID | None = None
    first: date = msgspec.field(name="from")
    last: date = msgspec.field(name="to")
    quantity: Quantity = 1
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] | None = None

    def __post_init__(self) -> None:
        for name, day in (("from", self.first), ("to", self.last)):
            instant(datetime(day.year, day.month, day.day, tzinfo=UTC), name)
        if not timedelta() <= self.last - self.first < MAX_DAYS:
            raise ValueError("to must be the same day as from or a later one, by at most 61 days")
        require_zone(self.timezone or UNSET)


@cache
def _zones() -> frozenset[str]:
    """List the time zones by their own names. The old names without a place are left out: some of them, such as
    `localtime`, mean something else on each machine or are unknown to Postgres.
    """
    return frozenset(zone for zone in available_timezones() if "/" in zone) | {"UTC"}


def require_zone(zone: str | UnsetType) -> None:
    if zone is not UNSET and zone not in _zones():
        raise ValueError("timezone must be an IANA time zone, such as Europe/Berlin")


def check_range(*instants: datetime | None) -> None:
    for name, value in zip(("from", "to"), instants, strict=True):
        if value is not None:
            instant(value, name)


# -- pages of lists ---------------------------------------------------------------------------------------------------

_POSITION = struct.Struct(">q16s")  # microseconds since 1970, id
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cursor(at: datetime, row_id: UUID) -> str:
    """Name a place in a list, so that the next page begins behind it whatever was added or removed meanwhile."""
    micros = (at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_POSITION.pack(micros, row_id.bytes)).decode()


def position(given: str | None) -> tuple[datetime, UUID] | None:
    """Read a cursor.

    Raises:
        InvalidRequest: not one of ours.
    """
    if given is None:
        return None
    try:
        micros, row_id = _POSITION.unpack(base64.b64decode(given.encode("ascii"), altchars=b"-_", validate=True))
        return instant(_EPOCH + timedelta(microseconds=micros), "cursor"), UUID(bytes=row_id)
    except (ValueError, OverflowError, struct.error, binascii.Error):
        raise InvalidRequest("cursor", "Not a cursor of this list") from None


class Made(Protocol):
    """A row of a list in the order in which its rows were made."""

    @property
    def created_at(self) -> datetime: ...

    @property
    def id(self) -> UUID: ...


def behind(row: Made) -> str:
    """Name the place behind a row of such a list."""
    return cursor(row.created_at, row.id)


def page_of(found: Sequence[Row], limit: int, cursor_of: Callable[[Row], str]) -> tuple[Sequence[Row], str | None]:
    """Divide what a query for one row more than a page holds has found: what is shown, and the cursor of its last row
    when more follows.
    """
    shown = found[:limit]
    return shown, cursor_of(shown[-1]) if len(found) > limit else None


# -- answers ----------------------------------------------------------------------------------------------------------


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    venue: str
    name: str
    kind: ResourceKind


class Money(msgspec.Struct, frozen=True, kw_only=True):
    amount: int
    currency: str


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What is sold, and which resources offer it. For `buffer_minutes` after it they can begin nothing else."""

    id: UUID
    venue: str
    name: str
    duration_minutes: int
    buffer_minutes: int
    capacity: int
    price: Money | None
    active: bool
    resource_ids: list[UUID]


class Venue(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    slug: str
    name: str
    timezone: str
    payment: PaymentPolicy
    hold_ttl_seconds: int | None
    hold_max_seconds: int
    refund_hours: int
    waiting_offer_minutes: int
    return_origins: list[str] | None
    origins: list[str]
    holds_per_client: int | None
    resources: list[Resource]
    services: list[Service]


class Named(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    name: str


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """`available` also subtracts holds; `available_count` is the capacity less live bookings."""

    id: UUID
    venue: str
    resource: Named
    service: Named | None
    starts_at: At
    ends_at: At
    timezone: str
    capacity: int
    available: int
    held: int
    available_count: int
    status: SlotStatus
    price: Money | None


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """`ttl_seconds` counts from `server_time`. The token is told when the hold is made or extended, and never again."""

    id: UUID
    token: str | UnsetType = UNSET
    slot_id: UUID
    quantity: int
    status: Literal["active"] = "active"
    expires_at: At
    ttl_seconds: int
    server_time: At
    degraded: bool


class CustomerShown(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    email: str
    phone: str | None


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """What was or can be paid. `rebooked_as`: it came after the booking had expired, and got another one."""

    id: UUID
    status: PaymentStatus
    amount: Money
    session_id: str | None
    paid_at: At | None
    refund_status: RefundStatus
    refund_reason: str | None
    refunded: Money
    rebooked_as: UUID | None


class Booking(msgspec.Struct, frozen=True, kw_only=True):
    """The manage token is told when the booking is made, and never again. `payment` is there when one was asked for."""

    id: UUID
    slot_id: UUID
    quantity: int
    status: BookingStatus
    customer: CustomerShown | None
    metadata: dict[str, Any]
    manage_token: str | UnsetType = UNSET
    expires_at: At | None
    created_at: At
    confirmed_at: At | None
    cancelled_at: At | None
    available_count: int
    #: Grows each time the booking is rescheduled: give it with the next one.
    version: int
    payment: Payment | UnsetType = UNSET


class SlotPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Slot]
    next_cursor: str | None = None


class Days(msgspec.Struct, frozen=True, kw_only=True):
    data: list[date]
    next_cursor: None = None


class Holds(msgspec.Struct, frozen=True, kw_only=True):
    """What was held together, in the order asked; each is a hold of its own."""

    data: list[Hold]


class Bookings(msgspec.Struct, frozen=True, kw_only=True):
    """What was booked together, in the order asked; each is a booking of its own."""

    data: list[Booking]


class RefusedItem(msgspec.Struct, frozen=True, kw_only=True):
    slot_id: UUID
    reason: Literal["held", "booked", "closed", "past"]
    requested: int
    available: int


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `title` is constant per `type`; which of the last fields are there depends on `code`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None
    effect: Literal["none"] | UnsetType = UNSET
    errors: list[FieldError] | UnsetType = UNSET
    reason: Literal["held", "booked", "closed", "past"] | UnsetType = UNSET
    requested: int | UnsetType = UNSET
    available: int | UnsetType = UNSET
    may_free_at: At | UnsetType | None = UNSET
    expired_at: At | UnsetType = UNSET
    expires_at: At | UnsetType = UNSET
    booking_id: UUID | UnsetType = UNSET
    booking_status: BookingStatus | UnsetType = UNSET
    resolved_at: At | UnsetType | None = UNSET
    alternatives: list[Slot] | UnsetType = UNSET
    items: list[RefusedItem] | UnsetType = UNSET
    slot_id: UUID | UnsetType = UNSET


# -- values to answers ------------------------------------------------------------------------------------------------


def resource(known: domain.Resource) -> Resource:
    return Resource(id=known.id, venue=known.venue, name=known.name, kind=known.kind)


def venue(known: domain.Venue) -> Venue:
    return Venue(
        id=known.id,
        slug=known.slug,
        name=known.name,
        timezone=known.timezone,
        payment=known.payment,
        hold_ttl_seconds=known.hold_ttl_seconds,
        hold_max_seconds=known.hold_max_seconds,
        refund_hours=known.refund_hours,
        waiting_offer_minutes=known.waiting_offer_minutes,
        return_origins=known.return_origins,
        origins=known.origins,
        holds_per_client=known.holds_per_client,
        resources=[resource(each) for each in known.resources],
        services=[service(each) for each in known.services],
    )


def service(known: domain.Service) -> Service:
    return Service(
        id=known.id,
        venue=known.venue,
        name=known.name,
        duration_minutes=known.duration_minutes,
        buffer_minutes=known.buffer_minutes,
        capacity=known.capacity,
        price=_price(known.price_amount, known.price_currency),
        active=known.active,
        resource_ids=known.resource_ids,
    )


def _price(amount: int | None, currency: str | None) -> Money | None:
    return None if amount is None or currency is None else Money(amount=amount, currency=currency)


def _service_of(known: domain.Slot) -> Named | None:
    if known.service_id is None or known.service_name is None:
        return None
    return Named(id=known.service_id, name=known.service_name)


def slot(known: domain.Slot, room: Room | None = None) -> Slot:
    """Show a slot with its holds in Redis; without a room it has none there (it is new, or Redis cannot tell)."""
    held = room.held if room else 0
    blocked = "booked" if known.blocked else room.blocked if room else None
    available = 0 if blocked else max(0, known.available_count - held)
    return Slot(
        id=known.id,
        venue=known.venue,
        resource=Named(id=known.resource_id, name=known.resource_name),
        service=_service_of(known),
        starts_at=known.starts_at,
        ends_at=known.ends_at,
        timezone=known.timezone,
        capacity=known.capacity,
        available=available,
        held=held + known.held_rows,
        available_count=known.available_count,
        status=_status(known, available, may_free=blocked == "held" or (not blocked and held + known.held_rows > 0)),
        price=_price(known.price_amount, known.price_currency),
    )


def _status(known: domain.Slot, available: int, *, may_free: bool) -> SlotStatus:
    if not known.open:
        return "closed"
    now = datetime.now(UTC)
    if known.starts_at <= now:
        return "past"
    if known.closes_at is not None and known.closes_at <= now:
        return "closed"
    if available > 0:
        return "available"
    return "held" if may_free else "sold_out"


def hold(known: domain.Hold, token: str | UnsetType = UNSET) -> Hold:
    return Hold(
        id=known.id,
        token=token,
        slot_id=known.slot_id,
        quantity=known.quantity,
        expires_at=known.expires_at,
        ttl_seconds=max(0, ceil((known.expires_at - known.now).total_seconds())),
        server_time=known.now,
        degraded=known.degraded,
    )


def booking(
    known: domain.Booking, manage_token: str | UnsetType = UNSET, payment: domain.Payment | None = None
) -> Booking:
    customer = None
    if known.customer is not None:
        customer = CustomerShown(name=known.customer.name, email=known.customer.email, phone=known.customer.phone)
    return Booking(
        id=known.id,
        slot_id=known.slot_id,
        quantity=known.quantity,
        status=known.status,
        customer=customer,
        metadata=known.metadata,
        manage_token=manage_token,
        expires_at=known.expires_at,
        created_at=known.created_at,
        confirmed_at=known.confirmed_at,
        cancelled_at=known.cancelled_at,
        available_count=known.available_count,
        version=known.version,
        payment=UNSET if payment is None else shown_payment(payment),
    )


def shown_payment(known: domain.Payment) -> Payment:
    return Payment(
        id=known.id,
        status=known.status,
        amount=Money(amount=known.amount, currency=known.currency),
        session_id=known.session_id,
        paid_at=known.paid_at,
        refund_status=known.refund_status,
        refund_reason=known.refund_reason,
        refunded=Money(amount=known.refunded_amount, currency=known.currency),
        rebooked_as=known.rebooked_id,
    )
