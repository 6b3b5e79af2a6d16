"""The demo venue: a tour with ten places and three people with appointments, always for the coming weeks.

Every id is derived from what it names, so that a second start adds the days that are missing and nothing else.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5
from zoneinfo import ZoneInfo

import msgspec
import psycopg

SLUG = "demo"
ZONE = ZoneInfo("Europe/Berlin")
HORIZON_DAYS = 28

# Weekdays, 1 is Monday.
_EVERY_DAY, _WORKDAYS = range(1, 8), range(1, 6)


class Offer(msgspec.Struct, frozen=True):
    """One resource and the rhythm of its slots (of a person they never overlap); the price in cents."""

    name: str
    kind: str
    capacity: int
    minutes: int
    price: int
    starts: tuple[time, ...]
    weekdays: range


class Seeded(msgspec.Struct, frozen=True):
    """A slot with room, to book as a first try."""

    slot_id: UUID
    name: str
    when: str


def _rows(first: str, last: str, minutes: int) -> tuple[time, ...]:
    at, end = (datetime.combine(date.min, time.fromisoformat(text)) for text in (first, last))
    return tuple((at + n * timedelta(minutes=minutes)).time() for n in range((end - at) // timedelta(minutes=minutes)))


OFFERS = (
    Offer("City walk", "event", 10, 120, 2500, (time(10), time(14), time(17)), _EVERY_DAY),
    Offer("Anna", "person", 1, 30, 3500, _rows("09:00", "17:00", 30), _WORKDAYS),
    Offer("Ben", "person", 1, 60, 6000, _rows("10:00", "18:00", 60), _WORKDAYS),
    Offer("Clara", "person", 1, 30, 3500, _rows("12:00", "20:00", 30), _EVERY_DAY),
)


def seed(database_url: str) -> Seeded:
    """Make the demo venue, or top it up to the horizon; returns a slot of it that can be booked."""
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        connection.execute(
            "INSERT INTO venues (id, slug, name, timezone) VALUES (%s, %s, 'Holdfast demo', %s) ON CONFLICT DO NOTHING",
            (_id("venue"), SLUG, ZONE.key),
        )
        [venue_id] = _one(connection, "SELECT id FROM venues WHERE slug = %s", (SLUG,))
        for offer in OFFERS:
            _seed_offer(connection, venue_id, offer)
        return _bookable(connection, venue_id)


def _seed_offer(connection: psycopg.Connection[Any], venue_id: UUID, offer: Offer) -> None:
    resource_id = _id(f"resource/{offer.name}")
    connection.execute(
        "INSERT INTO resources (id, venue_id, name, kind) VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        (resource_id, venue_id, offer.name, offer.kind),
    )
    starts = [at for at in _starts(offer) if at > datetime.now(UTC)]
    connection.execute(
        "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
        "   available_count, exclusive, price_amount, price_currency)"
        " SELECT new.id, r.venue_id, r.id, r.no, r.one_at_a_time, new.starts_at,"
        "   new.starts_at + %(minutes)s * interval '1 minute', %(capacity)s, %(capacity)s, %(capacity)s = 1,"
        "   %(price)s, 'EUR'"
        " FROM resources AS r, unnest(%(ids)s::uuid[], %(starts)s::timestamptz[]) AS new (id, starts_at)"
        " WHERE r.id = %(resource)s ON CONFLICT (id) DO NOTHING",
        {
            "ids": [_id(f"slot/{offer.name}/{at.isoformat()}") for at in starts],
            "starts": starts,
            "minutes": offer.minutes,
            "capacity": offer.capacity,
            "price": offer.price,
            "resource": resource_id,
        },
    )


def _starts(offer: Offer) -> list[datetime]:
    today = datetime.now(ZONE).date()
    days = [today + timedelta(days=n) for n in range(HORIZON_DAYS)]
    return [
        datetime.combine(day, at, ZONE).astimezone(UTC)
        for day in days
        if day.isoweekday() in offer.weekdays
        for at in offer.starts
    ]


def _bookable(connection: psycopg.Connection[Any], venue_id: UUID) -> Seeded:
    """Choose the next slot with the most places, an hour ahead so that it does not begin while somebody reads."""
    slot_id, name, starts_at = _one(
        connection,
        "SELECT s.id, r.name, s.starts_at FROM slots AS s JOIN resources AS r ON r.id = s.resource_id"
        " WHERE s.venue_id = %s AND s.status = 'open' AND s.available_count > 0"
        "   AND s.starts_at > now() + interval '1 hour'"
        " ORDER BY s.capacity DESC, s.starts_at LIMIT 1",
        (venue_id,),
    )
    return Seeded(slot_id, name, f"{starts_at.astimezone(ZONE):%A %H:%M}")


def _one(connection: psycopg.Connection[Any], statement: str, values: tuple[Any, ...]) -> Any:
    return connection.execute(statement, values).fetchall()[0]


def _id(name: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"https://holdfast.invalid/demo/{name}")
