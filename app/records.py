"""What was booked and what happened, as operators read it: the lists of bookings, and the audit log."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.catalogue import require_venue
from app.database import Database
from app.domain import Booking, Event
from app.ledger import booking_of
from app.schema import bookings, events, slots, venues

Row = Any  # SQLAlchemy's rows: the fields are those of the statement above each use


class BookingFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which bookings to list; the times are those of their slots."""

    venue: str | None = None
    slot_id: UUID | None = None
    status: str | None = None
    starts_from: datetime | None = None
    starts_before: datetime | None = None


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    type: str | None = None
    slot_id: UUID | None = None
    booking_id: UUID | None = None


async def list_bookings(
    database: Database, which: BookingFilter, after: tuple[datetime, UUID] | None, limit: int
) -> list[Booking]:
    """List bookings in the order (created_at, id), after a position.

    Rows that never were more than a hold are left out, unless `held` is asked for.
    """
    query = (
        sa.select(bookings, slots.c.available_count)
        .join(slots, slots.c.id == bookings.c.slot_id)
        .where(*_booking_conditions(which))
        .order_by(bookings.c.created_at, bookings.c.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(sa.tuple_(bookings.c.created_at, bookings.c.id) > sa.tuple_(*after))

    async def read(connection: AsyncConnection) -> list[Booking]:
        rows = (await connection.execute(query)).all()
        if not rows and which.venue is not None:
            await require_venue(connection, which.venue)
        return [booking_of(row) for row in rows]

    return await database.read(read)


async def list_events(database: Database, which: EventFilter, after: int | None, limit: int) -> list[Event]:
    """List what is committed in the order of `seq`. For looking, not for following: see `follow_events`."""
    query = _events(which).order_by(events.c.seq).limit(limit)
    if after is not None:
        query = query.where(events.c.seq > after)

    async def read(connection: AsyncConnection) -> list[Event]:
        return [_event(row) for row in (await connection.execute(query)).all()]

    return await database.read(read)


async def follow_events(database: Database, which: EventFilter, after: int, limit: int) -> list[Event]:
    """Follow the log: what comes after an event in the order (transaction, seq); 0 begins at the beginning.

    Nothing is ever skipped. `seq` is given out before COMMIT, so a later number may become visible first; an event
    is therefore shown only when every transaction that is older than its own has ended, and the order is theirs.
    An event that nobody can have seen (a number never committed) stands for its place among the numbers.
    """

    async def read(connection: AsyncConnection) -> list[Event]:
        query = _events(which).where(events.c.xid < sa.func.pg_snapshot_xmin(sa.func.pg_current_snapshot()))
        if after > 0:
            at = await connection.scalar(sa.select(sa.cast(events.c.xid, sa.Text)).where(events.c.seq == after))
            position = sa.tuple_(sa.cast(sa.literal(at), events.c.xid.type), sa.literal(after))
            query = query.where(
                sa.tuple_(events.c.xid, events.c.seq) > position if at is not None else events.c.seq > after
            )
        query = query.order_by(events.c.xid, events.c.seq).limit(limit)
        return [_event(row) for row in (await connection.execute(query)).all()]

    return await database.read(read)


def _booking_conditions(which: BookingFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if which.venue is not None:
        this_venue = sa.select(venues.c.id).where(venues.c.slug == which.venue).scalar_subquery()
        conditions.append(bookings.c.venue_id == this_venue)
    if which.slot_id is not None:
        conditions.append(bookings.c.slot_id == which.slot_id)
    if which.status is not None:
        conditions.append(bookings.c.status == which.status)
    if which.status != "held":
        conditions.append(bookings.c.customer_name.is_not(None))
    if which.starts_from is not None:
        conditions.append(slots.c.starts_at >= which.starts_from)
    if which.starts_before is not None:
        conditions.append(slots.c.starts_at < which.starts_before)
    return conditions


def _events(which: EventFilter) -> sa.Select[Any]:
    query = sa.select(events)
    if which.type is not None:
        query = query.where(events.c.type == which.type)
    if which.slot_id is not None:
        query = query.where(events.c.slot_id == which.slot_id)
    if which.booking_id is not None:
        query = query.where(events.c.booking_id == which.booking_id)
    return query


def _event(row: Row) -> Event:
    return Event(row.seq, row.at, row.type, row.actor, row.slot_id, row.booking_id, row.data)
