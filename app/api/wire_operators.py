"""What goes over the wire for operators only, in addition to `wire`: what they make and change, and the lists of what
became of it. How a venue, a slot, a hold or a booking is shown is the same for all, and stands in `wire`.
"""

from datetime import UTC
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app import domain
from app.api import wire
from app.api.strict import instant, said, whole
from app.catalogue import NewResource, NewSlot, NewVenue
from app.domain import BookingStatus, PaymentPolicy, ResourceKind
from app.settings import MOST_HOLDS

MAX_SLOTS_AT_ONCE = 1_000
MAX_PORT = 65_535

Seconds = Annotated[int, Meta(ge=1, le=86_400)]
RefundHours = Annotated[
    int, Meta(ge=0, le=8_760, description="a customer who cancels later than this before the start gets nothing back")
]
OfferMinutes = Annotated[
    int, Meta(ge=1, le=1_440, description="so long a place that became free is kept for whoever waited for it")
]
_LIKE_ORIGIN = "Not an origin, such as https://salon.example"
_HOST_NAME = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
Origin = Annotated[str, Meta(max_length=300, pattern=said(whole(wire.ORIGIN), _LIKE_ORIGIN))]
Origins = Annotated[
    list[Origin], Meta(max_length=20, description="where a customer may be sent after paying; null: any https page")
]
#: What browsers send as Origin: in lower case, without a port that the scheme implies.
_EMBEDDER = said(whole(rf"(\*|https?://{_HOST_NAME}(:[1-9][0-9]{{0,4}})?)"), _LIKE_ORIGIN)
Embedder = Annotated[str, Meta(max_length=300, pattern=_EMBEDDER)]
Embedders = Annotated[
    list[Embedder],
    Meta(
        max_length=20,
        description="whose pages may use the venue from a browser and show its pages in a frame; `*`: anybody's",
    ),
]
HoldsPerClient = Annotated[
    int, Meta(ge=0, le=MOST_HOLDS, description="places that one client may hold at once; 0: any number")
]
OpenOrClosed = Literal["open", "closed"]


# -- requests ---------------------------------------------------------------------------------------------------------


def _require_as_sent(origins: list[str] | UnsetType) -> None:
    """Let only origins pass that a browser would send: another way of writing one would silently match nothing."""
    for origin in () if origins is UNSET else origins:
        scheme, _, place = origin.partition("://")
        port = place.partition(":")[2]
        if port and (int(port) > MAX_PORT or port == {"http": "80", "https": "443"}[scheme]):
            raise ValueError("origins must have a port below 65536, and none where the scheme says it")


class VenueWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    slug: wire.Slug
    name: wire.Text200
    timezone: Annotated[str, Meta(min_length=1, max_length=64)]
    payment: PaymentPolicy = "on_site"
    #: null: the service's default
    hold_ttl_seconds: Seconds | None = None
    hold_max_seconds: Seconds = 1800
    #: A customer who cancels later than this before the start gets no money back.
    refund_hours: RefundHours = 0
    waiting_offer_minutes: OfferMinutes = 15
    return_origins: Origins | None = None
    origins: Embedders = []
    #: null: the service's default
    holds_per_client: HoldsPerClient | None = None

    def __post_init__(self) -> None:
        wire.require_zone(self.timezone)
        _require_as_sent(self.origins)

    def to_new(self) -> NewVenue:
        return NewVenue(**msgspec.structs.asdict(self))


class VenueChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: wire.Text200 | UnsetType = UNSET
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    payment: PaymentPolicy | UnsetType = UNSET
    hold_ttl_seconds: Seconds | UnsetType | None = UNSET
    hold_max_seconds: Seconds | UnsetType = UNSET
    refund_hours: RefundHours | UnsetType = UNSET
    waiting_offer_minutes: OfferMinutes | UnsetType = UNSET
    return_origins: Origins | UnsetType | None = UNSET
    origins: Embedders | UnsetType = UNSET
    holds_per_client: HoldsPerClient | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        wire.require_zone(self.timezone)
        _require_as_sent(self.origins)


class ResourceWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug
    name: wire.Text200
    kind: ResourceKind

    def to_new(self) -> NewResource:
        return NewResource(**msgspec.structs.asdict(self))


class SlotWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug
    resource_id: UUID
    service_id: UUID | None = None
    starts_at: wire.Instant
    ends_at: wire.Instant
    capacity: wire.Quantity
    price: wire.Price | None = None

    def __post_init__(self) -> None:
        starts_at, ends_at = instant(self.starts_at, "starts_at"), instant(self.ends_at, "ends_at")
        if not starts_at < ends_at <= starts_at + wire.MAX_SLOT_LENGTH:
            raise ValueError("ends_at must be after starts_at, by at most 31 days")

    def to_new(self) -> NewSlot:
        return NewSlot(
            venue=self.venue,
            resource_id=self.resource_id,
            service_id=self.service_id,
            starts_at=self.starts_at.astimezone(UTC),
            ends_at=self.ends_at.astimezone(UTC),
            capacity=self.capacity,
            price_amount=self.price.amount if self.price else None,
            price_currency=self.price.currency if self.price else None,
        )


class SlotsWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many slots, all or none."""

    slots: Annotated[list[SlotWanted], Meta(min_length=1, max_length=MAX_SLOTS_AT_ONCE)]


class SlotChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    capacity: wire.Quantity | UnsetType = UNSET
    status: OpenOrClosed | UnsetType = UNSET


# -- query strings ----------------------------------------------------------------------------------------------------


class BookingQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`from` and `to` are about when the slot begins."""

    venue: wire.Slug | None = None
    slot_id: UUID | None = None
    status: BookingStatus | None = None
    starts_from: wire.Instant | None = msgspec.field(default=None, name="from")
    starts_before: wire.Instant | None = msgspec.field(default=None, name="to")
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None

    def __post_init__(self) -> None:
        wire.check_range(self.starts_from, self.starts_before)


class VenueQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limit: wire.Limit = 50
    cursor: wire.Slug | None = None


class HoldQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug | None = None
    slot_id: UUID | None = None


_EVENT_TYPE = said(whole(r"[a-z_]{1,40}\.[a-z_]{1,40}"), "Not a type, such as booking.confirmed")
EventType = Annotated[str, Meta(max_length=81, pattern=_EVENT_TYPE)]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With `after` (0: from the beginning) the log is followed in the order of the commits, and nothing is skipped.
    `last` begins with the last so many: go on with the `seq` of the last one as `after`.
    """

    type: EventType | None = None
    slot_id: UUID | None = None
    booking_id: UUID | None = None
    after: wire.Seq | None = None
    last: Annotated[int, Meta(ge=1, le=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: wire.Seq | None = None


# -- answers ----------------------------------------------------------------------------------------------------------


class HeldSlot(msgspec.Struct, frozen=True, kw_only=True):
    """What is held, as people call it."""

    venue: str
    what: str
    starts_at: wire.At
    timezone: str


class LiveHold(wire.Hold, frozen=True, kw_only=True):
    """A hold as operators see it. `created_at` is of the clock of `server_time`; `slot` null: it was deleted since."""

    created_at: wire.At
    slot: HeldSlot | None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    at: wire.At
    type: str
    actor: str
    booking_id: UUID | None
    slot_id: UUID | None
    data: dict[str, Any]


class VenuePage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[wire.Venue]
    next_cursor: str | None = None


class SlotsCreated(msgspec.Struct, frozen=True, kw_only=True):
    data: list[wire.Slot]


class HoldPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[LiveHold]
    next_cursor: str | None = None


class BookingPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[wire.Booking]
    next_cursor: str | None = None


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Event]
    next_cursor: str | None = None


# -- values to answers ------------------------------------------------------------------------------------------------


def live_hold(known: domain.Hold, of: domain.Slot | None) -> LiveHold:
    slot = None
    if of is not None:
        slot = HeldSlot(venue=of.venue, what=of.what, starts_at=of.starts_at, timezone=of.timezone)
    return LiveHold(**msgspec.structs.asdict(wire.hold(known)), created_at=known.since, slot=slot)


def event(known: domain.Event) -> Event:
    return Event(
        seq=known.seq,
        at=known.at,
        type=known.type,
        actor=known.actor,
        booking_id=known.booking_id,
        slot_id=known.slot_id,
        data=known.data,
    )
