"""What is sold: venues, their resources, and slots, as operators change them and operators and widgets read them.

Postgres only, and never a booking. Knows nothing of Redis: whoever changes a slot here tells the mirror
(`slots_changed`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Answer, Database, Keyed, audit
from app.domain import Resource, Service, Slot, Venue
from app.errors import ResourceNotFound, SlotNotFound, VenueNotFound
from app.ledger import slot_of
from app.schema import bookings, occupied, resources, service_resources, services, slots, venues
from app.tokens import new_id

Row = Any  # SQLAlchemy's rows: the fields are those of the statement above each use


class NewVenue(msgspec.Struct, frozen=True, kw_only=True):
    slug: str
    name: str
    timezone: str
    payment: str
    hold_ttl_seconds: int | None
    hold_max_seconds: int
    refund_hours: int = 0
    waiting_offer_minutes: int = 15
    return_origins: list[str] | None = None
    origins: list[str] = []
    holds_per_client: int | None = None


class NewResource(msgspec.Struct, frozen=True, kw_only=True):
    venue: str
    name: str
    kind: str


class NewSlot(msgspec.Struct, frozen=True, kw_only=True):
    venue: str
    resource_id: UUID
    service_id: UUID | None = None
    starts_at: datetime
    ends_at: datetime
    capacity: int
    price_amount: int | None
    price_currency: str | None


class SlotFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which slots to list. `room_for`: only those that may have room for so many; holds are not known here."""

    venue: str | None = None
    resource_id: UUID | None = None
    service_id: UUID | None = None
    starts_from: datetime | None = None
    starts_before: datetime | None = None
    room_for: int | None = None


class Catalogue:
    """The statements, on the connections of a database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- venues and resources ---------------------------------------------------------------------------------------

    async def venue(self, slug: str) -> Venue:
        """Read a venue with its resources.

        Raises:
            VenueNotFound
        """
        _require_text(slug)

        async def read(connection: AsyncConnection) -> Venue:
            row = (await connection.execute(_VENUE_BY_SLUG, {"slug": slug})).one_or_none()
            if row is None:
                raise VenueNotFound
            return await _whole_venue(connection, row)

        return await self.database.read(read)

    async def venues(self, after: str | None, limit: int) -> list[Venue]:
        """List venues by slug, after one."""

        async def read(connection: AsyncConnection) -> list[Venue]:
            query = sa.select(venues).order_by(venues.c.slug).limit(limit)
            if after is not None:
                query = query.where(venues.c.slug > after)
            rows = (await connection.execute(query)).all()
            ids = [row.id for row in rows]
            of_venues, offered = await _resources_of(connection, ids), await _services_of(connection, ids)
            return [_venue(row, of_venues, offered) for row in rows]

        return await self.database.read(read)

    async def origins(self) -> list[str]:
        """List every origin that some venue has named."""

        async def read(connection: AsyncConnection) -> list[str]:
            return list(await connection.scalars(_ORIGINS))

        return await self.database.read(read)

    async def create_venue(
        self, new: NewVenue, keyed: Keyed | None, request_id: str | None, render: Callable[[Venue], bytes]
    ) -> Answer:
        async def create(connection: AsyncConnection) -> bytes:
            values = {**msgspec.structs.asdict(new), "id": new_id()}
            row = (await connection.execute(sa.insert(venues).values(values).returning(venues))).one()
            await audit(connection, "venue.created", request_id, [{"venue_id": row.id, "data": {"slug": row.slug}}])
            return render(_venue(row, {}, {}))

        return await self.database.once(keyed, create)

    async def change_venue(self, slug: str, changes: Mapping[str, Any], request_id: str | None) -> Venue:
        """Change the given columns of a venue. None of them moves a booking.

        Raises:
            VenueNotFound
        """
        _require_text(slug)

        async def change(connection: AsyncConnection) -> Venue:
            update = sa.update(venues).where(venues.c.slug == slug).returning(venues)
            query = update.values(changes) if changes else sa.select(venues).where(venues.c.slug == slug)
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                raise VenueNotFound
            if changes:
                event = {"venue_id": row.id, "data": {"changed": sorted(changes)}}
                await audit(connection, "venue.updated", request_id, [event])
            if "timezone" in changes:  # the same hours on the wall are at other instants
                await slots_are_due(connection, resources.c.venue_id == row.id, first=False)
            return await _whole_venue(connection, row)

        return await self.database.write(change)

    async def venue_of(self, resource_id: UUID) -> str:
        """Tell the slug of the venue that a resource is of.

        Raises:
            ResourceNotFound
        """
        query = sa.select(venues.c.slug).join(resources).where(resources.c.id == resource_id)

        async def read(connection: AsyncConnection) -> str:
            slug: str | None = await connection.scalar(query)
            if slug is None:
                raise ResourceNotFound
            return slug

        return await self.database.read(read)

    async def create_resource(
        self, new: NewResource, keyed: Keyed | None, request_id: str | None, render: Callable[[Resource], bytes]
    ) -> Answer:
        """Create a resource.

        Raises:
            VenueNotFound
        """

        async def create(connection: AsyncConnection) -> bytes:
            venue_id = await require_venue(connection, new.venue)
            values = {"id": new_id(), "venue_id": venue_id, "name": new.name, "kind": new.kind}
            row = (await connection.execute(sa.insert(resources).values(values).returning(resources))).one()
            event = {"venue_id": venue_id, "data": {"resource_id": str(row.id), "kind": row.kind}}
            await audit(connection, "resource.created", request_id, [event])
            return render(Resource(row.id, new.venue, row.name, row.kind, row.created_at))

        return await self.database.once(keyed, create)

    # -- slots ------------------------------------------------------------------------------------------------------

    async def slot(self, slot_id: UUID) -> Slot:
        """Read a slot.

        Raises:
            SlotNotFound
        """

        async def read(connection: AsyncConnection) -> Slot:
            found = await _slots_by_id(connection, [slot_id])
            if not found:
                raise SlotNotFound
            return found[0]

        return await self.database.read(read)

    async def slots(self, which: SlotFilter, after: tuple[datetime, UUID] | None, limit: int) -> list[Slot]:
        """List slots in the order (starts_at, id), after a position: index scans, however many slots there are.

        Raises:
            VenueNotFound: the filter names a venue that does not exist.
        """

        given = {name: value for name, value in msgspec.structs.asdict(which).items() if value is not None}
        if after is not None:
            given |= {"after_at": after[0], "after_id": after[1]}

        async def read(connection: AsyncConnection) -> list[Slot]:
            rows = (await connection.execute(_slot_page(frozenset(given)), {**given, "limit": limit})).all()
            if not rows and which.venue is not None:
                await require_venue(connection, which.venue)
            return [slot_of(row) for row in rows]

        return await self.database.read(read)

    async def free_days(self, which: SlotFilter, first: date, last: date, zone: str) -> list[date]:
        """List the days of a zone's calendar on which a slot has room: a look into an index for each, however many
        slots there are. Holds are not known here.

        Raises:
            VenueNotFound: the filter names a venue that does not exist.
            InvalidRequest: Postgres does not know the zone.
        """
        given = {name: value for name, value in msgspec.structs.asdict(which).items() if value is not None}

        async def read(connection: AsyncConnection) -> list[date]:
            values = {**given, "first": first, "last": last, "zone": zone}
            found = list((await connection.execute(_free_days(frozenset(given)), values)).scalars())
            if not found and which.venue is not None:
                await require_venue(connection, which.venue)
            return found

        return await self.database.read(read)

    async def create_slots(
        self, new: Sequence[NewSlot], keyed: Keyed | None, request_id: str | None, render: Callable[[list[Slot]], bytes]
    ) -> Answer:
        """Create slots, all or none, in the order given.

        Raises:
            VenueNotFound, ResourceNotFound: also for a resource of another venue.
        """

        async def create(connection: AsyncConnection) -> bytes:
            owners = await _owners(connection, new)
            buffers = await _buffers(connection, new)
            rows = [_new_slot_row(slot, owners[slot.resource_id], buffers) for slot in new]
            await connection.execute(sa.insert(slots), rows)
            logged = [
                {"venue_id": row["venue_id"], "slot_id": row["id"], "data": {"capacity": row["capacity"]}}
                for row in rows
            ]
            await audit(connection, "slot.created", request_id, logged)
            return render(await _slots_by_id(connection, [row["id"] for row in rows]))

        return await self.database.once(keyed, create)

    async def change_slot(self, slot_id: UUID, changes: Mapping[str, Any], request_id: str | None) -> Slot:
        """Change capacity or status. What is booked stays booked. From then on the slot is no schedule's any more.

        Raises:
            SlotNotFound. Conflict: the capacity would be below what is booked.
        """

        async def change(connection: AsyncConnection) -> Slot:
            if changes:
                by_hand = {"made_by_schedule": False, "closed_by_schedule": False}
                query = sa.update(slots).where(slots.c.id == slot_id).returning(slots.c.venue_id)
                query = query.values({**by_hand, **changes})
                venue_id = (await connection.execute(query)).scalar_one_or_none()
                event = {"venue_id": venue_id, "slot_id": slot_id, "data": dict(changes)}
                if venue_id is not None:
                    await audit(connection, "slot.updated", request_id, [event])
            found = await _slots_by_id(connection, [slot_id])
            if not found:
                raise SlotNotFound
            return found[0]

        return await self.database.write(change)


# -- statements -------------------------------------------------------------------------------------------------------


def _slot_conditions() -> dict[str, list[sa.ColumnElement[bool]]]:
    """Say what each filter, and a position in the list, asks of a slot."""
    of_slug = sa.select(venues.c.id).where(venues.c.slug == sa.bindparam("venue")).scalar_subquery()
    return {
        "resource_id": [slots.c.resource_id == sa.bindparam("resource_id")],
        "venue": [slots.c.venue_id == of_slug],
        "service_id": [slots.c.service_id == sa.bindparam("service_id")],
        "starts_from": [slots.c.starts_at >= sa.bindparam("starts_from")],
        "starts_before": [slots.c.starts_at < sa.bindparam("starts_before")],
        "room_for": [
            slots.c.available_count >= sa.bindparam("room_for"),
            slots.c.status == "open",
            slots.c.starts_at > sa.func.now(),
            sa.or_(slots.c.closes_at.is_(None), slots.c.closes_at > sa.func.now()),
            sa.not_(sa.and_(slots.c.one_at_a_time, _blocked(slots))),
        ],
        "after_at": [
            sa.tuple_(slots.c.starts_at, slots.c.id)
            > sa.tuple_(
                sa.bindparam("after_at", type_=slots.c.starts_at.type), sa.bindparam("after_id", type_=slots.c.id.type)
            )
        ],
        "after_id": [],
    }


@cache
def _free_days(given: frozenset[str]) -> sa.Select[Any]:
    """Build the query for the days with room: each asks for one slot between its begin and the next one's."""
    first, last = (sa.bindparam(name, type_=sa.DateTime) for name in ("first", "last"))
    a_day, zone = sa.text("interval '1 day'"), sa.bindparam("zone", type_=sa.Text)
    every = sa.select(sa.func.generate_series(first, last, a_day, type_=sa.DateTime).label("begin")).subquery("days")
    begins, ends = (sa.func.timezone(zone, begin) for begin in (every.c.begin, every.c.begin + a_day))
    conditions = _slot_conditions()
    asked = [each for name in sorted(given) for each in conditions[name]]
    room = sa.select(1).select_from(slots).where(slots.c.starts_at >= begins, slots.c.starts_at < ends, *asked)
    day = sa.cast(every.c.begin, sa.Date)
    return sa.select(day).where(room.correlate(every).exists()).order_by(every.c.begin)


@cache
def _slot_page(given: frozenset[str]) -> sa.Select[Any]:
    """Build the query for a page of slots with these filters, once: it costs ten times what running it does.

    It walks along an index: the resource's (for a service), the service's, the venue's, or every venue's in turn.
    """
    limit = sa.bindparam("limit", type_=sa.Integer)
    page = sa.select(slots).where(sa.not_(slots.c.is_block)).order_by(slots.c.starts_at, slots.c.id).limit(limit)
    conditions = _slot_conditions()
    for name in sorted(given):
        page = page.where(*conditions[name])
    if not given & {"resource_id", "service_id", "venue"}:
        of_venue = page.where(slots.c.venue_id == venues.c.id).correlate(venues).lateral("of_venue")
        every = sa.select(of_venue).select_from(venues.join(of_venue, sa.true()))
        page = every.order_by(of_venue.c.starts_at, of_venue.c.id).limit(limit)
    return _slot_rows(page.subquery("n"))


def _slot_rows(chosen: sa.FromClause) -> sa.Select[Any]:
    """Read what a `Slot` says of the chosen ones, in the order (starts_at, id)."""
    held = (
        sa.select(sa.func.coalesce(sa.func.sum(bookings.c.quantity), 0))
        .where(bookings.c.slot_id == chosen.c.id, bookings.c.status == "held")
        .scalar_subquery()
    )
    return (
        sa.select(
            chosen,
            venues.c.slug,
            venues.c.timezone,
            resources.c.name.label("resource_name"),
            services.c.name.label("service_name"),
            sa.and_(chosen.c.one_at_a_time, _blocked(chosen)).label("blocked"),
            held.label("held_rows"),
        )
        .select_from(
            chosen.join(venues, venues.c.id == chosen.c.venue_id)
            .join(resources, resources.c.id == chosen.c.resource_id)
            .outerjoin(services, services.c.id == chosen.c.service_id)
        )
        .order_by(chosen.c.starts_at, chosen.c.id)
    )


def _blocked(chosen: sa.FromClause) -> sa.ColumnElement[bool]:
    """Tell whether another slot occupies the person or place: asked as the exclusion constraint is, so that its index
    answers.
    """
    elsewhere = occupied.alias("o")

    def number(of: sa.FromClause) -> sa.ColumnElement[Any]:
        return sa.func.int8range(of.c.resource_no, of.c.resource_no, sa.literal_column("'[]'"))

    meanwhile = sa.func.tstzrange(chosen.c.starts_at, chosen.c.occupied_until)
    return (
        sa.exists()
        .where(
            elsewhere.c.slot_id != chosen.c.id,
            number(elsewhere).op("&&")(number(chosen)),
            elsewhere.c.during.op("&&")(meanwhile),
        )
        .correlate(chosen)
    )


#: As for pages: built once.
_IDS = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_SLOTS_BY_ID = _slot_rows(sa.select(slots).where(slots.c.id == sa.any_(_IDS), sa.not_(slots.c.is_block)).subquery("n"))
_ORIGINS = sa.select(sa.func.unnest(venues.c.origins)).distinct()
_VENUE_BY_SLUG = sa.select(venues).where(venues.c.slug == sa.bindparam("slug"))
_RESOURCES_OF_VENUES = (
    sa.select(resources, venues.c.slug)
    .join(venues, venues.c.id == resources.c.venue_id)
    .where(resources.c.venue_id == sa.any_(_IDS))
    .order_by(resources.c.venue_id, resources.c.created_at, resources.c.id)
)
SERVICES = sa.select(
    services,
    venues.c.slug,
    sa.func.array(
        sa.select(service_resources.c.resource_id)
        .join(resources, resources.c.id == service_resources.c.resource_id)
        .where(service_resources.c.service_id == services.c.id)
        .order_by(resources.c.created_at, resources.c.id)
        .correlate(services)
        .scalar_subquery(),
        type_=sa.ARRAY(sa.Uuid),
    ).label("resource_ids"),
).join(venues, venues.c.id == services.c.venue_id)
_SERVICES_OF_VENUES = SERVICES.where(services.c.venue_id == sa.any_(_IDS), services.c.active).order_by(
    services.c.venue_id, services.c.created_at, services.c.id
)


async def _slots_by_id(connection: AsyncConnection, slot_ids: Sequence[UUID]) -> list[Slot]:
    rows = (await connection.execute(_SLOTS_BY_ID, {"ids": list(slot_ids)})).all()
    found = {row.id: slot_of(row) for row in rows}
    return [found[slot_id] for slot_id in slot_ids if slot_id in found]


def _require_text(slug: str) -> None:
    if "\0" in slug:  # a path may hold what Postgres' text cannot
        raise VenueNotFound


async def require_venue(connection: AsyncConnection, slug: str) -> UUID:
    """Find the id of a venue.

    Raises:
        VenueNotFound
    """
    venue_id: UUID | None = await connection.scalar(sa.select(venues.c.id).where(venues.c.slug == slug))
    if venue_id is None:
        raise VenueNotFound
    return venue_id


async def _resources_of(connection: AsyncConnection, venue_ids: Sequence[UUID]) -> dict[UUID, list[Resource]]:
    found: dict[UUID, list[Resource]] = {}
    for row in (await connection.execute(_RESOURCES_OF_VENUES, {"ids": list(venue_ids)})).all():
        resource = Resource(row.id, row.slug, row.name, row.kind, row.created_at)
        found.setdefault(row.venue_id, []).append(resource)
    return found


async def _services_of(connection: AsyncConnection, venue_ids: Sequence[UUID]) -> dict[UUID, list[Service]]:
    found: dict[UUID, list[Service]] = {}
    for row in (await connection.execute(_SERVICES_OF_VENUES, {"ids": list(venue_ids)})).all():
        found.setdefault(row.venue_id, []).append(service_of(row))
    return found


async def _whole_venue(connection: AsyncConnection, row: Row) -> Venue:
    return _venue(row, await _resources_of(connection, [row.id]), await _services_of(connection, [row.id]))


async def slots_are_due(
    connection: AsyncConnection, of_resources: sa.ColumnElement[bool], *, first: bool = True
) -> None:
    """Note that what the slots of these resources are made from has changed, before it is changed: whoever makes slots
    from the old state waits for the new one, and then finds his lists outdated.

    `first`: also of those that never had a schedule.
    """
    if not first:
        of_resources = sa.and_(of_resources, resources.c.slots_due_at.is_not(None))
    # In id order: two changes at once wait for each other, and never in a ring.
    locked = sa.select(resources.c.id).where(of_resources).order_by(resources.c.id).with_for_update(key_share=True)
    changed = sa.update(resources).where(resources.c.id.in_(locked.cte("locked").select()))
    await connection.execute(
        changed.values(schedule_version=resources.c.schedule_version + 1, slots_due_at=sa.func.clock_timestamp())
    )


async def _owners(connection: AsyncConnection, new: Sequence[NewSlot]) -> dict[UUID, Row]:
    """Read the resources of new slots, each of which names its venue too."""
    wanted = sorted({slot.resource_id for slot in new})
    query = (
        sa.select(resources, venues.c.slug)
        .join(venues, venues.c.id == resources.c.venue_id)
        .where(resources.c.id == sa.any_(sa.literal(wanted, sa.ARRAY(sa.Uuid))))
    )
    owners = {row.id: row for row in (await connection.execute(query)).all()}
    for slot in new:
        if slot.resource_id not in owners or owners[slot.resource_id].slug != slot.venue:
            await require_venue(connection, slot.venue)
            raise ResourceNotFound
    return owners


async def _buffers(connection: AsyncConnection, new: Sequence[NewSlot]) -> dict[UUID, timedelta]:
    """Read how long the services of new slots keep their resource busy afterwards. That they are of its venue, the
    database sees to.
    """
    wanted = sorted({slot.service_id for slot in new if slot.service_id is not None})
    query = sa.select(services.c.id, services.c.buffer_minutes).where(services.c.id == sa.any_(_IDS))
    rows = (await connection.execute(query, {"ids": wanted})).all() if wanted else []
    return {row.id: timedelta(minutes=row.buffer_minutes) for row in rows}


def _new_slot_row(new: NewSlot, owner: Row, buffers: Mapping[UUID, timedelta]) -> dict[str, Any]:
    buffer = buffers.get(new.service_id, timedelta()) if new.service_id else timedelta()
    return {
        "id": new_id(),
        "venue_id": owner.venue_id,
        "resource_id": owner.id,
        "resource_no": owner.no,
        "one_at_a_time": owner.one_at_a_time,
        "service_id": new.service_id,
        "starts_at": new.starts_at,
        "ends_at": new.ends_at,
        "occupied_until": new.ends_at + buffer,
        "capacity": new.capacity,
        "available_count": new.capacity,  # this and the next are the trigger's to decide; the columns are NOT NULL
        "exclusive": new.capacity == 1,
        "price_amount": new.price_amount,
        "price_currency": new.price_currency,
    }


# -- rows to values ---------------------------------------------------------------------------------------------------


def _venue(row: Row, of_venues: Mapping[UUID, list[Resource]], offered: Mapping[UUID, list[Service]]) -> Venue:
    return Venue(
        row.id, row.slug, row.name, row.timezone, row.payment, row.hold_ttl_seconds, row.hold_max_seconds,
        row.refund_hours, row.waiting_offer_minutes, row.return_origins, row.origins, row.holds_per_client,
        row.created_at, of_venues.get(row.id, []), offered.get(row.id, []),
    )  # fmt: skip


def service_of(row: Row) -> Service:
    return Service(
        id=row.id,
        venue=row.slug,
        name=row.name,
        duration_minutes=row.duration_minutes,
        buffer_minutes=row.buffer_minutes,
        capacity=row.capacity,
        price_amount=row.price_amount,
        price_currency=row.price_currency,
        active=row.active,
        created_at=row.created_at,
        resource_ids=row.resource_ids,
    )
