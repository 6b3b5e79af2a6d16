"""What goes over the wire about an owner's days and blocked time, in addition to `wire`: the same rules."""

from datetime import timedelta
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from app import blocks
from app.api import wire
from app.api.strict import NOT_BLANK, instant
from app.calendars import agenda

#: Six weeks, as a month's page shows them.
MOST_DAYS = 42
Reason = Annotated[str, Meta(min_length=1, max_length=200, pattern=NOT_BLANK)]


class BlockWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of a person or a place; at most 31 days, and not over yet."""

    resource_id: UUID
    starts_at: wire.Instant
    ends_at: wire.Instant
    reason: Reason | None = None

    def __post_init__(self) -> None:
        starts_at, ends_at = instant(self.starts_at, "starts_at"), instant(self.ends_at, "ends_at")
        if not timedelta() < ends_at - starts_at <= wire.MAX_SLOT_LENGTH:
            raise ValueError("ends_at must be after starts_at, by at most 31 days")

    def to_wish(self, key: str | None) -> blocks.Wish:
        return blocks.Wish(
            resource_id=self.resource_id,
            starts_at=instant(self.starts_at, "starts_at"),
            ends_at=instant(self.ends_at, "ends_at"),
            reason=self.reason,
            key=key,
        )


class BlockQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Blocks that touch the time between `from` and `to`."""

    venue: wire.Slug
    since: wire.Instant | None = msgspec.field(default=None, name="from")
    until: wire.Instant | None = msgspec.field(default=None, name="to")
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None

    def __post_init__(self) -> None:
        wire.check_range(self.since, self.until)


class CalendarQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most six weeks."""

    venue: wire.Slug
    since: wire.Instant = msgspec.field(name="from")
    until: wire.Instant = msgspec.field(name="to")

    def __post_init__(self) -> None:
        since, until = instant(self.since, "from"), instant(self.until, "to")
        if not timedelta() < until - since <= timedelta(days=MOST_DAYS):
            raise ValueError(f"to must be after from, by at most {MOST_DAYS} days")


class Block(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    venue: str
    resource: wire.Named
    starts_at: wire.At
    ends_at: wire.At
    reason: str | None
    created_at: wire.At


class BlockPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Block]
    next_cursor: str | None = None


class CalendarEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A booking, a hold or a block by its `id`; or what is free or was closed: a slot, or with `slot_id` null the time
    that many slots make together. `quantity`: places taken, or free.
    """

    kind: Literal["booking", "hold", "block", "free", "closed"]
    id: UUID | None
    status: str
    starts_at: wire.At
    ends_at: wire.At
    resource: wire.Named
    service: wire.Named | None
    slot_id: UUID | None
    customer: str | None
    quantity: int | None
    capacity: int | None
    expires_at: wire.At | None
    reason: str | None
    #: Of a booking: give it with what changes the booking.
    version: int | None


class Calendar(msgspec.Struct, frozen=True, kw_only=True):
    """`degraded`: holds that only Redis knows are not told, since it is away. `complete`: this is all there is."""

    venue: str
    timezone: str
    server_time: wire.At
    resources: list[wire.Named]
    degraded: bool
    complete: bool
    data: list[CalendarEntry]
    next_cursor: None = None


def block(known: blocks.Block) -> Block:
    return Block(
        id=known.id,
        venue=known.venue,
        resource=wire.Named(id=known.resource_id, name=known.resource_name),
        starts_at=known.starts_at,
        ends_at=known.ends_at,
        reason=known.reason,
        created_at=known.created_at,
    )


def entry(line: agenda.Line) -> CalendarEntry:
    service = None
    if line.service is not None and line.service_id is not None:
        service = wire.Named(id=line.service_id, name=line.service)
    return CalendarEntry(
        kind=line.kind,
        id=line.id,
        status=line.status,
        starts_at=line.starts_at,
        ends_at=line.ends_at,
        resource=wire.Named(id=line.resource.id, name=line.resource.name),
        service=service,
        slot_id=line.slot_id,
        customer=line.customer,
        quantity=line.quantity,
        capacity=line.capacity,
        expires_at=line.expires_at,
        reason=line.note,
        version=line.version,
    )
