"""A day or a week of a person or venue: who comes when, what is held, what is blocked, what is free.

A salon has hundreds of slots that begin every quarter of an hour and overlap: what is free of them is told as the times
in which somebody is free. The slots of a tour or a class are told one by one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.domain import RACE_VENUE, Hold
from app.errors import NotFound, VenueNotFound
from app.ledger import Ledger

Row = Any  # psycopg's named tuples: the fields are those of the statement above each use
Span = tuple[datetime, datetime]

#: The longest that a slot may last: what began before may still be going on.
LONGEST_SLOT = timedelta(days=31)
#: What one look reads at most: a week of a large salon has tens of thousands of slots.
MOST_SLOTS, MOST_BOOKINGS = 100_000, 20_000

Kind = Literal["booking", "hold", "block", "free", "closed"]


class Named(msgspec.Struct, frozen=True):
    id: UUID
    name: str


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Whose agenda. `resources` are those that it may tell of: one, or all of the venue."""

    venue: str
    venue_id: UUID
    venue_name: str
    timezone: str
    #: None: the whole venue.
    resource: Named | None
    resources: list[Named]


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    resource: Named
    service: str | None
    service_id: UUID | None = None
    starts_at: datetime
    ends_at: datetime
    #: The end, and the buffer after it.
    occupied_until: datetime
    #: From then on customers cannot book it.
    bookable_until: datetime
    capacity: int
    available_count: int
    open: bool
    #: Closed because these are no working hours (any more), and by nobody's hand.
    unwanted: bool
    one_at_a_time: bool
    #: Nobody's booking has it, but the venue itself; `note` says why, if it does.
    block: bool = False
    note: str | None = None

    @property
    def alone(self) -> bool:
        """Of its own: one of many starts tells nothing by itself, a tour does."""
        return self.capacity > 1 and not self.one_at_a_time


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A booking or a hold, which have places of a slot."""

    kind: Literal["booking", "hold"]
    id: UUID
    slot_id: UUID
    quantity: int
    status: Literal["confirmed", "pending_payment", "held"]
    #: None: a hold knows nobody.
    customer: str | None
    #: None: it is confirmed. `left` from the moment of the look.
    expires_at: datetime | None = None
    left: timedelta | None = None
    #: Postgres does not count it.
    only_in_redis: bool = False
    #: Of a booking; see `Booking`.
    version: int | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an agenda. `quantity`: places taken, or free; None for the time of a person, which has no number."""

    kind: Kind
    starts_at: datetime
    ends_at: datetime
    resource: Named
    service: str | None = None
    service_id: UUID | None = None
    #: None: free or closed time that is made of several slots.
    slot_id: UUID | None = None
    #: Of the booking, hold or block.
    id: UUID | None = None
    customer: str | None = None
    quantity: int | None = None
    capacity: int | None = None
    status: str
    expires_at: datetime | None = None
    left: timedelta | None = None
    #: Why time is blocked.
    note: str | None = None
    #: Of a booking.
    version: int | None = None


class Look(msgspec.Struct, frozen=True):
    """What Postgres knows of some days. `complete`: there was not more than a look may read."""

    slots: list[Slot]
    taken: list[Taken]
    complete: bool


# -- reading ----------------------------------------------------------------------------------------------------------


async def find(ledger: Ledger, venue: str | None, resource: str | None) -> Subject:
    """Find whose agenda is meant: a resource by its id or name, a venue by its slug, or the only venue there is.

    Raises:
        VenueNotFound. NotFound: no such resource, or several; or several venues: the text lists them.
    """
    if venue is None and resource is None:
        venue = await _only_venue(ledger)
    rows = await ledger.repeatable(
        "SELECT v.id AS venue_id, v.slug, v.name AS venue_name, v.timezone, r.id, r.name"
        " FROM venues AS v LEFT JOIN resources AS r ON r.venue_id = v.id"
        " WHERE (%(venue)s::text IS NULL OR v.slug = %(venue)s)"
        "   AND (%(resource)s::text IS NULL OR r.id::text = lower(%(resource)s) OR lower(r.name) = lower(%(resource)s))"
        " ORDER BY v.slug, r.created_at, r.id",
        {"venue": venue, "resource": resource},
    )
    if resource is not None:
        rows = [_only_resource(rows, resource)]
    if not rows:
        raise VenueNotFound
    resources = [Named(row.id, row.name) for row in rows if row.id is not None]
    first = rows[0]
    return Subject(
        venue=first.slug,
        venue_id=first.venue_id,
        venue_name=first.venue_name,
        timezone=first.timezone,
        resource=resources[0] if resource is not None else None,
        resources=resources,
    )


async def _only_venue(ledger: Ledger) -> str:
    rows = await ledger.repeatable("SELECT slug FROM venues WHERE slug <> %s ORDER BY slug LIMIT 20", (RACE_VENUE,))
    if len(rows) != 1:
        names = ", ".join(row.slug for row in rows)
        raise NotFound(f"Which venue? Say --venue and one of: {names}" if rows else "There is no venue yet")
    slug: str = rows[0].slug
    return slug


def _only_resource(rows: Sequence[Row], asked: str) -> Row:
    if not rows:
        raise NotFound(f"No resource {asked!r}: give its name or id as `holdfast slots list` shows them")
    if len(rows) > 1:
        found = "; ".join(f"{row.id} of {row.slug}" for row in rows[:10])
        raise NotFound(f"Several resources are called {asked!r}: say --venue, or the id of one: {found}")
    return rows[0]


#: The slots that concern [from, to): along `slots_by_venue_time` or `slots_by_resource_time`.
_CHOSEN = (
    "s.{whose} = %(whose)s AND s.starts_at >= %(from)s - %(longest)s AND s.starts_at < %(to)s"
    " AND s.occupied_until > %(from)s AND (NOT s.is_block OR s.available_count = 0)"
)
_SLOTS = (
    "SELECT s.id, s.resource_id, r.name AS resource_name, v.name AS service_name, s.starts_at, s.ends_at,"  # noqa: S608
    "   s.occupied_until, coalesce(s.closes_at, s.starts_at) AS bookable_until, s.capacity, s.available_count,"
    "   s.status = 'open' AS is_open, s.closed_by_schedule, s.one_at_a_time, s.service_id, s.is_block,"
    "   CASE WHEN s.is_block THEN (SELECT b.reason FROM blocks AS b WHERE b.id = s.id) END AS note"
    " FROM slots AS s JOIN resources AS r ON r.id = s.resource_id LEFT JOIN services AS v ON v.id = s.service_id"
    f" WHERE {_CHOSEN} ORDER BY s.starts_at, s.id LIMIT %(most)s"
)
#: OFFSET 0: one slot's bookings after the other's, by the index, and only of slots that have any.
_BOOKINGS = (
    "SELECT s.id AS slot_id, b.*, b.expires_at - clock_timestamp() AS time_left FROM slots AS s"  # noqa: S608
    " CROSS JOIN LATERAL (SELECT id, quantity, status, customer_name, expires_at, version FROM bookings"
    "   WHERE slot_id = s.id AND status IN ('confirmed', 'pending_payment') OFFSET 0) AS b"
    f" WHERE {_CHOSEN} AND s.available_count < s.capacity ORDER BY s.starts_at, b.id LIMIT %(most)s"
)


async def look(ledger: Ledger, subject: Subject, since: datetime, until: datetime) -> Look:
    """Read the slots and bookings of some days.

    Raises:
        Busy, Overloaded, DatabaseUnavailable
    """
    whose = "venue_id" if subject.resource is None else "resource_id"
    values = {
        "whose": subject.venue_id if subject.resource is None else subject.resource.id,
        "from": since,
        "to": until,
        "longest": LONGEST_SLOT + timedelta(days=1),  # and the buffer
    }
    slots = await ledger.repeatable(_SLOTS.format(whose=whose), {**values, "most": MOST_SLOTS + 1})
    rows = await ledger.repeatable(_BOOKINGS.format(whose=whose), {**values, "most": MOST_BOOKINGS + 1})
    return Look(
        [_slot(row) for row in slots[:MOST_SLOTS]],
        [_booking(row) for row in rows[:MOST_BOOKINGS]],
        len(slots) <= MOST_SLOTS and len(rows) <= MOST_BOOKINGS,
    )


def with_holds(seen: Look, holds: Iterable[Hold]) -> Look:
    """Add the live holds of both stores; one that has become a booking since is that booking."""
    ours, settled = {slot.id for slot in seen.slots}, {taken.id for taken in seen.taken}
    added = [_hold(hold) for hold in holds if hold.slot_id in ours and hold.id not in settled]
    return msgspec.structs.replace(seen, taken=[*seen.taken, *added])


# -- what is told -----------------------------------------------------------------------------------------------------


def lines(seen: Look, since: datetime, until: datetime, now: datetime) -> list[Line]:
    """Tell what a look has found of [since, until), in the order of time."""
    told: list[Line] = []
    slots_of: dict[Named, list[Slot]] = defaultdict(list)
    for slot in seen.slots:
        slots_of[slot.resource].append(slot)
    taken_of: dict[UUID, list[Taken]] = defaultdict(list)
    for taken in seen.taken:
        taken_of[taken.slot_id].append(taken)
    for resource, slots in slots_of.items():
        told += [_taken(slot, taken) for slot in slots for taken in taken_of[slot.id]]
        told += [_blocked_time(slot) for slot in slots if slot.block]
        told += _rest(resource, slots, taken_of, now)
    order = {"booking": 0, "hold": 1, "block": 2, "free": 3, "closed": 4}
    return sorted(
        (line for line in told if line.starts_at < until and line.ends_at > since),
        key=lambda line: (
            line.starts_at,
            line.resource.name,
            line.ends_at,
            order[line.kind],
            line.id or line.slot_id or line.resource.id,
        ),
    )


def _rest(
    resource: Named, slots: Sequence[Slot], taken_of: Mapping[UUID, Sequence[Taken]], now: datetime
) -> list[Line]:
    """Tell what nobody has of a resource: free places, free time, and what was closed."""
    touched = {slot.id for slot in slots if taken_of.get(slot.id) or slot.available_count < slot.capacity}
    busy = [(slot.starts_at, slot.occupied_until, slot.id) for slot in slots if slot.id in touched]
    told: list[Line] = []
    free: list[Slot] = []
    closed: list[Slot] = []
    for slot in slots:
        held = sum(taken.quantity for taken in taken_of.get(slot.id, ()) if taken.only_in_redis)
        room = slot.available_count - held
        if not slot.open:
            if slot.id not in touched and not slot.unwanted:
                closed.append(slot)
        elif slot.bookable_until <= now or room <= 0 or _blocked(slot, busy):
            continue
        elif slot.id in touched or slot.alone:
            told.append(_places(slot, "free", room))
        else:
            free.append(slot)
    free_spans = _merged(free)
    told += [Line(kind="free", starts_at=a, ends_at=b, resource=resource, status="free") for a, b in free_spans]
    told += [_places(slot, "closed", None) for slot in closed if slot.alone]
    shut = _less(_merged([slot for slot in closed if not slot.alone]), [*free_spans, *((a, b) for a, b, _ in busy)])
    told += [Line(kind="closed", starts_at=a, ends_at=b, resource=resource, status="closed") for a, b in shut]
    return told


def _blocked(slot: Slot, busy: Iterable[tuple[datetime, datetime, UUID]]) -> bool:
    """Tell whether its person or place does something else meanwhile."""
    return slot.one_at_a_time and any(
        begin < slot.occupied_until and slot.starts_at < end and slot_id != slot.id for begin, end, slot_id in busy
    )


def _merged(slots: Iterable[Slot]) -> list[Span]:
    """Join the times of slots that overlap or follow each other, at most a buffer apart."""
    spans: list[Span] = []
    reaches = None
    for slot in sorted(slots, key=lambda slot: slot.starts_at):
        if reaches is None or slot.starts_at > reaches:
            spans.append((slot.starts_at, slot.ends_at))
            reaches = slot.occupied_until
        else:
            spans[-1] = (spans[-1][0], max(spans[-1][1], slot.ends_at))
            reaches = max(reaches, slot.occupied_until)
    return spans


def _less(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Leave of some spans what is outside of others."""
    left = list(spans)
    for begin, end in taken:
        left = [
            part
            for start, stop in left
            for part in ((start, min(stop, begin)), (max(start, end), stop))
            if part[0] < part[1]
        ]
    return left


def _taken(slot: Slot, taken: Taken) -> Line:
    return Line(
        kind=taken.kind, starts_at=slot.starts_at, ends_at=slot.ends_at, resource=slot.resource, service=slot.service,
        service_id=slot.service_id, slot_id=slot.id, id=taken.id, customer=taken.customer, quantity=taken.quantity,
        capacity=slot.capacity, status=taken.status, expires_at=taken.expires_at, left=taken.left,
        version=taken.version,
    )  # fmt: skip


def _blocked_time(slot: Slot) -> Line:
    return Line(
        kind="block", starts_at=slot.starts_at, ends_at=slot.ends_at, resource=slot.resource, id=slot.id,
        status="blocked", note=slot.note,
    )  # fmt: skip


def _places(slot: Slot, kind: Literal["free", "closed"], room: int | None) -> Line:
    return Line(
        kind=kind, starts_at=slot.starts_at, ends_at=slot.ends_at, resource=slot.resource, service=slot.service,
        service_id=slot.service_id, slot_id=slot.id, quantity=room, capacity=slot.capacity, status=kind,
    )  # fmt: skip


# -- rows to values ---------------------------------------------------------------------------------------------------


def _slot(row: Row) -> Slot:
    return Slot(
        id=row.id, resource=Named(row.resource_id, row.resource_name), service=row.service_name,
        starts_at=row.starts_at, ends_at=row.ends_at, occupied_until=row.occupied_until,
        bookable_until=row.bookable_until, capacity=row.capacity, available_count=row.available_count,
        open=row.is_open, unwanted=row.closed_by_schedule, one_at_a_time=row.one_at_a_time,
        service_id=row.service_id, block=row.is_block, note=row.note,
    )  # fmt: skip


def _booking(row: Row) -> Taken:
    return Taken(
        kind="booking", id=row.id, slot_id=row.slot_id, quantity=row.quantity, status=row.status,
        customer=row.customer_name, expires_at=row.expires_at, left=row.time_left, version=row.version,
    )  # fmt: skip


def _hold(hold: Hold) -> Taken:
    return Taken(
        kind="hold", id=hold.id, slot_id=hold.slot_id, quantity=hold.quantity, status="held", customer=None,
        expires_at=hold.expires_at, left=hold.expires_at - hold.now, only_in_redis=not hold.degraded,
    )  # fmt: skip
